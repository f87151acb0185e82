"""Each published attack on Keras's loading, built for real and signed with a trusted key.

docs/keras-cves.md says what each is and what refuses it. Where the installed Keras still runs the
payload when it is told to (`safe_mode=False`), the test first shows that it does: the file is what
it claims to be. Then the verified loader must refuse it by name, and the payload must not have run.
"""

import io
import json
import pathlib
import tarfile
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec._core import keras_internals
from keras_modelsec.integrity import (
    CodeInModelError,
    UnsafeModelError,
    load_verified_model,
    load_verified_weights,
    sign,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def make_model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "payload-ran"


@pytest.fixture
def refuses(key, public, marker):
    def check(path, error=UnsafeModelError, match="", **options):
        sign(path, key)
        with pytest.raises(error, match=match):
            load_verified_model(path, public, **options)
        assert not marker.exists()

    return check


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def edit_config(path, edit):
    """Rewrites a model's configuration, as an attacker with a JSON editor does."""
    members = members_of(path)
    config = json.loads(members["config.json"])
    members["config.json"] = json.dumps(edit(config) or config).encode()
    write_members(path, members)
    return path


def edit_weights(path, edit):
    """Rewrites the HDF5 file, or the one in an archive."""
    if path.name.endswith(".h5"):
        with h5py.File(path, "r+") as file:
            edit(file)
        return
    members, weights = members_of(path), path.parent / "unpacked.h5"
    weights.write_bytes(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        edit(file)
    write_members(path, {**members, "model.weights.h5": weights.read_bytes()})


def saved(path, model=None):
    model = model or make_model()
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def lambda_model(marker):
    source = f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]"  # carries no closure
    return keras.Sequential([keras.Input((3,)), keras.layers.Lambda(eval(source))])


def call(module, function, *args, **kwargs):
    """A layer that Keras took for a function to call, with arguments, while it built the graph."""
    return {
        "module": module,
        "class_name": "function",
        "config": function,
        "registered_name": function,
        "name": function,
        "inbound_nodes": [{"args": list(args), "kwargs": kwargs}],
    }


def calling(path, *calls):
    """A functional model whose graph holds those calls first."""
    inputs = keras.Input((3,), name="inputs")
    saved(path, keras.Model(inputs, keras.layers.Dense(2)(inputs)))
    return edit_config(path, lambda c: c["config"]["layers"].__setitem__(slice(0, 0), calls))


def test_cve_2024_3660_lambda_layer(tmp_path, marker, refuses):
    path = saved(tmp_path / "model.keras", lambda_model(marker))
    marker.unlink()
    keras.models.load_model(path, safe_mode=False)
    assert marker.exists()  # the file is what it claims to be
    marker.unlink()
    refuses(path, CodeInModelError, "Lambda")
    nested = keras.Sequential([keras.Input((3,)), lambda_model(marker), keras.layers.Dense(1)])
    marker.unlink(missing_ok=True)
    refuses(saved(tmp_path / "nested.keras", nested), CodeInModelError, "Lambda")


@pytest.mark.parametrize("module", ["subprocess", "os"])
def test_cve_2025_1550_any_module_and_function(tmp_path, marker, refuses, module):
    command = {"subprocess": ("Popen", ["touch", str(marker)]), "os": ("mkdir", str(marker))}
    function, argument = command[module]
    path = calling(tmp_path / "model.keras", call(module, function, argument))
    refuses(path, match=f"{module}.{function}")
    refuses(path, match=f"{module}.{function}", allow=("Lambda",))


def download_layer(origin, folder, **more):
    return {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {
            "name": "download",
            "function": {
                "module": "keras.utils",
                "class_name": "function",
                "config": "get_file",
                "registered_name": "get_file",
            },
            "arguments": {"origin": origin.as_uri(), "cache_dir": str(folder), **more},
        },
        "registered_name": None,
        "build_config": {"input_shape": [None, 3]},
    }


def with_layer(path, layer):
    saved(path)
    return edit_config(path, lambda c: c["config"]["layers"].append(layer))


def test_cve_2025_8747_keras_function_reused_to_download(tmp_path, marker, refuses):
    source = tmp_path / "authorized_keys"
    source.write_text("attacker's")
    cache = tmp_path / "victim"
    path = with_layer(tmp_path / "model.keras", download_layer(source, cache, fname=str(marker)))
    refuses(path, match="keras.utils.get_file")
    refuses(path, match="keras.utils.get_file", allow=("Lambda",))  # no part that can be allowed
    assert not cache.exists()
    direct = calling(tmp_path / "direct.keras", call("keras.utils", "get_file", str(marker)))
    refuses(direct, match="keras.utils.get_file")


@pytest.mark.parametrize("ending", [".h5", ".hdf5"])
def test_cve_2025_9905_lambda_in_a_legacy_file(tmp_path, marker, refuses, ending):
    path = saved(tmp_path / f"model{ending}", lambda_model(marker))
    marker.unlink()
    keras.models.load_model(path, safe_mode=False)
    assert marker.exists()
    marker.unlink()
    refuses(path, CodeInModelError, "Lambda")


def test_cve_2025_9906_configuration_turns_safe_mode_off(tmp_path, marker, refuses):
    lambda_config = json.loads(
        members_of(saved(tmp_path / "lambda.keras", lambda_model(marker)))["config.json"]
    )
    marker.unlink()
    path = calling(
        tmp_path / "model.keras",
        call("keras.config", "enable_unsafe_deserialization"),
        lambda_config["config"]["layers"][1] | {"name": "payload", "inbound_nodes": []},
    )
    refuses(path, match="keras.config.enable_unsafe_deserialization|Lambda")
    refuses(path, match="keras.config.enable_unsafe_deserialization", allow=("Lambda",))
    assert not keras_internals.is_unsafe_deserialization_enabled()


@pytest.mark.parametrize("name", ["StringLookup", "IntegerLookup", "TextVectorization"])
def test_cve_2025_12058_vocabulary_that_names_a_file(tmp_path, refuses, name):
    secret = tmp_path / "secret"
    secret.write_text("7\n42\n")
    words = np.array([["7"]]) if name != "IntegerLookup" else np.array([[7]])
    dtype = "int64" if name == "IntegerLookup" else "string"
    layer = getattr(keras.layers, name)()
    layer.adapt(words)
    path = tmp_path / "model.keras"
    saved(path, keras.Sequential([keras.Input((1,), dtype=dtype), layer]))
    kept = members_of(path)
    write_members(path, {n: d for n, d in kept.items() if not n.startswith("assets/")})

    def point_at_secret(config):
        config["config"]["layers"][1]["config"]["vocabulary"] = str(secret)

    edit_config(path, point_at_secret)
    stolen = keras.models.load_model(path, safe_mode=False).layers[0].get_vocabulary()
    assert {"42", 42} & set(stolen)  # the file is what it claims to be
    refuses(path, CodeInModelError, name)


def test_cve_2025_12060_archive_that_extracts_outside(tmp_path, marker, refuses):
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo(f"out/{marker.name}"), io.BytesIO())
    layer = download_layer(archive, tmp_path / "cache", fname="data", extract=True)
    refuses(with_layer(tmp_path / "model.keras", layer), match="keras.utils.get_file")
    assert not (tmp_path / "cache").exists()


def refuses_weights(path, key, public, match):
    sign(path, key)
    model = make_model()
    before = model.get_weights()
    with pytest.raises(UnsafeModelError, match=match):
        load_verified_weights(model, path, public)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def is_matrix(item):
    return isinstance(item, h5py.Dataset) and item.ndim == 2


def take_kernel_out(file):
    """Deletes the only matrix there is, and returns its name."""
    found = []
    file.visititems(lambda name, item: found.append(name) if is_matrix(item) else None)
    (name,) = found
    del file[name]
    return name


@pytest.fixture(params=["model.keras", "model.weights.h5", "model.h5"])
def weights_file(request, tmp_path):
    return saved(tmp_path / request.param)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (1 << 10, 1 << 10), "compression": "gzip"},
        {"chunks": (1 << 10, 1 << 10)},
        {},
    ],
)
def test_cve_2026_0897_tensor_that_grows_when_read(weights_file, key, public, options):
    def declare_four_tebibytes(file):
        file.create_dataset(take_kernel_out(file), (1 << 20, 1 << 20), "f4", **options)

    edit_weights(weights_file, declare_four_tebibytes)
    assert weights_file.stat().st_size < 1 << 20
    refuses_weights(weights_file, key, public, "one uncompressed piece|all values of its tensors")


def test_cve_2026_0897_archive_that_grows_when_read(tmp_path, key, public):
    path = saved(tmp_path / "model.keras")
    members = members_of(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data + bytes(64 << 20) * (name == "model.weights.h5"))
    assert path.stat().st_size < 1 << 20
    refuses_weights(path, key, public, "uncompressed")


def write_program(folder, marker):
    """A SavedModel whose graph writes a file when it is called."""

    class Program(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def serve(self, x):
            with tf.control_dependencies([tf.io.write_file(str(marker), "ran")]):
                return tf.identity(x)

    tf.saved_model.save(Program(), str(folder))


def test_cve_2026_1462_tfsm_layer_names_a_program(tmp_path, marker, refuses, key, public):
    program = tmp_path / "program"
    write_program(program, marker)
    layer = keras.layers.TFSMLayer(str(program))
    path = saved(tmp_path / "model.keras", keras.Sequential([keras.Input((3,)), layer]))
    marker.unlink(missing_ok=True)
    keras.models.load_model(path, safe_mode=False)(np.zeros((1, 3)))
    assert marker.exists()  # the file is what it claims to be
    marker.unlink()
    refuses(path, CodeInModelError, "TFSMLayer")
    refuses(program, CodeInModelError, "SavedModel is a program")


def external_file(file, kernel, secret):
    file.create_dataset(kernel, (3, 2), "f4", external=[(str(secret), 0, 24)])


def external_link(file, kernel, secret):
    file[kernel] = h5py.ExternalLink(str(secret) + ".h5", "x")


def virtual(file, kernel, secret):
    layout = h5py.VirtualLayout((3, 2), "f4")
    layout[:] = h5py.VirtualSource(str(secret) + ".h5", "x", (3, 2))
    file.create_virtual_dataset(kernel, layout)


@pytest.mark.parametrize("point", [external_file, external_link, virtual])
def test_cve_2026_1669_tensor_in_another_file(weights_file, key, public, tmp_path, point):
    values = np.arange(6, dtype="float32").reshape(3, 2)
    secret = pathlib.Path(tmp_path, "secret")
    secret.write_bytes(values.tobytes())
    with h5py.File(f"{secret}.h5", "w") as file:
        file["x"] = values
    stolen = []

    def point_at_secret(file):
        kernel = take_kernel_out(file)
        point(file, kernel, secret)
        stolen.append(file[kernel][()])

    edit_weights(weights_file, point_at_secret)
    np.testing.assert_array_equal(stolen[0], values)  # the file is what it claims to be
    refuses_weights(weights_file, key, public, "none in other files|no soft, external")
