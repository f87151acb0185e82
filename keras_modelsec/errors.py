"""Every named error of the package: `ms.errors`.

Who calls `verify` needs one `except SignatureError`; who wants to act on the reason catches a
subclass. None of these ever carries a secret. Nothing of the package is imported here, so that
everything can import this.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "SignatureError",
    "UntrustedKeyError",
    "RolledBackError",
    "RevokedModelError",
    "UnsafePathError",
    "ChangedFile",
    "TamperedModelError",
    "TamperedWeightsError",
    "DecryptionError",
    "LostRange",
    "UnrepairableError",
    "KeyFormatError",
    "WrongPasswordError",
    "UnsafeModelError",
    "CodeInModelError",
    "CheckpointError",
    "LockedError",
    "ConcurrentChangeError",
    "NotPerExampleError",
    "NotPrivateError",
    "UnsupportedModelError",
    "PrivacyBudgetExceeded",
    "WatermarkError",
    "WatermarkKeyError",
    "WatermarkWarning",
]

_LISTED = 10
_DIGEST_LENGTH = 64


class SignatureError(ValueError):
    """The signature is missing, malformed, forged, or not over these bytes: do not use the model.

    Every way in which untrusted bytes can fail to verify raises this class or a subclass of it.
    """


class UntrustedKeyError(SignatureError):
    """No trusted key made the signature: it is unknown, revoked, or outside its validity."""


class RolledBackError(SignatureError):
    """The model, or the trust store, is older than the lowest version that is accepted."""


class RevokedModelError(SignatureError):
    """The signature is genuine, and the trust store says that these bytes are not to be used."""


class UnsafePathError(SignatureError):
    """A symbolic link, a special file, or a name that a signature cannot cover."""


class ChangedFile(NamedTuple):
    """One file whose bytes are not the signed ones.

    Attributes:
        name: Path inside the signed folder, or "." for a signed file.
        expected: Hex SHA-256 that was signed.
        actual: Hex SHA-256 of the bytes found; or "unread: ..." with their number, if that is not
            the signed one, so that they were not read.
    """

    name: str
    expected: str
    actual: str


class TamperedModelError(SignatureError):
    """The signature is genuine, and the model is not what was signed.

    Args:
        message: What was verified, with its path.
        changed: Files with other bytes than the signed ones.
        added: Names of files the signature does not cover.
        missing: Names of signed files that are not there.
        tensors: Paths of the tensors whose bytes were changed, as far as the statement tells; in a
            folder with the file's name and a colon before them.
    """

    _tensors_label = "Tensors"

    def __init__(
        self,
        message: str,
        *,
        changed: Sequence[ChangedFile] = (),
        added: Sequence[str] = (),
        missing: Sequence[str] = (),
        tensors: Sequence[str] = (),
    ):
        self.tensors = tuple(tensors)
        self.changed = tuple(changed)
        self.added = tuple(added)
        self.missing = tuple(missing)
        super().__init__(" ".join([message, *self._details()]))

    def _details(self) -> list[str]:
        changed = [
            f"{'the file' if file.name == '.' else repr(file.name)} "
            f"(expected sha256 {file.expected}, {_found(file.actual)})"
            for file in self.changed
        ]
        parts = (
            ("Changed", changed),
            (self._tensors_label, [repr(name) for name in self.tensors]),
            ("Added", [repr(name) for name in self.added]),
            ("Missing", [repr(name) for name in self.missing]),
        )
        return [f"{label}: {_listing(names)}." for label, names in parts if names]


class TamperedWeightsError(TamperedModelError):
    """Weights in memory are not the trusted ones.

    Args:
        message: What must hold, and what to do.
        tensors: Paths of the changed tensors, as in the .keras file.
        added: Paths of weights that the signature does not cover.
        missing: Paths of signed weights that the model does not have.
    """

    _tensors_label = "Changed weights"

    def __init__(
        self,
        message: str,
        *,
        tensors: Sequence[str],
        added: Sequence[str] = (),
        missing: Sequence[str] = (),
    ):
        super().__init__(message, added=added, missing=missing, tensors=tensors)


def _found(actual: str) -> str:
    return f"actual {actual}" if len(actual) == _DIGEST_LENGTH else f"found {actual}"


def _listing(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


class DecryptionError(SignatureError):
    """The encrypted file was altered, cut or damaged, or no key that was given opens it.

    Nothing of what it holds has been released, written or parsed.
    """


class LostRange(NamedTuple):
    """Bytes that could not be restored.

    Attributes:
        name: Path inside the signed folder, or "." for a signed file.
        start: The first lost byte.
        stop: The first byte behind.
    """

    name: str
    start: int
    stop: int


class UnrepairableError(SignatureError):
    """There is more damage than parity; the model was left as it is.

    Args:
        message: What was to be repaired, with its path.
        lost: The byte ranges of the signed files that cannot be restored.
        stripes_lost: How many stripes (groups of blocks with parity of their own) lost more blocks
            than they have parity for.
        stripes: How many stripes there are.
    """

    def __init__(self, message: str, *, lost: Sequence[LostRange], stripes_lost: int, stripes: int):
        self.lost = tuple(lost)
        self.stripes_lost = stripes_lost
        self.stripes = stripes
        ranges = _listing([f"{item.name!r} bytes {item.start} to {item.stop}" for item in lost])
        super().__init__(
            f"{message} Cannot be restored: {ranges}; {stripes_lost} of {stripes} groups of blocks "
            "have more damage than parity. The model was left as it is."
        )


class KeyFormatError(ValueError):
    """A key that cannot be used: another format, kind or curve, or no key at all."""


class WrongPasswordError(KeyFormatError):
    """The private key is encrypted and the password is missing or wrong."""


class UnsafeModelError(ValueError):
    """The model file could do more than hold a model, or could not be loaded safely now."""


class CodeInModelError(UnsafeModelError):
    """The model's configuration can run code or read other files when it is loaded.

    Args:
        message: What was found and what to do.
        parts: The kinds of code-carrying parts that were found and not allowed, such as "Lambda".
    """

    def __init__(self, message: str, parts: Sequence[str] = ()):
        self.parts = tuple(parts)
        super().__init__(message)


class CheckpointError(OSError):
    """A signed checkpoint could not be written; the one before it is unchanged."""


class LockedError(OSError):
    """Another process is writing there, and did not finish in time; nothing was changed."""


class ConcurrentChangeError(OSError):
    """Somebody else saved the file since it was loaded: load, change and save again."""


class NotPerExampleError(ValueError):
    """The compiled loss is not made of one value an example, which a defence or privacy needs."""


class NotPrivateError(ValueError):
    """Training would have gone on without the privacy it was asked for."""


class UnsupportedModelError(NotPrivateError):
    """The model holds something that breaks the bound on one example's influence."""

    # AutoGraph raises an error again as its own class only if it is made as Exception is, else as
    # a StagingError, which nobody expects of a layer called inside of a tf.function.
    __init__ = Exception.__init__


class PrivacyBudgetExceeded(RuntimeError):  # noqa: N818  (a public name, fixed by the design)
    """The next step would spend more privacy than the budget allows."""


class WatermarkError(ValueError):
    """A watermark cannot be embedded, kept or read as asked; the message says what to do."""


class WatermarkKeyError(WatermarkError):
    """A watermark key is missing, weak, malformed, or not the one the mark was made with."""


class WatermarkWarning(UserWarning):
    """Training goes on, but a watermark is not being kept."""
