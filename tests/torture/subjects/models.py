"""Models whose bytes were damaged after they were signed."""

import json

from keras_modelsec.integrity import sign, verify
from tests.torture import material
from tests.torture.damage import damage
from tests.torture.subjects.base import ACCEPTED, Subject, UnsoundError


class ModelFile(Subject):
    """A signed file; signature, statement or both beside it."""

    operation = "verify"
    cases = 700
    name = ""

    def make(self):
        self.other = material.MODEL_FILES[self.name](1)
        self.write(self.name, material.MODEL_FILES[self.name](0))
        sign(self.folder / self.name, material.OWNER)

    def damage(self, rng):
        keep = rng.choice(["both", "sig", "modelsec.json"])
        for ending in ("sig", "modelsec.json"):
            if keep not in ("both", ending):
                (self.folder / f"{self.name}.{ending}").unlink()
        damaged, what = damage(rng, self.good[self.name], self.other)
        self.write(self.name, damaged)
        return f"{what} ({keep})"

    def operate(self):
        verify(self.folder / self.name, material.OWNER.verifying_key)

    def check_accepted(self, result):
        if (self.folder / self.name).read_bytes() != self.good[self.name]:
            raise UnsoundError("other bytes were accepted")


class KerasFile(ModelFile):
    """Beyond the tests: a real archive, with both vouchers or either; they draw edits of 512 plain
    bytes with one.
    """

    format, name = ".keras", "model.keras"


class WeightsFile(ModelFile):
    """Beyond the tests: real HDF5, so that the refusal names tensors of a file whose structure is
    damaged too.
    """

    format, name = ".weights.h5", "model.weights.h5"


class AnyFile(ModelFile):
    """Beyond the tests: blocks moved, repeated and taken from another genuine model; both vouchers
    beside it.
    """

    format, name = "other file", "model.bin"


class Folder(Subject):
    """A signed SavedModel-like folder.

    Beyond the tests: damaged bytes in any of the files, up to three kinds together, and files of
    another signed folder; they make each difference of names once.
    """

    format, operation, cases = "folder", "verify", 1200

    def make(self):
        for seed, place in enumerate(("model", "another")):
            for name, data in material.folder_files(10 * seed).items():
                path = self.folder / place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        sign(self.folder / "model", material.OWNER)

    def damage(self, rng):
        names = sorted(material.folder_files())
        name, second = rng.sample(names, 2)
        path, other = self.folder / "model" / name, self.folder / "model" / second
        how = rng.choice(["bytes"] * 5 + ["swap", "remove", "add", "rename", "link", "foreign"])
        if how == "bytes":
            damaged, kinds = damage(rng, path.read_bytes(), other.read_bytes())
            path.write_bytes(damaged)
            how = kinds
        elif how == "swap":
            one, two = path.read_bytes(), other.read_bytes()
            path.write_bytes(two)
            other.write_bytes(one)
        elif how == "remove":
            path.unlink()
        elif how == "add":
            place = rng.choice(["x", ".git", "variables/x", "model.sig", "x.sig", "assets/.hidden"])
            (self.folder / "model" / place).write_bytes(rng.randbytes(9))
        elif how == "rename":
            path.rename(path.with_name(rng.choice([path.name.upper(), "x", path.name + " "])))
        elif how == "link":
            data = path.read_bytes()
            path.unlink()
            (self.folder / "elsewhere").write_bytes(data)
            path.symlink_to(self.folder / "elsewhere")
        else:
            path.write_bytes((self.folder / "another" / name).read_bytes())
        return f"{how}: {name}"

    def operate(self):
        verify(self.folder / "model", material.OWNER.verifying_key)

    def check_accepted(self, result):
        found = {k: v for k, v in self.read().items() if k.startswith("model/")}
        if found != {k: v for k, v in self.good.items() if k.startswith("model/")}:
            raise UnsoundError("another folder was accepted")


class Located(ModelFile):
    """The report on a damaged file: clean exactly if the bytes are the signed ones."""

    operation, cases = "locate_tampering", 300

    def operate(self):
        from keras_modelsec.integrity import locate_tampering

        return locate_tampering(self.folder / self.name, material.OWNER.verifying_key)

    def check_accepted(self, result):
        same = (self.folder / self.name).read_bytes() == self.good[self.name]
        if result.is_clean != same:
            raise UnsoundError(f"clean is {result.is_clean}: {result}")
        if self.read().keys() - self.good.keys():
            raise UnsoundError("a report left files behind")
        json.dumps(result.to_dict())
        return ACCEPTED if same else f"reported, {'with' if result.tensors else 'no'} tensors"


class LocatedKeras(Located):
    """Beyond the tests: damage that destroys the structure that tensors are found by: reordered,
    spliced, its front cut; clean exactly if the bytes are the signed ones, and no file left.
    """

    format, name, cases = ".keras", "model.keras", 400


class LocatedWeights(Located):
    """Beyond the tests: the same for HDF5 that is in no archive."""

    format, name = ".weights.h5", "model.weights.h5"


class LocatedOther(Located):
    """Beyond the tests: files that have no tensors, damaged at random; a report, and never another
    error.
    """

    format, name, cases = "other file", "model.bin", 150


class LocatedFolder(Folder):
    """Beyond the tests: files damaged, swapped, renamed, linked at random; they name chosen
    differences.
    """

    operation, cases = "locate_tampering", 300

    def operate(self):
        from keras_modelsec.integrity import locate_tampering

        return locate_tampering(self.folder / "model", material.OWNER.verifying_key)

    def check_accepted(self, result):
        found = {k: v for k, v in self.read().items() if k.startswith("model/")}
        same = found == {k: v for k, v in self.good.items() if k.startswith("model/")}
        if result.is_clean != same:
            raise UnsoundError(f"clean is {result.is_clean}: {result}")
        json.dumps(result.to_dict())
        return ACCEPTED if same else "reported"
