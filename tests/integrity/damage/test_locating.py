"""Damage of every kind, and what the report names: all that was changed, and nothing else."""

import dataclasses
import json
import shutil
import zipfile
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_modelsec as ms
from keras_modelsec._signing.keys import SigningKey
from keras_modelsec._signing.trust import load_trust
from keras_modelsec.errors import (
    RolledBackError,
    SignatureError,
    TamperedModelError,
    UnsafePathError,
    UntrustedKeyError,
)
from keras_modelsec.integrity.statements.model_statement import (
    read_statement,
    statement_path_of,
)
from keras_modelsec.trust import TrustStore

KERNEL, BIAS, GAMMA, LAST, LAST_BIAS = (
    "layers/dense/vars/0",
    "layers/dense/vars/1",
    "layers/batch_normalization/vars/0",
    "layers/dense_1/vars/0",
    "layers/dense_1/vars/1",
)


def build(units=300):
    """Tensors on both sides of 16 KiB, some of several leaves, none with a constant value."""
    model = keras.Sequential(
        [
            keras.Input((50,)),
            keras.layers.Dense(1500),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(units),
        ]
    )
    generator = np.random.default_rng(1)
    model.set_weights([generator.normal(size=w.shape) for w in model.get_weights()])
    return model


def statement_of(path, key):
    return read_statement(statement_path_of(path), load_trust(key.verifying_key))


@pytest.fixture(scope="module")
def original(tmp_path_factory, key):
    path = tmp_path_factory.mktemp("signed") / "m.keras"
    build().save(path)
    ms.sign(path, key)
    said = statement_of(path, key)
    tensors = {t.path: t for t in said.tensors}
    return SimpleNamespace(path=path, data=path.read_bytes(), said=said, tensors=tensors)


@pytest.fixture
def signed(tmp_path, original):
    for place in original.path.parent.iterdir():
        shutil.copy(place, tmp_path)
    return tmp_path / "m.keras"


def flip(path, offset, mask=0x80):
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def sig_of(path):
    return path.with_name(path.name + ".sig")


def named(report):
    return {tensor.path for tensor in report.tensors}


def test_unchanged_model_is_clean_and_has_no_truth_value(signed, public):
    report = ms.locate_tampering(signed, public)
    assert report.is_clean
    assert (report.model, report.version) == ("m.keras", 1)
    assert "nothing changed" in str(report)
    assert report.to_dict()["is_clean"] is True
    with pytest.raises(TypeError, match="is_clean"):
        bool(report)


def test_one_flipped_bit_names_its_tensor_and_chunk_and_nothing_else(signed, public, original):
    kernel = original.tensors[KERNEL]
    flip(signed, kernel.offset + 4 * 7 + 3)
    report = ms.locate_tampering(signed, public)
    (damage,), (file,) = report.tensors, report.files
    (chunk,) = file.chunks
    assert (damage.path, damage.kind, damage.changes) == (KERNEL, "changed", None)
    assert (damage.shape, damage.dtype, damage.offset) == ((50, 1500), "float32", kernel.offset)
    assert (chunk.offset, chunk.length, chunk.tensors) == (kernel.offset, 1 << 18, (KERNEL,))
    assert file.changed_parts == file.suspected_parts == file.shifts == file.moved_tensors == ()
    assert f"'{KERNEL}' (float32[50, 1500])" in str(report)


def test_small_tensor_is_named_without_its_neighbours_in_the_same_leaf(signed, public, original):
    small = [t for t in original.said.tensors if t.nbytes < 16 << 10]
    assert len(small) >= 5
    for tensor in small:
        flip(signed, tensor.offset + tensor.nbytes - 1)
        assert named(ms.locate_tampering(signed, public)) == {tensor.path}
        flip(signed, tensor.offset + tensor.nbytes - 1)


@pytest.mark.parametrize("as_model", [False, True])
def test_reference_says_how_many_values_changed_and_by_how_much(signed, original, public, as_model):
    tensor = original.tensors[BIAS]
    good = np.frombuffer(original.data, "<f4", 1500, tensor.offset)
    changed = good.copy()
    changed[[3, 8]] += (0.5, 2.0)
    data = bytearray(original.data)
    data[tensor.offset : tensor.offset + tensor.nbytes] = changed.tobytes()
    signed.write_bytes(data)
    reference = build() if as_model else original.path
    report = ms.locate_tampering(signed, public, reference=reference)
    ((path, changes),) = [(t.path, t.changes) for t in report.tensors]
    difference = changed.astype("float64") - good
    assert (path, changes.changed, changes.values) == (BIAS, 2, 1500)
    assert changes.max_abs == np.abs(difference).max()
    assert changes.l2 == pytest.approx(np.linalg.norm(difference), rel=1e-12)
    relative = np.linalg.norm(difference) / np.linalg.norm(good.astype("float64"))
    assert changes.relative == pytest.approx(relative, rel=1e-12)
    assert "2 of 1500 values, max abs 2" in str(report)


def test_report_with_infinite_values_is_strict_json(signed, original, public):
    tensor = original.tensors[BIAS]
    data = bytearray(original.data)
    data[tensor.offset : tensor.offset + 8] = np.array([np.inf, np.nan], "<f4").tobytes()
    signed.write_bytes(data)
    report = ms.locate_tampering(signed, public, reference=original.path)
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["tensors"][0]["changes"]["non_finite"] == 2


def test_reference_that_is_not_the_signed_bytes_is_refused(signed, original, tmp_path, public):
    bad = tmp_path / "bad.keras"
    shutil.copy(original.path, bad)
    for path in (signed, bad):
        flip(path, original.tensors[KERNEL].offset)
    with pytest.raises(SignatureError, match="good copy"):
        ms.locate_tampering(signed, public, reference=bad)
    with pytest.raises(SignatureError, match="good copy"):
        ms.locate_tampering(signed, public, reference=signed)


def test_reference_model_with_other_weights_gives_no_figures(signed, original, public):
    model = build()
    model.layers[0].kernel.assign(model.layers[0].kernel * 2)
    flip(signed, original.tensors[KERNEL].offset)
    flip(signed, original.tensors[GAMMA].offset)
    report = ms.locate_tampering(signed, public, reference=model)
    changes = {t.path: t.changes for t in report.tensors}
    assert changes[KERNEL] is None
    assert changes[GAMMA].changed == 1


def test_configuration_is_named_by_its_check_sum_and_exactly_with_a_reference(
    signed, original, public
):
    flip(signed, original.data.index(b'"linear"') + 2, 0x01)
    (file,) = ms.locate_tampering(signed, public).files
    assert file.changed_parts == ("config.json",)
    assert "metadata.json" in file.suspected_parts
    report = ms.locate_tampering(signed, public, reference=original.path)
    assert (named(report), report.files[0].changed_parts) == (set(), ("config.json",))
    assert report.files[0].suspected_parts == ()


def test_headers_are_told_from_tensors(signed, original, public):
    for offset, part in (
        (original.data.index(b"\x89HDF") + 9, "HDF5 structure in model.weights.h5"),
        (len(original.data) - 3, "ZIP headers"),
    ):
        flip(signed, offset)
        report = ms.locate_tampering(signed, public, reference=original.path)
        assert (named(report), report.files[0].changed_parts) == (set(), (part,))
        flip(signed, offset)


def test_destroyed_structure_still_names_the_changed_tensor_alone(signed, public, original):
    data = bytearray(original.data)
    start = data.index(b"\x89HDF")
    data[: start + 512] = bytes(start + 512)
    data[-200:] = bytes(200)
    data[original.tensors[LAST].offset] ^= 1
    signed.write_bytes(data)
    report = ms.locate_tampering(signed, public)
    assert named(report) == {LAST}
    assert "cannot be told apart" in report.files[0].note


def test_cut_file_names_what_is_cut_off(signed, public, original):
    end = original.tensors[LAST].offset + 300_000
    signed.write_bytes(original.data[:end])
    report = ms.locate_tampering(signed, public)
    lost = {t.path for t in original.said.tensors if t.offset + t.nbytes > end}
    assert named(report) == lost
    assert "300000 of 1800000 bytes" in str(report)
    (shift,) = report.files[0].shifts
    assert (shift.count, shift.before) == (end - len(original.data), len(original.data))
    signed.write_bytes(b"")
    assert named(ms.locate_tampering(signed, public)) == set(original.tensors)


def test_appended_bytes_change_no_tensor(signed, public, original):
    signed.write_bytes(original.data + b"more")
    report = ms.locate_tampering(signed, public)
    assert (named(report), report.is_clean) == (set(), False)
    (shift,), size = report.files[0].shifts, len(original.data)
    assert (shift.after, shift.before, shift.count) == (size, size, 4)
    assert report.files[0].chunks == ()


@pytest.mark.parametrize("path", [KERNEL, GAMMA, LAST])
@pytest.mark.parametrize("count", [3, -5])
def test_inserted_and_removed_bytes_name_the_tensor_they_are_in_and_the_rest_moved(
    signed, public, original, path, count
):
    tensor, data = original.tensors[path], original.data
    at = tensor.offset + 1000
    middle = b"xyz" if count > 0 else b""
    signed.write_bytes(data[:at] + middle + data[at + max(0, -count) :])
    report = ms.locate_tampering(signed, public)
    (file,) = report.files
    assert named(report) == {path}
    behind = {t.path for t in original.said.tensors if t.offset > tensor.offset}
    assert set(file.moved_tensors) == behind
    (shift,) = file.shifts
    assert shift.count == count
    assert shift.after <= at <= shift.before


def test_bytes_inserted_and_as_many_removed_elsewhere_are_found_by_searching(
    signed, public, original
):
    data = original.data
    start, end = original.tensors[LAST].offset - 40, original.tensors[LAST_BIAS].offset - 100
    signed.write_bytes(data[:start] + b"1234567" + data[start:end] + data[end + 7 :])
    report = ms.locate_tampering(signed, public)
    assert LAST in report.files[0].moved_tensors
    assert KERNEL not in named(report) | set(report.files[0].moved_tensors)
    assert [shift.count for shift in report.files[0].shifts] == [7, -7]


def test_flipped_zeros_are_not_taken_for_moved_zeros(tmp_path, key, public):
    """A leaf of zeros is found wherever there are zeros."""
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(800)])
    model.set_weights([np.zeros((1000, 800)), np.zeros(800)])
    path = tmp_path / "zeros.weights.h5"
    model.save_weights(path)
    ms.sign(path, key)
    kernel = next(t for t in statement_of(path, key).tensors if t.nbytes == 3_200_000)
    good = path.read_bytes()
    for tail in (b"", b"\0\0\0"):
        for leaves in ([0], [0, 1], [2, 3, 4, 5, 6]):
            data = bytearray(good + tail)
            for leaf in leaves:
                data[kernel.offset + (leaf << 18)] = 1
            path.write_bytes(data)
            report = ms.locate_tampering(path, public)
            assert named(report) == {kernel.path}
            assert len(report.files[0].chunks) == len(leaves)


PLACE = st.floats(0, 1, exclude_max=True)


@st.composite
def damages(draw):
    """Kind of damage, where as a share of the file, how many bytes, and the bytes."""
    kind = draw(st.sampled_from(["flip", "flip", "burst", "zeros", "insert", "remove", "cut"]))
    length = draw(st.sampled_from([1, 2, 7, 40, 511, 4096, 300_000]))
    return kind, draw(PLACE), length, draw(st.integers(0, 2**32 - 1))


def apply(data, damage):
    kind, share, length, seed = damage
    at = int(share * len(data))
    noise = np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()
    if kind == "flip":
        flipped = bytes([data[at] ^ (seed % 255 + 1)])
        return data[:at] + flipped + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "insert":
        return data[:at] + noise + data[at:]
    if kind == "remove":
        return data[:at] + data[at + length :]
    over = noise if kind == "burst" else bytes(length)
    return (data[:at] + over + data[at + length :])[: len(data)]


KEEPS_LENGTH = ("flip", "burst", "zeros")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(all_of_them=st.lists(damages(), min_size=1, max_size=4), small=st.booleans(), data=st.data())
def test_random_damage_names_every_damaged_tensor_and_no_innocent_one(
    signed, original, public, all_of_them, small, data
):
    """At most one of the damages moves bytes; then all before or behind it has one shift."""
    chosen = [d for d in all_of_them if d[0] in KEEPS_LENGTH]
    moving = [d for d in all_of_them if d[0] not in KEEPS_LENGTH][:1]
    bad = original.data
    if small:  # where leaves are shared
        tensors = [t for t in original.said.tensors if t.nbytes < 16 << 10]
        tensor = data.draw(st.sampled_from(tensors))
        share = (tensor.offset + data.draw(st.integers(0, tensor.nbytes - 1))) / len(bad)
        bad = apply(bad, ("flip", share, 1, 7))
    for damage in chosen + moving:
        bad = apply(bad, damage) if bad else bad
    signed.write_bytes(bad)
    report = ms.locate_tampering(signed, public)
    growth = len(bad) - len(original.data)
    expected = set()
    for tensor in original.said.tensors:
        good = original.data[tensor.offset : tensor.offset + tensor.nbytes]
        starts = [tensor.offset + s for s in {0, growth} if tensor.offset + s >= 0]
        if not any(bad[start : start + tensor.nbytes] == good for start in starts):
            expected.add(tensor.path)
    assert named(report) == expected
    assert report.is_clean == (bad == original.data)
    json.dumps(report.to_dict(), allow_nan=False)
    assert str(report)
    if not growth:
        pair = [np.frombuffer(each, np.uint8) for each in (bad, original.data)]
        changed = np.flatnonzero(pair[0] != pair[1])
        covered = np.zeros(len(changed), bool)
        for chunk in report.files[0].chunks if report.files else ():
            inside = (chunk.offset <= changed) & (changed < chunk.offset + chunk.length)
            assert inside.any()
            covered |= inside
        assert covered.all()


@pytest.fixture
def folder(tmp_path, key):
    path = tmp_path / "models"
    (path / "sub").mkdir(parents=True)
    build(units=40).save_weights(path / "sub" / "a.weights.h5")
    shutil.copy(path / "sub" / "a.weights.h5", path / "e.weights.h5")
    for name in ("b.bin", "c.bin", "d.bin"):
        (path / name).write_bytes(name.encode() * 100)
    ms.sign(path, key)
    return path


def test_folder_names_files_and_tensors_with_their_files(folder, public):
    assert ms.locate_tampering(folder, public).is_clean
    place = folder / "sub" / "a.weights.h5"
    flip(place, place.stat().st_size // 2)
    (folder / "b.bin").write_bytes(b"other")
    (folder / "c.bin").unlink()
    (folder / "e.weights.h5").unlink()
    (folder / "new.bin").write_bytes(b"")
    report = ms.locate_tampering(folder, public)
    assert [f.name for f in report.files] == ["b.bin", "sub/a.weights.h5"]
    assert (report.added, report.missing) == (("new.bin",), ("c.bin", "e.weights.h5"))
    kinds = {(t.file, t.kind) for t in report.tensors}
    assert kinds == {("sub/a.weights.h5", "changed"), ("e.weights.h5", "missing")}
    assert len([t for t in report.tensors if t.kind == "changed"]) == 1
    assert "'sub/a.weights.h5'" in str(report)


def test_folder_with_a_link_is_refused(folder, public):
    (folder / "b.bin").unlink()
    (folder / "b.bin").symlink_to(folder / "c.bin")
    with pytest.raises(UnsafePathError):
        ms.locate_tampering(folder, public)


def test_openssf_signature_alone_names_files_and_says_so(
    signed, key, public, sign_openssf, original
):
    sign_openssf(signed, key)
    assert ms.locate_tampering(signed, public).is_clean
    flip(signed, original.tensors[KERNEL].offset)
    report = ms.locate_tampering(signed, public)
    assert not report.names_tensors
    assert [f.name for f in report.files] == ["."]
    assert "files alone can be named" in str(report)


def test_live_model_is_compared_with_the_signed_digests(signed, public):
    model = keras.models.load_model(signed)
    assert ms.locate_tampering(model, public, reference=signed).is_clean
    kernel = model.layers[0].kernel
    value = keras.ops.convert_to_numpy(kernel).copy()
    value[1, 2] += 1e-6
    kernel.assign(value)
    report = ms.locate_tampering(model, public, reference=signed)
    assert named(report) == {KERNEL}
    assert report.tensors[0].changes.changed == 1
    flip(signed, 50_000)  # the file is no longer good: the digests still are, values are not
    report = ms.locate_tampering(model, public, reference=signed)
    assert named(report) == {KERNEL}
    assert report.tensors[0].changes is None


def test_live_model_of_another_architecture(signed, public):
    report = ms.locate_tampering(build(units=41), public, reference=signed)
    kinds = {t.path: (t.kind, t.found) for t in report.tensors}
    assert kinds[LAST] == ("changed", "float32[1500, 41]")
    fewer = keras.Sequential(build().layers[:1])
    assert {t.kind for t in ms.locate_tampering(fewer, public, reference=signed).tensors} == {
        "missing"
    }
    more = keras.Sequential([keras.Input((50,)), *build().layers, keras.layers.PReLU()])
    report = ms.locate_tampering(more, public, reference=signed)
    assert [(t.kind, t.path) for t in report.tensors] == [("added", "layers/p_re_lu/vars/0")]


def test_forged_and_foreign_statements_are_not_believed(signed, other_key, public):
    with pytest.raises(UntrustedKeyError):
        ms.locate_tampering(signed, other_key.verifying_key)
    place = statement_path_of(signed)
    place.write_bytes(place.read_bytes().replace(b'"sig":"', b'"sig":"AA', 1))
    with pytest.raises(SignatureError):
        ms.locate_tampering(signed, public)


def test_statement_on_other_bytes_than_the_signature_is_not_believed(signed, key, public):
    signature = sig_of(signed).read_bytes()
    flip(signed, 50_000)
    ms.sign(signed, key)
    sig_of(signed).write_bytes(signature)
    with pytest.raises(SignatureError, match="same bytes"):
        ms.locate_tampering(signed, public)


def test_rules_of_a_trust_store_hold(signed, key):
    store = TrustStore()
    store.add(key.verifying_key)
    store.set_lowest_version("m.keras", 1)
    assert ms.locate_tampering(signed, store).is_clean
    store.set_lowest_version("m.keras", 2)
    with pytest.raises(RolledBackError):
        ms.locate_tampering(signed, store)


def test_pending_signature_of_a_killed_writer_counts(signed, key, public, original):
    """The model is new, its signature still has the name it is renamed from last."""
    old = {place: place.read_bytes() for place in (statement_path_of(signed), sig_of(signed))}
    model = build()
    model.layers[0].kernel.assign(model.layers[0].kernel * 2)
    model.save(signed)
    ms.sign(signed, key)
    for place, data in old.items():
        place.rename(place.with_name(place.name + ".next"))
        place.write_bytes(data)
    assert ms.locate_tampering(signed, public).is_clean
    flip(signed, original.tensors[GAMMA].offset)
    report = ms.locate_tampering(signed, public)
    assert (named(report), report.version) == ({GAMMA}, 2)


def test_statement_by_a_key_that_makes_no_openssf_signature(signed, original):
    pair = SigningKey(ed25519.Ed25519PrivateKey.generate())
    ms.sign(signed, pair, version=2)  # over the statement of another key
    flip(signed, original.tensors[KERNEL].offset)
    assert named(ms.locate_tampering(signed, pair.verifying_key)) == {KERNEL}


@pytest.mark.parametrize("name", ["e.bin", "e.keras", "e.weights.h5"])
def test_signed_empty_file_that_is_not_empty_any_more(tmp_path, key, public, name):
    path = tmp_path / name
    path.write_bytes(b"")
    ms.sign(path, key)
    assert ms.locate_tampering(path, public).is_clean
    path.write_bytes(b"PK\x03\x04")
    (file,) = ms.locate_tampering(path, public, reference=None).files
    assert [shift.count for shift in file.shifts] == [4]


def test_names_in_a_report_cannot_steer_a_terminal(tmp_path, key, public):
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("evil\x1b[2J\nname", data=np.arange(9000.0))
    ms.sign(path, key)
    flip(path, path.stat().st_size - 1)
    text = str(ms.locate_tampering(path, public))
    assert "evil" in text
    assert "\x1b" not in text
    assert not any(line.startswith("name") for line in text.splitlines())


def test_wrong_arguments_say_what_is_right(signed, public, tmp_path, folder):
    with pytest.raises(ValueError, match="reference=None"):
        ms.locate_tampering(build(), public)
    with pytest.raises(TypeError, match="path or a Keras model"):
        ms.locate_tampering(3, public)
    with pytest.raises(TypeError, match="path or a Keras model"):
        ms.locate_tampering(signed, public, reference=3)
    with pytest.raises(FileNotFoundError):
        ms.locate_tampering(tmp_path / "gone.keras", public)
    with pytest.raises(SignatureError, match="each of its tensors once"):
        ms.locate_tampering(build(), public, reference=folder)
    with pytest.raises(SignatureError, match="used on"):
        ms.locate_tampering(folder, public, signature_path=sig_of(signed))


def test_a_compressed_archive_is_said_to_have_no_tensors(tmp_path, original, key, public):
    path = tmp_path / "z.keras"
    with (
        zipfile.ZipFile(original.path) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    ms.sign(path, key)
    flip(path, path.stat().st_size // 2)
    report = ms.locate_tampering(path, public)
    assert report.tensors == report.undecided == ()
    assert "names no tensors" in str(report)


def test_tensors_without_a_place_are_said_to_be_undecided(tmp_path, key, public):
    path = tmp_path / "big_endian.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(100_000, dtype=">f4")
    ms.sign(path, key)
    flip(path, path.stat().st_size // 2)
    report = ms.locate_tampering(path, public)
    assert report.tensors == ()
    assert report.undecided == ("x",)
    assert report.files[0].changed_parts == ("HDF5 contents",)
    assert "cannot be told" in str(report)


def test_progress_is_reported_to_the_end(signed, folder, public):
    for path in (signed, folder):
        seen = []
        ms.locate_tampering(path, public, progress=lambda *step: seen.append(step))  # noqa: B023
        totals = {total for _, total in seen}
        assert len(totals) == 1
        assert all(done <= total for done, total in seen)
        assert seen == sorted(seen)
        assert seen[-1][0] > 0.5 * seen[-1][1]


def test_verify_names_the_tensors(signed, folder, public, original):
    flip(signed, original.tensors[GAMMA].offset)
    with pytest.raises(TamperedModelError, match=f"Tensors: '{GAMMA}'") as caught:
        ms.verify(signed, public)
    assert caught.value.tensors == (GAMMA,)
    place = folder / "sub" / "a.weights.h5"
    flip(place, place.stat().st_size // 2)
    with pytest.raises(TamperedModelError) as caught:
        ms.verify(folder, public)
    (name,) = caught.value.tensors
    assert name.startswith("sub/a.weights.h5:layers/")


def test_verified_loading_names_the_tensors_too(signed, public, original):
    flip(signed, original.tensors[BIAS].offset)
    with pytest.raises(TamperedModelError) as caught:
        ms.load_verified_model(signed, public)
    assert caught.value.tensors == (BIAS,)


def test_statement_whose_tensors_overlap_does_no_harm(tmp_path, key, public, original):
    """Only a holder of the key can write it; it must not crash the reader."""
    tensors = tuple(
        type(t)(**(vars(t) | {"offset": 0, "path": f"{t.path}#", "file": "."}))
        for t in original.said.tensors
        if t.nbytes < 16 << 10
    )
    said = dataclasses.replace(original.said, tensors=tensors + original.said.tensors)
    assert said.cuts(".") == original.said.cuts(".")
    from keras_modelsec.integrity.damage.leaf_alignment import align

    with open(original.path, "rb", buffering=0) as file:
        assert align(file, said, ".").is_clean
    bad = tmp_path / "bad"
    bad.write_bytes(b"x" + original.data[1:])
    with open(bad, "rb", buffering=0) as file:
        found = align(file, said, ".")
    assert {t.path for t, shift in found.tensors if shift is None} == {
        t.path for t in said.tensors if t.path.endswith("#")
    }
