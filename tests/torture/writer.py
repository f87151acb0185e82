"""A process that writes signed models over and over until it is killed.

    python -m tests.torture.writer KIND FOLDER

Owns the kinds. KIND is one of those in `KINDS`; FOLDER holds `key.pem`, and models in `live`. A
line is printed once the first model is in place.
"""

import itertools
import json
import os
import random
import sys
from pathlib import Path

from keras_modelsec.trust import load_signing_key

# kind: (file or folder name, whether training goes on while it signs)
CHECKPOINTS = {
    "SignOnSave, .keras, in the background": ("m.keras", True),
    "SignOnSave, .keras": ("m.keras", False),
    "SignOnSave, .weights.h5, in the background": ("m.weights.h5", True),
    "SignOnSave, export folder, in the background": ("served", True),
    "SignOnSave, export folder": ("served", False),
}
PARITY = ("protect", "repair in place", "repair with a move", "repair of a folder")
KINDS = (*CHECKPOINTS, *PARITY)
PIECE_BYTES = 400_000


def train(folder, kind):
    import keras
    import numpy as np

    import keras_modelsec as ms

    name, background = CHECKPOINTS[kind]
    live = folder / "live"

    class Started(keras.callbacks.Callback):
        told = False

        def on_epoch_end(self, epoch, logs=None):
            if not self.told and (live / name).exists():
                self.told = True
                print("started", flush=True)

    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(1000), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.zeros((8, 40), "float32"), np.zeros((8, 1), "float32")
    callback = ms.SignOnSave(
        live / name,
        folder / "key.pem",
        background=background,
        save_weights_only=name.endswith(".weights.h5"),
    )
    model.fit(x, y, epochs=10**9, verbose=0, callbacks=[callback, Started()])


def parity(folder, kind):
    from keras_modelsec.integrity import repair, write_parity

    key = load_signing_key(folder / "key.pem")
    model, rng = folder / "live" / "model", random.Random()
    (folder / "live").mkdir(exist_ok=True)
    for round_ in itertools.count():
        if kind == "protect":
            write_parity(model, key, redundancy=rng.choice([0.05, 0.1, 0.2]))
        else:
            hurt(folder, kind, rng)
            repair(model, key.verifying_key)
        if not round_:
            print("started", flush=True)


def hurt(folder, kind, rng):
    """Damage as an accident would do it; each step leaves what parity can restore."""
    model = folder / "live" / "model"
    if kind == "repair of a folder":
        one, two = (model / name for name in rng.sample(sorted(pieces()), 2))
        rng.choice([lambda: one.unlink(), lambda: two.write_bytes(bytes(100))])()
    elif kind == "repair in place":
        with open(model, "r+b") as file:
            for _ in range(3):
                file.seek(rng.randrange(PIECE_BYTES))
                file.write(b"damage")
    else:
        data = model.read_bytes()
        place = rng.randrange(len(data))
        aside = folder / "damaged"  # put in place at once: a kill here is not the subject
        aside.write_bytes(data[:place] + b"x" + data[place:])
        os.replace(aside, model)


def pieces():
    """The files of the folder that is repaired: one of them is less than there is parity for."""
    return {name: random.Random(name).randbytes(60_000) for name in "abcdefgh"}


def prepare(folder, kind):
    """What a parity writer needs: a signed and protected model. Returns the good bytes."""
    from keras_modelsec.integrity import sign, write_parity

    key = load_signing_key(folder / "key.pem")
    model = folder / "live" / "model"
    model.parent.mkdir(exist_ok=True)
    if kind == "repair of a folder":
        model.mkdir()
        for name, data in pieces().items():
            (model / name).write_bytes(data)
    else:
        model.write_bytes(random.Random(0).randbytes(PIECE_BYTES))
    sign(model, key)
    write_parity(model, key, redundancy=0.3)


def main(kind, folder):
    (train if kind in CHECKPOINTS else parity)(folder, kind)


if __name__ == "__main__":
    if sys.argv[1] == "--kinds":
        print(json.dumps(KINDS))
    else:
        main(sys.argv[1], Path(sys.argv[2]))
