"""Runs cases in worker processes, each case under a watchdog, and counts what came of them.

Owns the processes. A worker that hangs over a case or dies of it is a failure of that case, and
another one goes on with the next. `python -m tests.torture.runner` is such a worker.
"""

import collections
import contextlib
import faulthandler
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from tests.torture.subjects import catalogue

ROOT = Path(__file__).parents[2]
BATCH = 50
# Long enough for a machine that stands still for minutes; only what hangs takes longer.
LONGEST_CASE_SECONDS = 600
_ADDRESS_SPACE = 16 << 30


def case_rng(seed, name, index):
    return random.Random(f"{seed}/{name}/{index}")


def scratch_folder():
    """In memory if that can be: nothing here is about the disk, and every save is synced."""
    return "/dev/shm" if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK) else None


class Worker:
    """A worker process and the batches it is given."""

    def __init__(self, seed, keep):
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        command = [sys.executable, "-W", "ignore", "-m", "tests.torture.runner"]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [*command, str(seed), str(keep)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def run(self, name, start, stop):
        """Yields a result for each case, as far as the process lives."""
        try:
            print(json.dumps([name, start, stop]), file=self.process.stdin, flush=True)
        except OSError:
            return
        for _ in range(start, stop):
            line = self.process.stdout.readline()
            if not line:
                return
            yield json.loads(line)

    def close(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait()
        self.stderr.seek(0)
        text = self.stderr.read().decode("utf-8", "replace")
        self.stderr.close()
        return text


class Tally:
    """What came of all cases, by subject."""

    def __init__(self):
        self.lock = threading.Lock()
        self.verdicts = collections.defaultdict(collections.Counter)
        self.seconds = collections.Counter()
        self.failures = []

    def add(self, name, result):
        with self.lock:
            self.seconds[name] += result.get("seconds", 0)
            if "failure" in result:
                self.failures.append({"subject": name, **result})
                self.verdicts[name]["FAILED"] += 1
            else:
                self.verdicts[name][result["verdict"]] += 1


def run_cases(counts, seed, keep, jobs, progress=lambda done: None):
    """Runs the cases 0 to N of each subject.

    Args:
        counts: (first case, number behind the last) by subject name.
        seed: Decides all damage, together with the subject's name and the case's number.
        keep: A folder for the files of failing cases.
        jobs: Worker processes.
        progress: Called with the number of cases done.
    """
    batches = collections.deque(
        (name, start, min(stop, start + BATCH))
        for name, (first, stop) in counts.items()
        for start in range(first, stop, BATCH)
    )
    tally, done = Tally(), collections.Counter()

    def work():
        worker = None
        while True:
            try:
                name, start, stop = batches.popleft()
            except IndexError:
                break
            while start < stop:
                worker = worker or Worker(seed, keep)
                for result in worker.run(name, start, stop):
                    tally.add(name, result)
                    start += 1
                    done["all"] += 1
                    progress(done["all"])
                if start < stop:
                    text = worker.close()[-3000:]
                    tally.add(name, {"case": start, "failure": f"hung or died: {text}"})
                    worker, start = None, start + 1
        if worker is not None:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def serve(seed, keep):
    """The worker: reads batches, writes a line for each case."""
    import resource

    faulthandler.enable()
    classes, made = catalogue.all_subjects(), {}
    out = os.fdopen(os.dup(1), "w")  # what Keras prints must not come between
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="torture-", dir=scratch_folder()) as scratch:
        for line in sys.stdin:
            name, start, stop = json.loads(line)
            if not classes[name].needs_keras and "keras" not in sys.modules:
                resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, resource.RLIM_INFINITY))
            else:
                resource.setrlimit(resource.RLIMIT_AS, (-1, resource.RLIM_INFINITY))
            for index in range(start, stop):
                faulthandler.dump_traceback_later(LONGEST_CASE_SECONDS, exit=True)
                if name not in made:
                    made[name] = classes[name](catalogue.fresh(Path(scratch) / name))
                result = run_one(made[name], name, seed, index, keep)
                faulthandler.cancel_dump_traceback_later()
                print(json.dumps(result), file=out, flush=True)


def run_one(subject, name, seed, index, keep):
    begin = time.perf_counter()
    result = {"case": index}
    try:
        result["what"], result["verdict"] = subject.run(case_rng(seed, name, index))
    except BaseException as error:
        result["failure"] = f"{type(error).__name__}: {str(error)[:500]}"
        result["traceback"] = traceback.format_exc()[-3000:]
        _keep(subject, Path(keep) / f"{name}-{index}")
        if isinstance(error, KeyboardInterrupt):
            raise
    result["seconds"] = time.perf_counter() - begin
    return result


def _keep(subject, target):
    import shutil

    with contextlib.suppress(OSError):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(subject.folder, target, symlinks=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
