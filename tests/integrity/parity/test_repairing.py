"""What repair restores, what it refuses, and that it then leaves the model alone."""

import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_modelsec._storage.byte_stream import ByteStream
from keras_modelsec.errors import (
    RevokedModelError,
    SignatureError,
    UnrepairableError,
    UnsafePathError,
    UntrustedKeyError,
)
from keras_modelsec.integrity import repair, sign, verify, write_parity
from keras_modelsec.integrity.parity import parity_file
from keras_modelsec.trust import TrustStore

BLOCK = 4096
GOOD = random.Random(0).randbytes(1_000_003)  # 245 blocks, 3 stripes of 82 with 5 parity blocks
COMPANIONS = ["model.bin.modelsec.json", "model.bin.parity", "model.bin.sig"]


def flipped(data, places):
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 0x10
    return bytes(changed)


def overwritten(data, at, length, seed=1):
    return data[:at] + random.Random(seed).randbytes(length) + data[at + length :]


@pytest.fixture
def model(tmp_path, key):
    path = tmp_path / "model.bin"
    path.write_bytes(GOOD)
    sign(path, key)
    write_parity(path, key)
    return path


def assert_whole(path, public, data=GOOD):
    assert path.read_bytes() == data
    verify(path, public)
    assert sorted(os.listdir(path.parent)) == [path.name, *COMPANIONS]


RESTORABLE = {
    "one bit": flipped(GOOD, [777_777]),
    "fifteen bits in neighbours": flipped(GOOD, range(100_000, 100_000 + 15 * BLOCK, BLOCK)),
    "burst": overwritten(GOOD, 300_000, 50_000),
    "first bytes": overwritten(GOOD, 0, 1000),
    "zeroed": GOOD[:400_000] + bytes(50_000) + GOOD[450_000:],
    "cut short": GOOD[:-55_000],
    "cut at the front": GOOD[50_000:],
    "a byte more at the end": GOOD + b"x",
    "much more at the end": GOOD + GOOD,
    "one byte inserted": GOOD[:500_000] + b"x" + GOOD[500_000:],
    "one byte inserted at the front": b"x" + GOOD,
    "one byte removed": GOOD[:500_000] + GOOD[500_001:],
    "100 kB inserted": GOOD[:5] + random.Random(2).randbytes(100_000) + GOOD[5:],
    "range removed": GOOD[:600_000] + GOOD[640_000:],
    "inserted and removed, same length": GOOD[:10] + b"x" + GOOD[10:900_000] + GOOD[900_001:],
    "ranges swapped": GOOD[700_000:] + GOOD[:200_000] + GOOD[200_000:700_000],
    "all at once": flipped(
        GOOD[700_000:900_000] + b"between" + GOOD[:200_000] + GOOD[200_001:700_000], [5, 400_000]
    )
    + GOOD[900_000:],
}


@pytest.mark.parametrize("damage", RESTORABLE)
def test_exact_signed_bytes_come_back(model, public, damage):
    os.chmod(model, 0o640)
    model.write_bytes(RESTORABLE[damage])
    report = repair(model, public)
    assert_whole(model, public)
    assert report.changed == (".",)
    assert not report.missing
    assert report.damaged_blocks <= report.blocks == 245
    assert model.stat().st_mode & 0o777 == 0o640
    assert repair(model, public).nothing_to_do


HOPELESS = {
    "too long a burst": overwritten(GOOD, 300_000, 80_000),
    "too much cut off": GOOD[:-90_000],
    "sixteen blocks of one stripe": flipped(GOOD, range(0, 48 * BLOCK, 3 * BLOCK)),
    "other bytes": random.Random(3).randbytes(len(GOOD)),
    "empty": b"",
}


@pytest.mark.parametrize("damage", HOPELESS)
def test_what_cannot_be_restored_is_named_and_the_model_left_alone(model, public, damage):
    model.write_bytes(HOPELESS[damage])
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in model.parent.iterdir()}
    with pytest.raises(UnrepairableError, match=r"'\.' bytes \d+ to \d+.*left as it is") as caught:
        repair(model, public)
    error = caught.value
    assert 1 <= error.stripes_lost <= error.stripes == 3
    lost = set()
    for name, start, stop in error.lost:
        assert name == "."
        assert 0 <= start < stop <= len(GOOD)
        lost |= set(range(start // BLOCK, -(-stop // BLOCK)))
    bad = {
        i
        for i in range(245)
        if HOPELESS[damage][i * BLOCK : (i + 1) * BLOCK] != GOOD[i * BLOCK : (i + 1) * BLOCK]
    }
    assert lost <= bad
    assert len(lost) >= 6
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in model.parent.iterdir()}
    assert after == before


HUGE = 40 << 30  # of a sparse file, which takes no room


@pytest.fixture
def reads_little(monkeypatch):
    """Fails at once when a repair reads more than some multiples of the megabyte that is signed."""
    real, left = ByteStream.read_into, [400 << 20]

    def counting(self, view, offset):
        left[0] -= len(view)
        assert left[0] > 0, "more is read than the signed bytes explain"
        real(self, view, offset)

    monkeypatch.setattr(ByteStream, "read_into", counting)
    monkeypatch.setattr(parity_file, "_SEARCHED_BYTES", 16 << 20, raising=False)


def sparse(path, data=b""):
    with open(path, "wb") as file:
        file.write(data)
        file.truncate(HUGE)


def test_model_of_other_length_without_end_is_not_searched(model, public, reads_little):
    sparse(model)
    with pytest.raises(UnrepairableError, match=rf"Not looked through.*'\.' \({HUGE} bytes\)"):
        repair(model, public)
    assert model.stat().st_size == HUGE


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_model_is_restored_whatever_was_put_behind_it(model, public, damage, reads_little):
    sparse(model, damage + GOOD)
    repair(model, public)
    assert_whole(model, public)


def test_added_file_without_end_is_not_searched(folder, public, reads_little):
    good = contents(folder)
    sparse(folder / "added")
    (folder / "weights").rename(folder / "weights.bak")
    (folder / "variables/part-13").unlink()
    assert repair(folder, public).added == ("added", "weights.bak")
    for name in ("added", "weights.bak"):
        (folder / name).unlink()
    assert contents(folder) == good


@pytest.mark.parametrize("share", [0, 16, 1])
def test_parity_file_without_end_is_not_searched(model, public, share, reads_little):
    """Of whose bytes nothing, the first record alone, or all is at its beginning."""
    parity = model.with_name("model.bin.parity")
    good = parity.read_bytes()
    sparse(parity, good[: len(good) // share] if share else b"")
    model.write_bytes(RESTORABLE["burst"])
    if share == 1:
        assert repair(model, public).parity_rewritten
        assert parity.read_bytes() == good
        assert_whole(model, public)
    else:
        with pytest.raises(SignatureError, match=r"none is found|pages are lost"):
            repair(model, public)


def test_parity_file_is_found_behind_what_was_put_before_it(model, public):
    parity = model.with_name("model.bin.parity")
    good = parity.read_bytes()
    parity.write_bytes(bytes(3 << 20) + good)
    model.write_bytes(RESTORABLE["burst"])
    assert repair(model, public).parity_rewritten
    assert parity.read_bytes() == good


def test_nothing_to_do_touches_no_file(model, public):
    before = {path: os.stat(path) for path in model.parent.iterdir()}
    report = repair(model, public)
    assert report.nothing_to_do
    assert "nothing to repair" in str(report)
    assert {path: os.stat(path).st_mtime_ns for path in model.parent.iterdir()} == {
        path: found.st_mtime_ns for path, found in before.items()
    }


def test_damage_in_place_is_mended_in_place(model, public):
    """No copy of a large file is written for a few blocks; links and owner stay."""
    model.write_bytes(RESTORABLE["burst"])
    inode = model.stat().st_ino
    report = repair(model, public)
    assert model.stat().st_ino == inode
    assert report.restored_bytes == report.damaged_blocks * BLOCK


# (kind, place, length): cost in blocks of each is known, and so what must come back.
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "overwrite", "insert", "remove", "swap", "cut"]),
        st.integers(0, 10**6),
        st.integers(1, 20_000),
    ),
    min_size=1,
    max_size=5,
)


def damage(data, edits):
    """Damaged data, and the most blocks that can have been lost by it."""
    cost = 0
    for kind, at, length in edits:
        at %= max(1, len(data))
        if kind == "flip":
            data, cost = flipped(data, [at]) if data else data, cost + 1
        elif kind == "overwrite":
            data, cost = overwritten(data, at, length, seed=at), cost + length // BLOCK + 2
        elif kind == "insert":
            data = data[:at] + random.Random(at).randbytes(length) + data[at:]
            cost += 1
        elif kind == "remove":
            data, cost = data[:at] + data[at + length :], cost + length // BLOCK + 2
        elif kind == "swap":
            middle = at + length
            data = (
                data[:at]
                + data[middle : middle + length]
                + data[at:middle]
                + data[middle + length :]
            )
            cost += 3
        else:
            data, cost = data[:-length], cost + length // BLOCK + 2
    return data, cost + 1  # the last block, if something follows it


@settings(max_examples=30, deadline=None)
@given(edits=EDITS, parity_flips=st.lists(st.integers(0, 10**6), max_size=4))
def test_random_damage_is_restored_exactly_or_refused(key, edits, parity_flips):
    good = GOOD[:300_000]  # 74 blocks, one stripe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        path.write_bytes(good)
        sign(path, key)
        parity = write_parity(path, key, redundancy=0.1).parity  # 8 blocks
        bad, cost = damage(good, edits)
        path.write_bytes(bad)
        places = [place % parity.stat().st_size for place in parity_flips]
        parity.write_bytes(flipped(parity.read_bytes(), places))
        try:
            repair(path, key.verifying_key)
        except UnrepairableError:
            assert path.read_bytes() == bad
            assert cost + len(places) > 8
        except SignatureError:  # the same byte of both copies of a page of digests was hit
            assert path.read_bytes() == bad
            assert len(places) >= 2
        else:
            assert_whole(path, key.verifying_key, good)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 100 * BLOCK, 100 * BLOCK + 1])
def test_files_of_every_size_at_the_edges(tmp_path, key, public, size):
    path = tmp_path / "model.bin"
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    sign(path, key)
    write_parity(path, key)
    for bad in (b"x" + data, data + b"x", flipped(data, [size - 1] if size else []), data[:-1]):
        path.write_bytes(bad)
        report = repair(path, public)
        assert report.nothing_to_do == (bad == data)
        assert_whole(path, public, data)


def test_missing_file_comes_back_where_all_is_parity(model, key, public):
    write_parity(model, key, redundancy=1.0)
    model.unlink()
    assert repair(model, public).missing == (".",)
    assert_whole(model, public)


# folders


@pytest.fixture
def folder(tmp_path, key):
    path = tmp_path / "model.bin"
    for i in range(50):
        place = path / ("variables" if i % 9 else "assets") / f"part-{i:02d}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(random.Random(i).randbytes(2000 * (i % 7)))
    (path / "weights").write_bytes(GOOD)
    sign(path, key)
    write_parity(path, key)
    return path


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def swap(folder, a, b):
    (folder / a).rename(folder / "t")
    (folder / b).rename(folder / a)
    (folder / "t").rename(folder / b)


FOLDER_DAMAGE = {
    "small file missing": lambda f: (f / "variables/part-13").unlink(),
    "empty file missing": lambda f: (f / "variables/part-21").unlink(),
    "subfolder missing": lambda f: (
        [p.unlink() for p in (f / "assets").iterdir()] and (f / "assets").rmdir()
    ),
    "small file empty": lambda f: (f / "variables/part-13").write_bytes(b""),
    "empty file not empty": lambda f: (f / "variables/part-21").write_bytes(b"something"),
    "small file replaced": lambda f: (f / "variables/part-13").write_bytes(b"other"),
    "byte inserted in one file": lambda f: (f / "weights").write_bytes(b"x" + GOOD),
    "two files swapped": lambda f: swap(f, "variables/part-13", "weights"),
    "large file renamed": lambda f: (f / "weights").rename(f / "weights.bak"),
    "flips everywhere": lambda f: [
        p.write_bytes(flipped(p.read_bytes(), [len(p.read_bytes()) // 2]))
        for p in sorted(f.rglob("part-1*"))[:4]
        if p.stat().st_size
    ],
}


@pytest.mark.parametrize("damage_name", FOLDER_DAMAGE)
def test_folder_comes_back(folder, public, damage_name):
    good = contents(folder)
    FOLDER_DAMAGE[damage_name](folder)
    assert contents(folder) != good
    report = repair(folder, public)
    assert not report.nothing_to_do
    for name in report.added:
        (folder / name).unlink()
    assert report.added == (("weights.bak",) if "renamed" in damage_name else ())
    assert contents(folder) == good
    verify(folder, public)
    assert sorted(os.listdir(folder.parent)) == ["model.bin", *COMPANIONS]


def test_added_file_is_reported_and_left_alone(folder, public):
    (folder / "extra").write_bytes(b"mine")
    report = repair(folder, public)
    assert report.added == ("extra",)
    assert report.nothing_to_do
    assert (folder / "extra").read_bytes() == b"mine"


def test_link_in_the_folder_is_refused_and_its_target_left_alone(folder, public, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (folder / "weights").unlink()
    (folder / "weights").symlink_to(outside)
    with pytest.raises(UnsafePathError):
        repair(folder, public)
    assert outside.read_bytes() == b"precious"


@pytest.mark.skipif(os.name != "posix", reason="FIFOs")
def test_links_and_special_files_are_refused(model, public, tmp_path):
    parity = tmp_path / "model.bin.parity"
    parity.rename(tmp_path / "elsewhere")
    parity.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError):
        repair(model, public)
    parity.unlink()
    os.mkfifo(parity)
    with pytest.raises(UnsafePathError):
        repair(model, public)
    model.rename(tmp_path / "real")
    model.symlink_to(tmp_path / "real")
    parity.unlink()
    with pytest.raises(UnsafePathError):
        repair(model, public, parity_path=tmp_path / "elsewhere")


def test_parity_of_a_file_is_refused_for_a_folder(model, public):
    model.unlink()
    model.mkdir()
    with pytest.raises(SignatureError, match=r"parity of a file, with .* is a folder"):
        repair(model, public)


# signature and statement


@pytest.mark.parametrize("state", ["missing", "damaged"])
@pytest.mark.parametrize("names", [COMPANIONS[:1], COMPANIONS[2:], COMPANIONS[::2]])
def test_signature_files_are_put_back(model, public, names, state):
    model.write_bytes(RESTORABLE["burst"])
    for name in names:
        place = model.with_name(name)
        place.unlink() if state == "missing" else place.write_bytes(b"{" + place.read_bytes())
    assert sorted(repair(model, public).signatures) == sorted(names)
    assert_whole(model, public)


def test_signature_that_verifies_is_never_replaced(model, key, public):
    sign(model, key)  # the same bytes, signed again
    before = [model.with_name(name).read_bytes() for name in COMPANIONS]
    model.write_bytes(RESTORABLE["burst"])
    assert not repair(model, public).signatures
    assert [model.with_name(name).read_bytes() for name in COMPANIONS] == before
    assert_whole(model, public)


@pytest.mark.parametrize("kept", [COMPANIONS[:1], COMPANIONS[2:], COMPANIONS[::2]])
@pytest.mark.parametrize("pending", [False, True])
def test_parity_of_an_older_model_never_brings_it_back(model, key, public, kept, pending):
    old = {name: model.with_name(name).read_bytes() for name in COMPANIONS}
    newer = flipped(GOOD, [5])
    model.write_bytes(newer)
    sign(model, key)
    for name in COMPANIONS[::2]:
        place = model.with_name(name)
        if name not in kept:
            place.unlink()
        elif pending:  # SignOnSave was killed between its renames
            place.rename(model.with_name(name + ".next"))
            place.write_bytes(old[name])
    with pytest.raises(SignatureError, match="would bring back another model"):
        repair(model, public)
    assert model.read_bytes() == newer


def test_trust_store_that_revokes_the_model_stops_its_repair(model, public, key, tmp_path):
    import hashlib

    store = TrustStore()
    store.add(public)
    store.revoke(digest=hashlib.sha256(GOOD).hexdigest())
    model.write_bytes(RESTORABLE["burst"])
    with pytest.raises(RevokedModelError):
        repair(model, store)
    assert model.read_bytes() == RESTORABLE["burst"]


def test_parity_signed_by_another_key_is_refused(model, other_key, public):
    for name in COMPANIONS[::2]:
        model.with_name(name).unlink()
    model.write_bytes(b"attacker's")
    write_parity(model, other_key)
    with pytest.raises(UntrustedKeyError):
        repair(model, public)
    assert model.read_bytes() == b"attacker's"


def test_missing_parity_is_named(model, public):
    model.with_name("model.bin.parity").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.bin\.parity.*`write_parity`"):
        repair(model, public)


# disks, users, others


def test_full_disk_leaves_the_model_and_no_litter(model, public):
    resource = pytest.importorskip("resource")
    bad = RESTORABLE["one byte inserted"]
    model.write_bytes(bad)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            repair(model, public)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert model.read_bytes() == bad
    assert sorted(os.listdir(model.parent)) == ["model.bin", *COMPANIONS]
    repair(model, public)
    assert_whole(model, public)


@pytest.mark.parametrize("damage_name", ["burst", "one byte inserted"])
def test_four_repairs_at_once_all_succeed(model, public, damage_name):
    model.write_bytes(RESTORABLE[damage_name])
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: repair(model, public), range(4)))
    assert sorted(report.nothing_to_do for report in reports) == [False, True, True, True]
    assert_whole(model, public)


def test_progress_reaches_the_end(model, public):
    seen = []
    model.write_bytes(RESTORABLE["burst"])
    repair(model, public, progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert all(0 < done <= total == len(GOOD) for done, total in seen)
    assert seen[-1] == (len(GOOD), len(GOOD))


READ_ONLY = """
import _strptime, os, sys  # while the interpreter's files can be read
from pathlib import Path
from keras_modelsec.integrity import repair
model, public = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    repair(model, public)
except PermissionError:
    print("refused")
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_read_only_folder_is_a_permission_error_and_changes_nothing(public):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        model = Path(folder) / "model.bin"
        model.write_bytes(GOOD)
        key = _key_for(folder)
        sign(model, key)
        write_parity(model, key)
        bad = RESTORABLE["one byte inserted"]
        model.write_bytes(bad)
        for place in Path(folder).iterdir():
            os.chmod(place, 0o444)
        os.chmod(folder, 0o555)
        arguments = [str(model), str(Path(folder) / "public.pem")]
        process = subprocess.run(
            [sys.executable, "-c", READ_ONLY, *arguments],
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert process.stdout == "refused\n", process.stderr
        assert model.read_bytes() == bad


def _key_for(folder):
    from cryptography.hazmat.primitives.asymmetric import ec

    from keras_modelsec.trust import SigningKey

    key = SigningKey(ec.generate_private_key(ec.SECP256R1()))
    (Path(folder) / "public.pem").write_bytes(key.verifying_key.pem)
    return key


def test_table_of_digests_survives_damage_to_the_same_page_of_both_copies(model, public):
    parity = model.with_name("model.bin.parity")
    good = parity.read_bytes()
    page = good.rindex(good[4096:4300])
    assert page > 4096
    parity.write_bytes(flipped(good, [4096 + 3, 4096 + 99, page + 50, page + 4000]))
    model.write_bytes(RESTORABLE["burst"])
    report = repair(model, public)
    assert (report.damaged_parity, report.parity_rewritten) == (2, True)
    assert parity.read_bytes() == good
    assert_whole(model, public)


def test_missing_file_of_zeros_beside_lost_blocks_comes_back(tmp_path, key, public):
    """Its blocks look good where nothing is read; they must not be what was read before."""
    path = tmp_path / "model.bin"
    path.mkdir()
    (path / "a").write_bytes(GOOD)
    (path / "b").write_bytes(bytes(20 * BLOCK))
    (path / "c").write_bytes(GOOD[:300_000])
    good = contents(path)
    sign(path, key)
    write_parity(path, key, redundancy=0.1)
    (path / "b").unlink()
    (path / "a").write_bytes(flipped(GOOD, range(0, 400_000, 40_000)))
    repair(path, public)
    assert contents(path) == good
    verify(path, public)


@pytest.mark.parametrize("damage_name", ["burst", "one byte inserted"])
def test_model_saved_anew_meanwhile_is_never_overwritten(model, public, damage_name):
    model.write_bytes(RESTORABLE[damage_name])
    newer = flipped(RESTORABLE[damage_name], [GOOD.index(GOOD[900_000:900_020])])

    def save_anew(done, total):
        model.with_name("new").write_bytes(newer)
        os.replace(model.with_name("new"), model)

    with pytest.raises(SignatureError, match="must not change while it is repaired"):
        repair(model, public, progress=save_anew)
    assert model.read_bytes() == newer
    assert sorted(os.listdir(model.parent)) == ["model.bin", *COMPANIONS]
