"""kill -9 at every step of `repair` and `write_parity` that touches the disk."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork and kill -9")

# One process that forks: each child works on the same damaged model and is killed one step later
# than the child before. Steps are system calls and, for writes, the middle of each.
SCRIPT = """
import json, os, random, shutil, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric import ec
from keras_modelsec._storage.staging import staging_folder
from keras_modelsec.integrity import repair, sign, verify, write_parity
from keras_modelsec.trust import SigningKey
from keras_modelsec.integrity.parity import repaired_files

scenario, root = sys.argv[1], Path(sys.argv[2])
KEY = SigningKey(ec.generate_private_key(ec.SECP256R1()))
PUBLIC = KEY.verifying_key
live, start = root / "live", root / "start"
model = live / "model"
rng = random.Random(0)
A, B, C = (rng.randbytes(n) for n in (90_000, 50_000, 5_000))

def contents():
    return {p.relative_to(live).as_posix(): p.read_bytes() for p in live.rglob("*") if p.is_file()}

def flip(path, step):
    data = bytearray(path.read_bytes())
    for place in range(7, len(data), step):
        data[place] ^= 1
    path.write_bytes(data)

live.mkdir()
if scenario == "files swapped":
    model.mkdir()
    for name, data in (("a", A), ("b", B), ("c", C)):
        (model / name).write_bytes(data)
else:
    model.write_bytes(A)
sign(model, KEY)
parity = write_parity(model, KEY, redundancy=0.3).parity
good = contents()
if scenario == "in place":
    flip(model, 40_000)
    flip(parity, 15_000)
    (live / "model.sig").unlink()
elif scenario == "byte inserted":
    model.write_bytes(A[:10_000] + b"x" + A[10_000:])
elif scenario == "files swapped":
    (model / "a").write_bytes(B)
    (model / "b").write_bytes(A)
    (model / "c").unlink()
shutil.copytree(live, start)

def act():
    if scenario == "protect":
        write_parity(model, KEY, redundancy=0.4)
    else:
        repair(model, PUBLIC)

def killing(owner, name, at):
    function = getattr(owner, name)
    def step(*args, **kwargs):
        at[0] -= 1
        if at[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(owner, name, step)

def halving(at):
    write = repaired_files._write_at
    def step(path, offset, data):
        at[0] -= 1
        if at[0] == 0:
            write(path, offset, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, offset, data)
    repaired_files._write_at = step

def killed(crash_at):
    child = os.fork()
    if child == 0:
        at = [crash_at]
        for name in ("replace", "fsync", "unlink", "rmdir", "mkdir", "chmod", "fchmod"):
            killing(os, name, at)
        halving(at)
        try:
            act()
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0

def check():
    finish()
    with staging_folder(live):  # as any next writer does
        pass
    if scenario == "protect":
        assert sorted(os.listdir(live)) == sorted(os.listdir(start)), os.listdir(live)
    else:
        assert contents() == good, sorted(contents())

def finish():
    if scenario == "protect":
        verify(model, PUBLIC)
        flip(model, 40_000)
        repair(model, PUBLIC)
        assert model.read_bytes() == A
        verify(model, PUBLIC)
    else:
        repair(model, PUBLIC)

def fresh():
    shutil.rmtree(live)
    shutil.copytree(start, live)

kills = 0
for crash_at in range(1, 1000):
    fresh()
    if not killed(crash_at):
        break
    kills += 1
    check()
fresh()
again = 0
while killed(rng.randrange(1, 2 * crash_at)):  # again and again on what the last one left
    again += 1
check()
print(json.dumps({"kills": kills, "again": again}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "least"),
    [("in place", 15), ("byte inserted", 25), ("files swapped", 45), ("protect", 10)],
)
def test_kill_at_every_step_leaves_what_the_next_call_completes(tmp_path, scenario, least):
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, scenario, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["kills"] >= least
