"""What is signed of a file is of one file, at one moment, whoever may write to it meanwhile."""

import os

import h5py
import numpy as np
import pytest

from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.tensor_layout import read_tensor_layout
from keras_modelsec.integrity.signing import describing
from keras_modelsec.integrity.signing.describing import describe_for_signing


@pytest.fixture
def weights(tmp_path):
    """A file with a tensor so small that its digest takes a second look at the file."""
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        file["small"] = np.zeros(16, "float32")
    return path


def test_write_with_forged_times_between_two_looks_is_noticed(weights):
    times, (tensor,) = weights.stat(), read_tensor_layout(weights)

    def write(*_):  # the whole file has been hashed, the small tensor has not
        with open(weights, "r+b") as file:
            file.seek(tensor.offset)
            file.write(b"evil")
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))

    with pytest.raises(SignatureError, match="must not change while it is hashed"):
        describe_for_signing(weights, progress=write)


def test_tensors_are_those_of_the_hashed_file_wherever_its_path_leads(weights, monkeypatch):
    other = weights.parent / "other"
    other.mkdir()
    with h5py.File(other / weights.name, "w") as file:
        file["evil"] = np.zeros(16, "float32")
    folder, aside = weights.parent / "here", weights.parent / "aside"
    folder.mkdir()
    weights.rename(folder / weights.name)

    def read(path, *opened):  # for a moment the path leads elsewhere: no time of the file shows it
        folder.rename(aside)
        other.rename(folder)
        try:
            return read_tensor_layout(path, *opened)
        finally:
            folder.rename(other)
            aside.rename(folder)

    monkeypatch.setattr(describing, "read_tensor_layout", read)
    described = describe_for_signing(folder / weights.name)
    assert [tensor.path for tensor in described.tensors] == ["small"]
