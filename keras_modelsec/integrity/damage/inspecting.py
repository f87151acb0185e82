"""What comes with a model, told without believing it: signers, version, files, tensors, provenance.

Owns the reading of signature and statement for people who want to see them before they know whom to
trust. Nothing here is verified; the caller says so, or verifies.
"""

from dataclasses import dataclass
from pathlib import Path

from keras_modelsec.integrity import files
from keras_modelsec.integrity.damage.file_structure import read_structure
from keras_modelsec.integrity.errors import SignatureError
from keras_modelsec.integrity.signatures.describing import list_model
from keras_modelsec.integrity.signatures.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec.integrity.signatures.envelope import MAX_SIGNATURE_BYTES, Envelope
from keras_modelsec.integrity.signatures.model_statement import ModelStatement
from keras_modelsec.integrity.signatures.places import Places
from keras_modelsec.integrity.signatures.tensor_layout import TensorRecord

_LENGTHS = {64: "ed25519", 3309: "ml-dsa-65"}  # of signatures; those of ECDSA are DER


@dataclass(frozen=True)
class Signer:
    """Who is said to have signed, in which file.

    Attributes:
        file: The name of the signature or statement file.
        algorithm: By the kind of signature: "ecdsa", "ed25519", "ml-dsa-65" or "unknown".
        hint: Hex SHA-256 of the public key; "" if there are certificates instead.
    """

    file: str
    algorithm: str
    hint: str


@dataclass(frozen=True)
class Inspection:
    """What is there.

    Attributes:
        signers: One entry for each signature; none for an unsigned model.
        statement: What the statement says, unverified; None if there is none that can be read.
        sizes: By file name, the length in bytes of what is there.
        tensors: As the statement says, or if there is none as the files themselves do.
        problems: What is there and cannot be read.
    """

    signers: tuple[Signer, ...]
    statement: ModelStatement | None
    sizes: dict[str, int]
    tensors: tuple[TensorRecord, ...]
    problems: tuple[str, ...]


def inspect_model(path: Path, signature: Path | None = None) -> Inspection:
    """Reads what comes with a model; verifies nothing.

    Args:
        path: An absolute path of a file or folder.
        signature: Where its signature is, or None for beside it.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        UnsafePathError: If a symbolic link or special file is met.
        OSError: If a file cannot be read.
    """
    found = list_model(path, (places := Places.of(path, signature)).names_inside(path))
    problems: list[str] = []
    signers = _openssf_signers(places.signature, problems)
    more, statement = _read_statement(places.statement, problems)
    if statement:
        tensors = statement.tensors
    else:
        tensors = tuple(
            TensorRecord(t.path, t.shape, t.dtype, t.offset, t.nbytes, t.digest, name)
            for name, place in found.items()
            for t in (read_structure(place).tensors or {}).values()
        )
    sizes = {name: place.stat().st_size for name, place in found.items()}
    return Inspection((*signers, *more), statement, sizes, tensors, tuple(problems))


def _openssf_signers(place: Path, problems: list[str]) -> tuple[Signer, ...]:
    try:
        envelope = Envelope.from_bytes(files.read_limited(place, MAX_SIGNATURE_BYTES))
    except FileNotFoundError:
        return ()
    except SignatureError as error:
        problems.append(f"{place.name}: {error}")
        return ()
    return (Signer(place.name, "ecdsa", envelope.hint),)


def _read_statement(
    place: Path, problems: list[str]
) -> tuple[tuple[Signer, ...], ModelStatement | None]:
    try:
        envelope = DsseEnvelope.from_bytes(files.read_limited(place, MAX_ENVELOPE_BYTES))
        statement = ModelStatement.from_bytes(envelope.payload)
    except FileNotFoundError:
        return (), None
    except SignatureError as error:
        problems.append(f"{place.name}: {error}")
        return (), None
    signers = (Signer(place.name, _algorithm(sig), hint) for hint, sig in envelope.signatures)
    return tuple(signers), statement


def _algorithm(signature: bytes) -> str:
    is_der = signature[:1] == b"\x30" and len(signature) not in _LENGTHS
    return _LENGTHS.get(len(signature), "ecdsa" if is_der else "unknown")
