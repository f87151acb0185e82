"""The repair matrix of benchmarks/repair_matrix.py, run beside it and counted.

Beyond the tests: files of megabytes, and for each kind of damage amounts up to what is too much;
they hold chosen damages, and drawn ones of small files.
"""

import json
import subprocess
import sys
import time

from tests.torture.runner import ROOT

SCRIPT = ROOT / "benchmarks" / "repair_matrix.py"


def repair_matrix(sample=False):
    """Kind of damage by amount; a trial neither restored nor refused is a failure."""
    start = time.perf_counter()
    size = ["--megabytes", "0.5", "--trials", "1"] if sample else ["--megabytes", "4"]
    done = subprocess.run([sys.executable, str(SCRIPT), *size], capture_output=True, text=True)
    if done.returncode:
        return {"cases": 0, "failed": 1, "table": f"FAILED\n{done.stderr[-3000:]}"}
    found = json.loads(done.stdout)
    rows = found["rows"]
    failed = sum(row["wrong"] for row in rows)
    report = {
        "cases": found["trials"] * len(rows),
        "failed": failed,
        "seconds": round(time.perf_counter() - start, 1),
        **found,
    }
    return {**report, "table": table(report)}


def table(report):
    """Rows of kinds, and by amount the share of trials that came back to the signed bytes."""
    kinds = dict.fromkeys(row["kind"] for row in report["rows"])
    width = max(map(len, kinds)) + 2
    lines = [f"{'damage':<{width}}restored, by amount"]
    for kind in kinds:
        cells = [
            f"{row['amount']:g}: {row['restored']:.0%}"
            for row in report["rows"]
            if row["kind"] == kind
        ]
        lines.append(f"{kind:<{width}}{'  '.join(cells)}")
    lines.append(
        f"{report['cases']} trials, {report['failed']} neither restored nor refused, "
        f"{report['seconds']} s"
    )
    return "\n".join(lines)
