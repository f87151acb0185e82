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
from keras_modelsec.errors import CodeInModelError, UnsafeModelError
from keras_modelsec.integrity import load_verified_model, load_verified_weights, sign

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


# Flaws of 2026 that were mended, or are open, under the number of a pull request


def test_pr_22900_links_in_a_legacy_file(tmp_path, key, public):
    """Links to other files, by which `load_weights` of a legacy file read any file of the host."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones((3, 2), "f4")
    for point in (
        lambda file, name: file.__setitem__(name, h5py.ExternalLink(str(secret), "x")),
        lambda file, name: file.__setitem__(name, h5py.SoftLink("/model_weights")),
        lambda file, name: file.__setitem__("linked", h5py.ExternalLink(str(secret), "/")),
    ):
        path = saved(tmp_path / "model.h5")
        edit_weights(path, lambda file: point(file, take_kernel_out(file)))  # noqa: B023
        refuses_weights(path, key, public, "no soft, external")


def written_tar(path, *members):
    with tarfile.open(path, "w") as tar:
        for kind, name, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)


@pytest.mark.parametrize(
    "members",
    [
        [(tarfile.REGTYPE, "seed", ""), (tarfile.LNKTYPE, "../payload-ran", "seed")],  # PR 22973
        [(tarfile.SYMTYPE, "out", ".."), (tarfile.REGTYPE, "out/payload-ran", "")],  # PR 23015
        [(tarfile.REGTYPE, "../payload-ran", "")],  # GHSA-hqp4-2352-xf5r
    ],
)
def test_prs_22973_23015_and_ghsa_hqp4_no_model_extracts_an_archive(tmp_path, refuses, members):
    """Hard links, links and names that lead outside: no model reaches what would extract them."""
    written_tar(tmp_path / "data.tar", *members)
    layer = download_layer(tmp_path / "data.tar", tmp_path / "cache", fname="d", extract=True)
    refuses(with_layer(tmp_path / "model.keras", layer), match="keras.utils.get_file")
    direct = calling(
        tmp_path / "direct.keras",
        call("keras.utils", "extract_archive", str(tmp_path / "data.tar"), str(tmp_path / "out")),
    )
    refuses(direct, match="keras.utils.extract_archive")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["../payload-ran", "/payload-ran", "assets/../../payload-ran"])
def test_ghsa_hqp4_2352_xf5r_member_that_leads_outside(tmp_path, refuses, name):
    """A .keras archive whose member is written beside the folder it is extracted to."""
    path = saved(tmp_path / "model.keras")
    write_members(path, {**members_of(path), name: b"payload"})
    refuses(path, match="leads outside")


def test_pr_23015_member_that_is_a_link(tmp_path, refuses):
    path = saved(tmp_path / "model.keras")
    members = members_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        link = zipfile.ZipInfo("assets/out")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "../..")
        archive.writestr("assets/out/payload-ran", b"payload")
    refuses(path, match="no symbolic link")


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (1 << 14, 1 << 15)])
def test_pr_22975_shape_bomb_over_and_under_the_floor(weights_file, key, public, shape):
    """Keras refuses 4 GiB that are stored in 4 MiB; here one value that is not stored is enough."""

    def declare(file):
        file.create_dataset(take_kernel_out(file), shape, "f4", chunks=(1024, 1024))

    edit_weights(weights_file, declare)
    assert weights_file.stat().st_size < 1 << 20
    refuses_weights(weights_file, key, public, "one uncompressed piece")


def test_pr_22976_virtual_data_set_in_an_archive(tmp_path, refuses):
    """What `KerasFileEditor` read from other files; nor does this loader."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((3, 2), "f4")
    path = saved(tmp_path / "model.keras")
    edit_weights(path, lambda file: virtual(file, take_kernel_out(file), tmp_path / "secret"))
    refuses(path, match="none in other files")


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5", "assets/x"])
def test_pr_23010_member_that_grows_when_it_is_read(tmp_path, refuses, name):
    path = saved(tmp_path / "model.keras")
    members = members_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in {**members, name: bytes(64 << 20)}.items():
            bomb = zipfile.ZIP_DEFLATED if member == name else zipfile.ZIP_STORED
            archive.writestr(member, data, bomb)
    assert path.stat().st_size < 1 << 20
    refuses(path, match="uncompressed")


def test_pr_23016_weights_as_numpy_archive(tmp_path, refuses, key, public):
    """Keras reads `model.weights.npz` too, whose members may declare what they do not hold."""
    path = saved(tmp_path / "model.keras")
    members = members_of(path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(64 << 20))
    del members["model.weights.h5"]
    write_members(path, {**members, "model.weights.npz": bomb.getvalue()})
    refuses(path, match="no member that Keras does not write|no \\['model.weights.h5'\\]")
    refuses_weights(path, key, public, "no member that Keras does not write")


@pytest.mark.parametrize("cut", ["module", "registered_name"])
def test_pr_23048_lambda_that_is_read_where_no_safe_mode_is_set(tmp_path, marker, refuses, cut):
    """Without its "module", a layer went to the legacy reader, where the safe mode was unset."""
    path = saved(tmp_path / "model.keras", lambda_model(marker))

    def strip(config):
        for layer in config["config"]["layers"]:
            layer.pop(cut, None)

    edit_config(path, strip)
    marker.unlink(missing_ok=True)
    refuses(path, CodeInModelError, "Lambda")


def test_pr_23100_many_small_bombs_that_are_large_together(weights_file, key, public):
    """Each below Keras's floor of 4 GiB, so that no one of them is refused there."""

    def declare(file):
        name = take_kernel_out(file)
        for index in range(64):
            file.create_dataset(f"{name}_{index}", (1 << 28,), "f4", chunks=(1 << 20,))

    edit_weights(weights_file, declare)
    assert weights_file.stat().st_size < 1 << 20
    refuses_weights(weights_file, key, public, "one uncompressed piece")


def test_pr_23100_contiguous_bombs_in_a_sparse_file(tmp_path, key, public):
    """Not chunked, and on the very same bytes: declared many times, stored once."""
    path = saved(tmp_path / "model.weights.h5")

    def declare(file):
        name = take_kernel_out(file)
        for index in range(64):
            file.create_dataset(f"{name}_{index}", (1 << 28,), "f4")  # late allocation: no bytes

    edit_weights(path, declare)
    refuses_weights(path, key, public, "all values of its tensors")


def tfsm_config(path):
    return {
        "module": "keras.layers",
        "class_name": "TFSMLayer",
        "config": {"name": "program", "filepath": str(path), "call_endpoint": "serve"},
        "registered_name": None,
    }


def test_pr_23654_tfsm_layer_built_without_its_from_config(tmp_path, marker, refuses):
    """Keras builds the layer by calling the class as if it were a function, past its own check."""
    program = tmp_path / "program"
    write_program(program, marker)
    marker.unlink(missing_ok=True)
    called = calling(
        tmp_path / "called.keras",
        call("keras.layers", "TFSMLayer", str(program), call_endpoint="serve"),
    )
    refuses(called, match="TFSMLayer")
    for key_ in ("activation", "kernel_initializer"):
        path = saved(tmp_path / f"{key_}.keras")

        def place(config, key_=key_):
            config["config"]["layers"][1]["config"][key_] = tfsm_config(program)

        refuses(edit_config(path, place), CodeInModelError, "TFSMLayer")
        as_function = {
            "module": "keras.layers",
            "class_name": "function",
            "config": "TFSMLayer",
            "registered_name": "TFSMLayer",
        }

        def place_function(config, key_=key_, value=as_function):
            config["config"]["layers"][1]["config"][key_] = value

        refuses(edit_config(path, place_function), match="TFSMLayer")


@pytest.mark.parametrize("safe_mode", [None, False])
def test_pr_23654_no_scope_of_the_callers_weakens_the_check(tmp_path, marker, refuses, safe_mode):
    """`safe_mode=None`, which Keras passes on as it is, is as far from safe as it gets."""
    from keras.src.saving import serialization_lib

    program = tmp_path / "program"
    write_program(program, marker)
    path = saved(tmp_path / "model.keras")
    edit_config(path, lambda c: c["config"]["layers"].append(tfsm_config(program)))
    marker.unlink(missing_ok=True)
    with serialization_lib.SafeModeScope(safe_mode):
        refuses(path, match="TFSMLayer|must be off")
