"""Every example in a public docstring runs as it stands; tests/docs runs those of the pages."""

import getpass
import inspect
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest

import keras_modelsec as ms


def _blocks(text):
    return re.findall(r"```python\n(.*?)```", text or "", re.DOTALL)


def _documented():
    seen = {}
    for name in sorted(ms.__all__, key=lambda n: inspect.ismodule(getattr(ms, n))):  # flat first
        value = getattr(ms, name)
        members = getattr(value, "__all__", None) if inspect.ismodule(value) else None
        for part in members or [None]:
            item = getattr(value, part) if part else value
            for block in _blocks(inspect.getdoc(item)):
                seen.setdefault(block, f"{name}.{part}" if part else name)
    return {name: block for block, name in seen.items()}


EXAMPLES = _documented()
SLOW = {"PrivacyBudget", "RobustnessMonitor", "WatermarkMonitor", "SignOnSave"}


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(64, 64)).astype("float32")
    return x, (x.mean(axis=1) > 0.5).astype("int64")


@pytest.fixture
def names(data, tmp_path, monkeypatch):
    """What the examples take for granted: data, a model, keys, saved and signed files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OWNER_PASSWORD", "correct horse battery staple")
    monkeypatch.setattr(getpass, "getpass", lambda *_: "correct horse battery staple")
    (x, y), key = data, ms.watermark.generate_key()
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(32, activation="relu")(inputs)
    outputs = keras.layers.Dense(10, activation="softmax")(hidden)
    model = ms.SecureModel(inputs, outputs)
    return {
        "keras": keras,
        "ms": ms,
        "getpass": getpass,
        "inputs": inputs,
        "outputs": outputs,
        "model": model,
        "suspect": model,
        "key": key,
        **dict.fromkeys(("x", "x_train", "x_val", "x_test"), x),
        **dict.fromkeys(("y", "y_train", "y_val", "y_test"), y),
    }


def _compile(names, **options):
    names["model"].compile("adam", "sparse_categorical_crossentropy", **options)


def _keys(names):
    ms.generate_keys("owner.pem", "owner.pub")


def _signed(names, path):
    pathlib.Path(path).parent.mkdir(exist_ok=True)
    _keys(names)
    save = names["model"].save_weights if path.endswith(".weights.h5") else names["model"].save
    save(path)
    ms.sign(path, "owner.pem")


def _private(names):
    names["model"].compile(
        ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=2.2),
        "sparse_categorical_crossentropy",
    )


def _with_password(names):
    names["model"].save("model.keras")
    ms.generate_keys("owner.pem", password="correct horse battery staple")


def _marked(names):
    ms.attach_watermark(names["model"], names["key"])
    _compile(names)
    names["model"].save("marked.keras")
    names["train"] = keras.utils.timeseries_dataset_from_array(
        names["x"], names["y"], sequence_length=1, batch_size=16
    ).map(lambda x, y: (x[:, 0], y))


def _encrypted(names):
    _keys(names)
    names["model"].save("model.keras")
    ms.encryption.generate_encryption_keys("alice.key", "alice.pub")
    ms.save_encrypted(names["model"], "model.keras.enc", "alice.pub")
    ms.sign("model.keras.enc", "owner.pem")


def _protected(names):
    _signed(names, "model.keras")
    ms.write_parity("model.keras", "owner.pem")
    with open("model.keras", "r+b") as file:
        file.seek(5000)
        file.write(b"damage")


def _trusting(names):
    _keys(names)
    ms.generate_keys("root.pem", "root.pub", algorithm="ed25519")


def _certified(names):
    golden = pathlib.Path(__file__).parent / "golden" / "integrity"
    shutil.copy(golden / "certificate-root.pem", "company-root.pem")
    shutil.copy(golden / "model.bin", "model.keras")
    shutil.copy(golden / "model.bin.certificate.keras-modelsec.sig", "model.keras.sig")


PREPARATIONS = {
    "TrustStore": _trusting,
    "trust.ExternalSigner": lambda names: _signed(names, "model.keras"),
    "trust.TrustedRoots": _certified,
    "trust.load_signing_key": lambda names: _signed(names, "model.keras"),
    "decrypt_file": _encrypted,
    "encrypt_file": lambda names: names["model"].save("model.keras"),
    "load_encrypted": _encrypted,
    "load_encrypted_weights": _encrypted,
    "RobustnessMonitor": _compile,
    "PrivacyBudget": _private,
    "SignOnSave": lambda names: (_compile(names), _keys(names)),
    "SignedBackupAndRestore": lambda names: (_compile(names), _keys(names)),
    "load_verified_model": lambda names: _signed(names, "checkpoints/10.keras"),
    "load_verified_weights": lambda names: _signed(names, "best.weights.h5"),
    "save_encrypted": _keys,
    "sign": _keys,
    "verified_copy": lambda names: _signed(names, "best.weights.h5"),
    "verify": lambda names: _signed(names, "model.keras"),
    "locate_tampering": lambda names: _signed(names, "model.keras"),
    "IntegrityGuard": lambda names: _signed(names, "model.keras"),
    "write_parity": lambda names: _signed(names, "model.keras"),
    "repair": _protected,
    "WatermarkMonitor": _compile,
    "trust.EnvironmentVariable": _with_password,
    "watermark.restore_key": _marked,
}


_KERAS_NOTES = (
    "ignore:`shuffle=True` was passed, but will be ignored",
    "ignore:Skipping variable loading for optimizer",  # saved before its first step
)


@pytest.mark.filterwarnings(*_KERAS_NOTES)
@pytest.mark.filterwarnings("ignore::keras_modelsec.errors.WatermarkWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in EXAMPLES]
)
def test_docstring_example_runs(name, names):
    PREPARATIONS.get(name, lambda names: None)(names)
    exec(compile(EXAMPLES[name], f"<example of {name}>", "exec"), names)
