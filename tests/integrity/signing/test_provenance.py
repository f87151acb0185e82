"""What a statement says of a file's origin, and that no file keeps one from signing it."""

import json
import zipfile

import keras
import pytest

from keras_modelsec.integrity import sign, verify
from keras_modelsec.integrity.signing.provenance import collect, packages


def archive(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.json", content)
    return path


def test_packages_are_those_installed():
    assert packages()["keras"] == keras.__version__
    assert "python" in packages()


@pytest.mark.parametrize(
    "config",
    ["[]", "3", '{"config": 3}', '{"config": null}', "{", "[" * 5000, '{"compile_config": NaN}'],
)
def test_odd_archives_are_described_as_far_as_they_can_be_and_signed(tmp_path, config, key, public):
    path = archive(tmp_path / "m.keras", metadata="{}", config=config)
    assert "packages" in collect(path)
    sign(path, key)
    verify(path, public)


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x05\x06" + bytes(18)])
def test_file_that_is_no_archive_is_signed(tmp_path, data, key, public):
    path = tmp_path / "m.keras"
    path.write_bytes(data)
    sign(path, key)
    verify(path, public)


def test_what_json_has_no_number_for_is_text(tmp_path):
    config = json.dumps({"config": {"name": "n"}, "compile_config": {"clip": float("inf")}})
    path = archive(tmp_path / "m.keras", metadata='{"keras_version": "3"}', config=config)
    found = collect(path, {"loss": float("nan")})
    assert found["compile"] == {"clip": "inf"}
    assert found["loss"] == "nan"
    json.dumps(found, allow_nan=False)


def test_what_the_signer_says_wins(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(b"")
    assert collect(path, {"packages": {"mine": "1"}})["packages"] == {"mine": "1"}


def test_provenance_of_any_size_is_refused(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="at most"):
        collect(path, {"x": "y" * (17 << 20)})
