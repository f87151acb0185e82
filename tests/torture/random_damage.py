"""Random damage to every format and every signed field, counted.

    python -m tests.torture.random_damage                            # all cases, some minutes
    python -m tests.torture.random_damage --sample                   # a tenth of them, for CI
    python -m tests.torture.random_damage --only Parity --case 17    # one again, in this process

A case is decided by the seed, the subject's name and the case's number alone. The files of a
failing case are kept.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.torture import runner
from tests.torture.subjects import catalogue

SEED = 1
SAMPLE = 10  # one case in so many


def chosen(options):
    """How many cases of which subjects."""
    found = catalogue.all_subjects()
    names = options.only or list(found)
    unknown = sorted(set(names) - set(found))
    if unknown:
        raise SystemExit(f"subjects are {', '.join(found)}; received {', '.join(unknown)}")
    share = SAMPLE if options.sample else 1
    counts = {name: (0, -(-found[name].cases // share)) for name in names}
    # those that need Keras last, so that one worker at a time imports it late
    return found, dict(sorted(counts.items(), key=lambda item: found[item[0]].needs_keras))


def replay(found, name, case, seed):
    with tempfile.TemporaryDirectory(dir=runner.scratch_folder()) as scratch:
        subject = found[name](catalogue.fresh(Path(scratch) / name))
        what, verdict = subject.run(runner.case_rng(seed, name, case))
        print(f"{name} case {case}: {what}: {verdict}")


def run(sample=False, seed=SEED, jobs=2, keep="torture-failures", only=None):
    """Runs the cases; returns a report as a JSON object."""
    options = argparse.Namespace(sample=sample, only=only)
    found, counts = chosen(options)
    Path(keep).mkdir(parents=True, exist_ok=True)
    total = sum(stop for _, stop in counts.values())

    def progress(done):
        if sys.stderr.isatty() and done % 50 == 0:
            print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True)

    start = time.perf_counter()
    tally = runner.run_cases(counts, seed, Path(keep).resolve(), jobs, progress)
    for failure in tally.failures:
        failure["replay"] = (
            f"python -m tests.torture.random_damage --seed {seed} --only {failure['subject']} "
            f"--case {failure['case']}"
        )
    rows = [
        {
            "format": found[name].format,
            "operation": found[name].operation,
            "cases": sum(tally.verdicts[name].values()),
            "seconds": round(tally.seconds[name], 1),
            "verdicts": dict(tally.verdicts[name].most_common()),
        }
        for name in counts
    ]
    if not tally.failures and not any(Path(keep).iterdir()):
        Path(keep).rmdir()
    return {
        "seed": seed,
        "cases": sum(row["cases"] for row in rows),
        "failed": len(tally.failures),
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
        "failures": tally.failures,
    }


def table(report):
    lines = [f"{'format':<52}{'operation':<23}{'cases':>6}  verdicts"]
    for row in report["rows"]:
        verdicts = ", ".join(f"{count} {name}" for name, count in row["verdicts"].items())
        lines.append(f"{row['format']:<52}{row['operation']:<23}{row['cases']:>6}  {verdicts}")
    lines.append(
        f"{report['cases']} cases, {report['failed']} failed, {report['seconds']} s, "
        f"seed {report['seed']}"
    )
    for failure in report["failures"]:
        lines += ["", f"FAILED {failure['subject']} {failure['case']}: {failure['failure']}"]
        lines += [failure.get("traceback", ""), f"again: {failure['replay']}"]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", action="store_true", help=f"one case in {SAMPLE}")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--only", nargs="*", metavar="SUBJECT")
    parser.add_argument("--case", type=int, help="runs this one case of the one subject")
    parser.add_argument("--keep", default="torture-failures", help="for files of failing cases")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.case is not None:
        found, _ = chosen(options)
        replay(found, options.only[0], options.case, options.seed)
        return 0
    report = run(options.sample, options.seed, options.jobs, options.keep, options.only)
    print(json.dumps(report, indent=1) if options.json else table(report))
    return int(report["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
