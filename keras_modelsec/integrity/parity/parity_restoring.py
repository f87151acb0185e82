"""Makes a damaged parity file whole again, from the model it belongs to."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from keras_modelsec.integrity import files
from keras_modelsec.integrity.parity.byte_stream import ByteStream
from keras_modelsec.integrity.parity.parity_file import ParityFile
from keras_modelsec.integrity.parity.parity_statement import Annex
from keras_modelsec.integrity.parity.protecting import write_digests, write_parity
from keras_modelsec.integrity.signatures.hashing import Progress
from keras_modelsec.integrity.signatures.signed_saving import staging_folder


def restore_parity(
    parity: ParityFile,
    annex: Annex,
    parts: Sequence[tuple[Path | None, int]],
    progress: Progress = None,
) -> bool:
    """Writes the parity file anew, byte for byte as it was signed.

    Args:
        parity: The damaged one.
        annex: Its annex.
        parts: The files of the model, which are whole, and their lengths.
        progress: Called with bytes done and bytes in all.

    Returns:
        Whether it was done: not if the files cannot be read or written, or do not give the signed
        parity, since the model's own repair has succeeded and is not to fail because of that.
    """
    path = parity.path
    try:
        with staging_folder(path.parent) as folder, ByteStream(parts) as stream:
            staged = folder / path.name
            with open(staged, "xb") as file:
                tables = write_parity(file, parity.statement, stream, progress)
                write_digests(file, parity.statement, parity.envelope, annex.to_bytes())
            if tables != (annex.blocks, annex.parity):
                return False
            os.chmod(staged, stat.S_IMODE(os.lstat(path).st_mode))
            files.sync_file(staged)
            os.replace(staged, path)
        files.sync_folder(path.parent)
    except OSError:
        return False
    return True
