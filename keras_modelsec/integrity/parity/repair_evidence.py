"""The signature and statement of a model under repair: believed if they verify, put back if not.

Owns the rule that a repair never goes back to an older model: whatever trusted signature is on the
disk, in place or pending, must be on the very bytes the parity is of.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from keras_modelsec._signing.dsse import (
    MAX_ENVELOPE_BYTES,
    DsseEnvelope,
    pre_authentication_encoding,
)
from keras_modelsec._signing.sigstore_bundle import Envelope
from keras_modelsec._signing.trust import Trust
from keras_modelsec._storage import files, publishing
from keras_modelsec.errors import SignatureError, UnsafePathError
from keras_modelsec.integrity.parity.parity_statement import Annex, ParityStatement
from keras_modelsec.integrity.parity.protecting import agrees
from keras_modelsec.integrity.signing.evidence import read_signature
from keras_modelsec.integrity.statements import openssf_statement
from keras_modelsec.integrity.statements.manifest import Manifest
from keras_modelsec.integrity.statements.model_statement import (
    ModelStatement,
    most_statement_bytes,
    read_statement,
)
from keras_modelsec.integrity.statements.places import Places


def read_evidence(
    places: Places, trust: Trust, model_path: Path, said: ParityStatement
) -> set[Path]:
    """The signature and statement files that verify and are for the parity's bytes.

    Raises:
        SignatureError: If one of them, or a pending one, verifies and is for other bytes.
    """
    own_names = places.names_inside(model_path)
    found = files.lengths(model_path) if os.path.lexists(model_path) else []
    most = most_statement_bytes([*(file.size for file in said.files.values()), *found])

    def read_said(place: Path) -> Manifest:
        limit = MAX_ENVELOPE_BYTES if place == places.statement else most
        return read_statement(place, trust, limit=limit).manifest

    readers: list[tuple[Path, Callable[[Path], Manifest]]] = []
    for item in (places, places.pending):
        readers.append((item.statement, read_said))
        if trust.reads_openssf:
            readers.append((item.signature, lambda place: read_signature(place, trust, own_names)))
    good = set()
    for place, read in readers:
        manifest = _read(place, read)
        if manifest is not None:
            if not agrees(manifest, said.manifest):
                raise SignatureError(
                    "A model is repaired only to the bytes that its signature is for. Received: "
                    f"parity made on {said.created:%Y-%m-%d %H:%M:%S} UTC of other bytes than "
                    f"{str(place)!r} is for, which is genuine. One of them is older: repairing "
                    "would bring back another model. Protect the model again after signing it."
                )
            good.add(place)
    return good


def _read(place: Path, read: Callable[[Path], Manifest]) -> Manifest | None:
    if not os.path.lexists(place):
        return None
    try:
        return read(place)
    except UnsafePathError:
        raise
    except SignatureError:
        return None


def put_back(
    places: Places,
    trust: Trust,
    model_path: Path,
    said: ParityStatement,
    annex: Annex,
    good: set[Path],
) -> tuple[str, ...]:
    """Restores signature and statement from the parity file where those on the disk are not good.

    Those in the parity file must verify and be for the same bytes; else nothing is put back.

    Returns:
        The names of the files written.
    """
    own_names = places.names_inside(model_path)
    names = []
    for place, data, read in (
        (places.signature, annex.signature, lambda data: _signed(data, trust, own_names)),
        (places.statement, annex.statement, lambda data: _said(data, trust)),
    ):
        if place in good or not data:
            continue
        with contextlib.suppress(SignatureError):
            if agrees(read(data), said.manifest):
                publishing.write_atomically(place, data)
                names.append(place.name)
    return tuple(names)


def _signed(data: bytes, trust: Trust, own_names: tuple[str, ...]) -> Manifest:
    envelope = Envelope.from_bytes(data)
    trust.key_of(envelope.hint, envelope.certificates).check(
        envelope.signature, pre_authentication_encoding(envelope.payload)
    )
    return openssf_statement.from_bytes(envelope.payload, own_names=own_names)


def _said(data: bytes, trust: Trust) -> Manifest:
    payload = DsseEnvelope.from_bytes(data).verified_payload(trust)
    return ModelStatement.from_bytes(payload).manifest
