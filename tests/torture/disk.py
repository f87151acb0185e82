"""Disks that are full, folders that are read-only, and two writers at once, for all that writes.

    python -m tests.torture.disk [--sample] [--json]

Each operation is met by: a full disk (a limit on the size of files, which fails in the middle of a
write; and, where this process may mount one, a file system of some KiB that is really full), a
folder that cannot be written to (as a user who is not root), and another process doing the same.
It must fail with an OSError (or do its work), leave the old files whole, and leave nothing behind.
"""

import argparse
import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from keras_modelsec.errors import ConcurrentChangeError
from tests.torture import operations, runner

NOBODY = 65534


def names(folder):
    """All names below a folder; the lock of a trust store stays by design."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in found if not name.endswith(".lock")}


def attempt(operation, folder):
    """Runs it, and returns the verdict; raises if what must hold does not."""
    before = names(folder)
    try:
        operation.run(folder)
    except operation.errors as error:
        verdict = f"refused: {type(error).__name__}"
    else:
        verdict = "done"
    litter = names(folder) - before
    if verdict != "done" and litter:
        raise AssertionError(f"litter after {verdict}: {sorted(litter)}")
    return verdict


@contextlib.contextmanager
def file_size_limit(limit):
    """Writes beyond `limit` bytes of a file fail with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def filled(folder, free):
    """The file system of `folder` has `free` bytes left."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with open(ballast, "r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - free))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def small_disk():
    """A tmpfs of 4 MiB, or None where this process may not mount one."""
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True) if shutil.which("mount") else None
    mounted = done is not None and done.returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def limited(kind, sample):
    """Each operation under limits from nothing to more than it needs.

    Beyond the tests: every operation at limits of 12,500 bytes apart; they set one for some
    operations.
    """
    limits = [0, 100, 5_000, 100_000, 290_000] if sample else range(0, 420_000, 12_500)
    for limit in limits:
        with tempfile.TemporaryDirectory(dir=runner.scratch_folder()) as scratch:
            folder, operation = Path(scratch), kind()
            operation.prepare(folder)
            with file_size_limit(limit):
                verdict = attempt(operation, folder)
            operation.check(folder)
            if verdict == "done":
                operation.check_done(folder)
            yield verdict


def really_full(kind, sample):
    """Each operation on a disk with less and less room.

    Beyond the tests: a file system without room, where also names and folders cannot be made;
    they limit the size of files, or raise the error themselves.
    """
    with small_disk() as disk:
        if disk is None:
            return
        for free in [0, 50_000, 200_000] if sample else range(0, 800_000, 32_768):
            folder = disk / "work"
            folder.mkdir()
            operation = kind()
            operation.prepare(folder)
            with filled(disk, free):
                verdict = attempt(operation, folder)
            operation.check(folder)
            if verdict == "done":
                operation.check_done(folder)
            yield verdict
            shutil.rmtree(folder)


def read_only(kind, sample):
    """Each operation in a folder that may only be read, in a process that is not root.

    Beyond the tests: every operation, and that no file's time has changed; they hold it for
    repair, and for SignOnSave before it trains.
    """
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)
        folder, operation = Path(scratch) / "work", kind()
        folder.mkdir()
        operation.prepare(folder)
        before = {name: (folder / name).lstat().st_mtime_ns for name in names(folder)}
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        verdict = in_child(lambda: attempt(operation, folder), as_nobody=os.getuid() == 0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        if verdict == "done" or before != {
            name: (folder / name).lstat().st_mtime_ns for name in names(folder)
        }:
            raise AssertionError(f"a read-only folder was written to: {verdict}")
        operation.check(folder)
        yield verdict


def in_child(work, *, as_nobody=False):
    """What `work` returns, or its error, from a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if as_nobody:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            result = {"result": work()}
        except BaseException:
            result = {"error": traceback.format_exc()}
        os.write(write, json.dumps(result).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        result = json.loads(pipe.read())
    os.waitpid(child, 0)
    if "error" in result:
        raise AssertionError(result["error"])
    return result["result"]


def two_writers(kind, sample):
    """Two processes that do the same again and again; at the end one whole set is there.

    Beyond the tests: every operation that replaces; they hold this for saving, repair and trust
    stores.
    """
    for _ in range(1 if sample else 5):
        with tempfile.TemporaryDirectory(dir=runner.scratch_folder()) as scratch:
            folder, operation = Path(scratch), kind()
            operation.prepare(folder)
            before, children = names(folder), []
            stop = time.monotonic() + (0.5 if sample else 1.5)
            for _ in range(2):
                child = os.fork()
                if child == 0:
                    os._exit(_write_on(operation, folder, stop))
                children.append(child)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            if any(codes):
                raise AssertionError(f"a writer failed: {(folder / 'error').read_text()}")
            operation.check(folder)
            found = names(folder) - before
            if any(".modelsec" in name.replace(".modelsec.json", "") for name in found):
                raise AssertionError(f"litter: {sorted(found)}")
            yield "one whole set"


def _write_on(operation, folder, stop):
    try:
        while time.monotonic() < stop:
            try:
                operation.run(folder)
            except (ConcurrentChangeError, FileExistsError):
                pass
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
    except BaseException:
        (folder / "error").write_text(traceback.format_exc())
        return 1
    return 0


FAULTS = {
    "file size limit": limited,
    "full file system": really_full,
    "read-only folder": read_only,
    "two writers": two_writers,
}


def run(sample=False):
    start, rows = time.perf_counter(), []
    for name, fault in FAULTS.items():
        for kind in operations.OPERATIONS:
            if fault is two_writers and kind in operations.ONE_WRITER:
                continue
            row = {"fault": name, "operation": kind.__name__, "verdicts": {}, "failure": None}
            try:
                for verdict in fault(kind, sample):
                    row["verdicts"][verdict] = row["verdicts"].get(verdict, 0) + 1
            except Exception:
                row["failure"] = traceback.format_exc()[-2500:]
            row["cases"] = sum(row["verdicts"].values()) + bool(row["failure"])
            rows.append(row)
    return {
        "cases": sum(row["cases"] for row in rows),
        "failed": sum(bool(row["failure"]) for row in rows),
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }


def table(report):
    lines = [f"{'fault':<20}{'operation':<20}{'cases':>6}  verdicts"]
    for row in report["rows"]:
        verdicts = ", ".join(f"{count} {name}" for name, count in row["verdicts"].items())
        verdicts = "FAILED" if row["failure"] else verdicts or "not possible here"
        lines.append(f"{row['fault']:<20}{row['operation']:<20}{row['cases']:>6}  {verdicts}")
    lines.append(f"{report['cases']} cases, {report['failed']} failed, {report['seconds']} s")
    lines += [
        f"\nFAILED {row['fault']}, {row['operation']}:\n{row['failure']}"
        for row in report["rows"]
        if row["failure"]
    ]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report = run(options.sample)
    print(json.dumps(report, indent=1) if options.json else table(report))
    return int(report["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
