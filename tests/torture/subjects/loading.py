"""Loading: damaged files that are refused, and files that a trusted key signed damaged.

The second kind is the harder one: who signs what was damaged before has signed it, so that only the
checks of the format stand between the bytes and Keras. What loads then is what was signed.
"""

import io
import json
import zipfile

from keras_modelsec.errors import SignatureError, UnsafeModelError
from keras_modelsec.integrity import sign
from tests.torture import material
from tests.torture.damage import damage, edit_json, spell
from tests.torture.subjects.base import Subject, UnsoundError

LOADED = "loaded as it was signed"

# ValueError: Keras's own word for contents that do not fit, as `load_verified_model` documents.
# ImportError, NotImplementedError: a configuration for a backend or extra that is not there.
ALLOWED = (SignatureError, UnsafeModelError, ValueError, ImportError, NotImplementedError)


def small_model():
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(2)]
    )
    model.compile("adam", "mse")
    return model


class Loading(Subject):
    operation = "load_verified_model"
    needs_keras = True
    name = "model.keras"
    resign = False

    def make(self):
        self.model = small_model()
        self.save(self.folder / self.name)
        self.saved = (self.folder / self.name).read_bytes()
        sign(self.folder / self.name, material.OWNER)

    def save(self, path):
        self.model.save(path)

    def damage(self, rng):
        damaged, what = self.hurt(rng, self.saved)
        self.write(self.name, damaged)
        if self.resign:
            sign(self.folder / self.name, material.OWNER)
        return what

    def hurt(self, rng, data):
        return damage(rng, data, material.keras_file())

    def operate(self):
        from keras_modelsec.integrity import load_verified_model

        return load_verified_model(self.folder / self.name, material.OWNER.verifying_key)

    def check_accepted(self, result):
        if self.resign:
            return LOADED
        if (self.folder / self.name).read_bytes() != self.saved:
            raise UnsoundError("other bytes were loaded")
        return None


class LoadDamaged(Loading):
    """Beyond the tests: other lengths, orders and splices; they change a byte at chosen places."""

    format, cases = ".keras, damaged", 200


class LoadSignedDamaged(Loading):
    """Beyond the tests: a real archive damaged at random, and then signed; they sign crafted
    attacks and junk.
    """

    format, cases, allowed, resign = ".keras, damaged before it was signed", 400, ALLOWED, True


class LoadSignedConfig(LoadSignedDamaged):
    """One value of the configuration, in an archive that is otherwise whole.

    Beyond the tests: values close to the genuine ones, in JSON that is spelled in odd ways; they
    put ten values into random places.
    """

    format, cases = ".keras, configuration edited before it was signed", 400

    def hurt(self, rng, data):
        result = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
            for item in old.infolist():
                content = old.read(item)
                if item.filename == "config.json":
                    edited, what = edit_json(rng, json.loads(content))
                    content = spell(rng, edited)
                new.writestr(item.filename, content)
        return result.getvalue(), what


class LoadSignedWeights(LoadSignedDamaged):
    """The HDF5 member, with its check sum made right.

    Beyond the tests: Keras reads what the check lets through; they give the check alone up to
    four changed bytes.
    """

    format, cases = ".keras, weights damaged before it was signed", 300

    def hurt(self, rng, data):
        result = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
            for item in old.infolist():
                content = old.read(item)
                if item.filename == "model.weights.h5":
                    content, what = damage(rng, content, material.weights_file())
                new.writestr(item.filename, content)
        return result.getvalue(), what


class LoadWeights(Loading):
    """Beyond the tests: other lengths, orders and splices of a file of weights; they change one."""

    format, operation, cases = ".weights.h5, damaged", "load_verified_weights", 200
    name = "model.weights.h5"

    def save(self, path):
        self.model.save_weights(path)

    def hurt(self, rng, data):
        return damage(rng, data, material.weights_file())

    def operate(self):
        from keras_modelsec.integrity import load_verified_weights

        load_verified_weights(self.model, self.folder / self.name, material.OWNER.verifying_key)


class LoadWeightsSigned(LoadWeights):
    """Beyond the tests: weights damaged and then signed, read into a model that is there."""

    format, cases, allowed, resign = ".weights.h5, damaged before it was signed", 300, ALLOWED, True


class LoadLegacy(LoadSignedDamaged):
    """Beyond the tests: the legacy format damaged and then signed, whose configuration lies in
    HDF5; they sign attacks in it.
    """

    format, cases, name = "legacy .h5, damaged before it was signed", 150, "model.h5"

    def save(self, path):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.save(path)


class LoadEncrypted(Loading):
    """Beyond the tests: damage found while Keras's file is held in memory; they alter files that
    are decrypted to a disk, and few that are loaded.
    """

    format, operation, cases = ".keras.enc, damaged", "load_encrypted", 150
    name = "model.keras.enc"
    key = bytes(range(32))

    def save(self, path):
        from keras_modelsec.encryption import save_encrypted

        save_encrypted(self.model, path, self.key)

    def operate(self):
        from keras_modelsec.encryption import load_encrypted
        from keras_modelsec.trust import ANYBODY

        load_encrypted(self.folder / self.name, self.key, trusted_keys=ANYBODY)
