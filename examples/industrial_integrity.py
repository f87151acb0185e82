"""A model in a plant: signed, protected, damaged in five ways, found out, located and repaired.

Then the same model in memory, where a bit flips while it serves, and on a disk that is not ours.

    python examples/industrial_integrity.py [FOLDER]
"""

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import command_line
import digits
import numpy as np
from quiet import keras

import keras_modelsec as ms

PASSWORD = "an example, not a secret"


def train(folder: Path, data: digits.Digits, owner: Path) -> Path:
    """Trains a classifier; the checkpoint is signed as it is written."""
    model = keras.Sequential(
        [
            keras.Input(data.x_train.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu", name="hidden"),
            keras.layers.Dense(10, activation="softmax", name="classes"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    path = folder / "classifier.keras"
    sign = ms.SignOnSave(path, owner, password=PASSWORD, name="classifier")
    model.fit(data.x_train, data.y_train, epochs=5, verbose=2, callbacks=[sign])
    return path


def one_weight(content: bytearray) -> None:
    """An insider changes one weight by a little: accuracy would not show it."""
    at = content.rindex(b"\x89HDF") + 20_000  # inside the first kernel
    weight = np.frombuffer(content, "<f4", 1, at)[0] + np.float32(1e-3)
    content[at : at + 4] = np.float32(weight).tobytes()


def scattered_bytes(content: bytearray) -> None:
    """A worn disk flips eight bytes anywhere."""
    for place in random.Random(1).sample(range(len(content)), 8):
        content[place] ^= 0xFF


def burst(content: bytearray) -> None:
    """A bad sector: 4 kB of zeros."""
    content[30_000:34_096] = bytes(4096)


def cut_short(content: bytearray) -> None:
    """A transfer that broke off before the end."""
    del content[-3000:]


def inserted_byte(content: bytearray) -> None:
    """One byte too many in the middle: all that follows has moved."""
    middle = len(content) // 2
    content[middle:middle] = b"\x00"


DAMAGES: tuple[Callable[[bytearray], None], ...] = (
    one_weight,
    scattered_bytes,
    burst,
    cut_short,
    inserted_byte,
)


def show_damages(path: Path, public: Path) -> None:
    """Each damage is refused, located and repaired to the very bytes that were signed."""
    good = path.read_bytes()
    for damage in DAMAGES:
        print(f"\n== {(damage.__doc__ or '').strip()}")
        content = bytearray(good)
        damage(content)
        path.write_bytes(content)
        try:
            ms.load_verified_model(path, public)
            raise SystemExit("the damaged model was loaded")
        except ms.SignatureError as error:
            print(f"refused:   {type(error).__name__}")
        print(f"located:   {ms.locate_tampering(path, public)}")
        print(f"repaired:  {ms.repair(path, public)}")
        if path.read_bytes() != good:
            raise SystemExit("the repaired model is not the signed one")
        ms.verify(path, public)


def show_guard(path: Path, public: Path, data: digits.Digits) -> None:
    """A bit flips in memory while the model serves: the guard puts the signed value back."""
    print("\n== A bit flips in memory while the model serves.")
    model = ms.load_verified_model(path, public)
    kernel = model.get_layer("classes").kernel
    bits = kernel.numpy().view("uint32")
    bits[0, 3] ^= 1 << 30  # the highest bit of the exponent
    kernel.assign(bits.view("float32"))
    print(f"accuracy:  {accuracy(model, data):.3f} with the flipped bit")
    guard = ms.IntegrityGuard(path, public, on_mismatch="restore")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.predict(data.x_test, verbose=0, callbacks=[guard])
    print(f"warned:    {caught[0].message}")
    print(f"accuracy:  {accuracy(model, data):.3f} after the guard has put it back")


def accuracy(model: keras.Model, data: digits.Digits) -> float:
    """The share of test images that are classified correctly."""
    found = model.predict(data.x_test, verbose=0).argmax(axis=1)
    return float((found == data.y_test).mean())


def show_rollback(path: Path, owner: Path, public: Path) -> None:
    """An old model, with its genuine signature, is put back: a trust store refuses it."""
    print("\n== Yesterday's model, genuinely signed, is put in place of today's.")
    names = (path, path.with_name(path.name + ".sig"), path.with_name(path.name + ".modelsec.json"))
    yesterday = {name: name.read_bytes() for name in names}
    ms.sign(path, owner, password=PASSWORD, name="classifier", version=100)
    store = ms.TrustStore()
    store.add(public)
    store.set_lowest_version("classifier", 100)
    ms.verify(path, store)
    for name, content in yesterday.items():
        name.write_bytes(content)
    try:
        ms.verify(path, store)
        raise SystemExit("yesterday's model was accepted")
    except ms.SignatureError as error:
        print(f"refused:   {type(error).__name__}: {error}")


def show_secrecy(path: Path, owner: Path, public: Path, folder: Path) -> None:
    """The model leaves the plant encrypted, for one recipient."""
    print("\n== The model is sent to a customer.")
    private, recipient = ms.encryption.generate_encryption_keys(folder / "customer.key")
    model = ms.load_verified_model(path, public)
    sent = ms.save_encrypted(model, folder / "classifier.keras.enc", recipient)
    kernel = model.get_layer("hidden").kernel.numpy().tobytes()
    print(f"plaintext in the file: {kernel[:64] in sent.read_bytes()}")
    ms.sign(sent, owner, password=PASSWORD)
    received = ms.load_encrypted(sent, private, trusted_keys=public)
    same = received.get_layer("hidden").kernel.numpy().tobytes() == kernel
    print(f"decrypted weights are the same: {same}")


def main(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    data = digits.load()
    owner, public = ms.generate_keys(folder / "owner.pem", password=PASSWORD)
    path = train(folder, data, owner)
    # A small model has few blocks, so scattered damage hits a large share; 5 % do for a large one.
    ms.write_parity(path, owner, password=PASSWORD, redundancy=0.25)
    show_damages(path, public)
    show_guard(path, public, data)
    show_rollback(path, owner, public)
    show_secrecy(path, owner, public, folder)


if __name__ == "__main__":
    command_line.run(main)
