"""A subject: one format with one operation, and what must come of damage.

Owns the verdicts. A case either refuses, with an error class that the subject allows, or gives
exactly what it gave before the damage. Anything else is a failure: another error, another result, a
refusal that changed a file or left one behind. Each subject says what it covers beyond the tests
("they"); held of every one, and by few of them, is that a refusal leaves all files as they were.
"""

import os

from keras_modelsec.errors import SignatureError

ACCEPTED = "accepted, the same"
_LONGEST_MESSAGE = 20_000


class UnsoundError(Exception):
    """The operation did what it must not do."""


class Subject:
    """One format with one operation; `damage` edits files in `self.folder`."""

    format = operation = ""
    cases = 500
    allowed = SignatureError
    needs_keras = False

    def __init__(self, folder):
        self.folder = folder
        self.make()
        self.good = self.read()

    def make(self):
        """Puts the genuine files into the folder."""

    def damage(self, rng):
        """Damages them; returns a description."""

    def operate(self):
        """What must refuse or give the same."""

    def check_accepted(self, result):
        """Raises unless acceptance was right; may return another verdict than `ACCEPTED`."""

    def check_refused(self, before):
        """Raises unless the refusal left everything alone."""
        if self.read() != before:
            raise UnsoundError("a refused operation changed files")

    def run(self, rng):
        """One case: what was done, and the verdict."""
        self.restore()
        what = self.damage(rng)
        before = self.read()
        try:
            result = self.operate()
        except self.allowed as error:
            message = str(error)
            message.encode("utf-8")
            if not message or len(message) > _LONGEST_MESSAGE:
                raise UnsoundError(f"a message of {len(message)} characters") from error
            self.check_refused(before)
            return what, type(error).__name__
        return what, self.check_accepted(result) or ACCEPTED

    def read(self):
        """All files below the folder by name, and where links point."""
        found = {}
        for place, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(place, name)
                key = os.path.relpath(path, self.folder)
                if os.path.islink(path):
                    found[key] = os.readlink(path)
                else:
                    with open(path, "rb") as file:
                        found[key] = file.read()
        return found

    def restore(self):
        found = self.read()
        if found == self.good:
            return
        for name in found.keys() - self.good.keys():
            os.unlink(self.folder / name)
        for name, data in self.good.items():
            if found.get(name) != data:
                path = self.folder / name
                if path.is_symlink():
                    path.unlink()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def write(self, name, data):
        (self.folder / name).write_bytes(data)
