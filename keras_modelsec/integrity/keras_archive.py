"""What a .keras file may hold: the members Keras writes, each once, and nothing else.

Keras reads the last of two members of one name and ignores the ones it does not know, so that
two tools can see two models in one file. This refuses such a file before Keras sees it.
"""

import stat
import zipfile
from collections import Counter
from pathlib import Path

from keras_modelsec.integrity.errors import UnsafeModelError

_REQUIRED = frozenset({"config.json", "metadata.json"})
_WEIGHTS = frozenset({"model.weights.h5", "model.weights.npz"})
_ASSETS = "assets/"
_MAX_EXPANSION = 100  # Keras stores members uncompressed; a repacked file shrinks some 10 times
_FREE_BYTES = 1 << 20


def check_archive(path: Path, shown: Path) -> None:
    """Refuses a .keras file with members that Keras does not write.

    Args:
        path: The file to read.
        shown: The path for the message.

    Raises:
        UnsafeModelError: If it is no ZIP archive; has duplicate, unknown, missing or encrypted
            members, links, names that lead outside, or members that expand more than 100 times.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise UnsafeModelError(
            f"A .keras file must be a ZIP archive. Received: {str(shown)!r} ({error})."
        ) from None
    names = [member.filename for member in members]
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        _refuse(shown, "hold each member once", name)
    for member in members:
        _check_member(member, shown)
    if not set(names) >= _REQUIRED or len(_WEIGHTS & set(names)) != 1:
        _refuse(shown, "hold config.json, metadata.json and one model.weights file", names[:5])


def _check_member(member: zipfile.ZipInfo, shown: Path) -> None:
    name = member.filename
    if name != member.orig_filename:
        _refuse(shown, "have plain member names", member.orig_filename)
    parts = name.removesuffix("/").split("/")
    if "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
        _refuse(shown, "have no member name that leads outside", name)
    if name not in _REQUIRED | _WEIGHTS and not name.startswith(_ASSETS):
        _refuse(shown, "hold no member that Keras does not write", name)
    if stat.S_ISLNK(member.external_attr >> 16):
        _refuse(shown, "hold no symbolic link", name)
    if member.flag_bits & 0x1:
        _refuse(shown, "hold no encrypted member", name)
    if member.file_size > _FREE_BYTES + _MAX_EXPANSION * member.compress_size:
        _refuse(shown, "hold no member that expands more than 100 times", name)


def _refuse(shown: Path, rule: str, value: object) -> None:
    raise UnsafeModelError(
        f"A .keras file must {rule}. Received: {value!r} in {str(shown)!r}. "
        "Save the model again with Keras, and sign that."
    )
