"""Runs the fault suite and prints its counts.

    python -m tests.torture             # everything; `make torture`
    python -m tests.torture --sample    # some two minutes; `make torture-sample`, in CI
    python -m tests.torture --json      # the same as one JSON object

Exits with 1 if anything failed. Fuzzing is apart (`make fuzz`): it has no end.
"""

import argparse
import contextlib
import json
import sys
import time

from tests.torture import disk, kills, random_damage
from tests.torture.repair_matrix import repair_matrix

PARTS = ("damage", "kills", "disk", "repair")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--sample", action="store_true", help="some two minutes of it")
    parser.add_argument("--seed", type=int, default=random_damage.SEED)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"parts are {', '.join(PARTS)}; received {', '.join(unknown)}")
    sample, seed, jobs = options.sample, options.seed, options.jobs
    runs = {
        "damage": ("Random damage", lambda: random_damage.run(sample, seed, jobs), random_damage),
        "kills": ("kill -9", lambda: kills.run(sample, seed, jobs), kills),
        "disk": ("Full disks, read-only folders, two writers", lambda: disk.run(sample), disk),
        "repair": ("Repair, by kind and amount of damage", lambda: repair_matrix(sample), None),
    }
    start, reports = time.perf_counter(), {}
    for part in options.parts or PARTS:
        title, run, module = runs[part]
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the counts alone
            reports[part] = run()
        if not options.json:
            text = module.table(reports[part]) if module else reports[part]["table"]
            print(f"== {title}\n{text}\n", flush=True)
    failed = sum(report["failed"] for report in reports.values())
    if options.json:
        print(json.dumps({"failed": failed, **reports}, indent=1))
    else:
        cases = sum(report.get("cases", report.get("kills", 0)) for report in reports.values())
        print(f"{cases:,} cases, {failed} failed, {time.perf_counter() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
