"""What bytes outside of tensors are called; the walk over an archive survives anything."""

import io
import zipfile

from hypothesis import example, given
from hypothesis import strategies as st

from keras_modelsec.integrity.damage.inspecting import (
    HDF5_STRUCTURE,
    ZIP_HEADERS,
    part_ranges,
    read_local_members,
    wrong_check_sums,
)


def archive(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, data in members.items():
            written.writestr(name.replace("_", "."), data)
    return file.getvalue()


GOOD = archive(metadata_json=b"{}", config_json=b"{1}" * 9, model_weights_h5=b"w" * 999)


def test_members_are_found_without_the_directory_at_the_end():
    cut = GOOD[: GOOD.index(b"PK\x01\x02")]
    for data in (GOOD, cut, cut + b"junk"):
        members = read_local_members(io.BytesIO(data))
        assert [m.name for m in members] == ["metadata.json", "config.json", "model.weights.h5"]
        assert [data[m.offset : m.offset + m.size] for m in members][:2] == [b"{}", b"{1}" * 9]
        assert wrong_check_sums(io.BytesIO(data), members) == []
    bad = GOOD.replace(b"{1}", b"{2}", 1)
    assert wrong_check_sums(io.BytesIO(bad), read_local_members(io.BytesIO(bad))) == ["config.json"]


def test_check_sums_of_compressed_members_are_left_alone():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("config.json", b"{}" * 50)
    members = read_local_members(file)
    assert [m.name for m in members] == ["config.json"]
    assert wrong_check_sums(file, members) == []


def test_parts_and_tensors_cover_the_file_without_overlap():
    members = read_local_members(io.BytesIO(GOOD))
    weights = members[-1].offset
    tensors = [(weights + 10, 100), (weights + 500, 50)]
    parts = part_ranges("m.keras", len(GOOD), tensors, members)
    inside = sum(size for _, size in tensors)
    assert sum(end - start for start, end, _ in parts) + inside == len(GOOD)
    assert {name for _, _, name in parts} == {
        "metadata.json",
        "config.json",
        f"{HDF5_STRUCTURE} in model.weights.h5",
        ZIP_HEADERS,
    }
    assert part_ranges("m.h5", 10, [(2, 3)], ()) == [
        (0, 2, HDF5_STRUCTURE),
        (5, 10, HDF5_STRUCTURE),
    ]
    assert part_ranges("m.bin", 10, [], ()) == []


@given(
    places=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=8),
    length=st.integers(0, len(GOOD)),
)
@example(places=[(18, 0), (19, 0)], length=len(GOOD))
def test_walk_over_a_damaged_archive_ends_and_stays_inside(places, length):
    data = bytearray(GOOD)
    for place, value in places:
        data[place] = value
    file = io.BytesIO(bytes(data[:length]))
    members = read_local_members(file)
    assert all(m.offset + m.size <= max(length, m.offset) for m in members)
    wrong_check_sums(file, members)
    ranges = part_ranges("m.keras", length, [], members)
    assert all(0 <= start < end <= length for start, end, _ in ranges)


def test_many_empty_members_end_the_walk():
    many = b"PK\x03\x04" + bytes(26)
    assert len(read_local_members(io.BytesIO(many * 5000))) == 1000
