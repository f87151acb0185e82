"""Makes a model's parity file, from which `repair` restores damaged bytes.

Owns what goes into the file and when it may be made. Encoding is in parity_encoding.py, the file's
format in parity_file.py and parity_statement.py.
"""

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from keras_modelsec._core.checks import check_number
from keras_modelsec._signing.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec._signing.key_files import PrivateKeySource, load_signing_key
from keras_modelsec._signing.keys import SigningKey
from keras_modelsec._signing.secrets import Password
from keras_modelsec._signing.sigstore_bundle import MAX_SIGNATURE_BYTES
from keras_modelsec._signing.trust import Trust, TrustedKeys, load_trust
from keras_modelsec._storage import files, publishing
from keras_modelsec._storage.byte_stream import ByteStream
from keras_modelsec.errors import SignatureError, UntrustedKeyError
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.parity import erasure_code
from keras_modelsec.integrity.parity.erasure_code import choose_geometry
from keras_modelsec.integrity.parity.parity_encoding import encode
from keras_modelsec.integrity.parity.parity_file import (
    Layout,
    header_digest,
    parity_path_of,
    record,
    record_length,
)
from keras_modelsec.integrity.parity.parity_report import ParityReport
from keras_modelsec.integrity.parity.parity_statement import (
    ENTRY_BYTES,
    PAGE_BYTES,
    Annex,
    ParityStatement,
    SignedFile,
    block_entry,
    pages_of,
)
from keras_modelsec.integrity.signing.describing import list_model, unread
from keras_modelsec.integrity.signing.evidence import Evidence, check_accepted, read_evidence
from keras_modelsec.integrity.signing.signing import check_readable, make_statement
from keras_modelsec.integrity.statements.manifest import Manifest, difference
from keras_modelsec.integrity.statements.model_statement import (
    ModelStatement,
    ParityRecord,
    read_statement,
)
from keras_modelsec.integrity.statements.places import LeftOut, Places, check_ignored

_SIGNATURE_ROOM = 16  # a DER signature may be some bytes longer the next time


def write_parity(
    path: "str | os.PathLike[str]",
    signing_key: PrivateKeySource,
    *,
    redundancy: float = 0.05,
    password: Password = None,
    co_signing_keys: Iterable[PrivateKeySource] = (),
    trusted_keys: "TrustedKeys | None" = None,
    parity_path: "str | os.PathLike[str] | None" = None,
    signature_path: "str | os.PathLike[str] | None" = None,
    ignore: "str | Iterable[str]" = (),
    progress: Progress = None,
) -> ParityReport:
    """Writes signed parity of a model beside it, from which `repair` restores the exact bytes.

    The model's bytes are cut into blocks (4 KiB up to 64 MiB, 64 KiB at 1 GiB); each group of up to
    100 blocks that lie far apart gets `redundancy` times as many parity blocks, and that many of
    the group may be damaged or gone. So with 5 %: any burst of up to 5 % of the model, a missing
    file of that size, or thousands of scattered flips as long as no group has more than five bad
    blocks; about a bad block in sixty, scattered at random. Bytes inserted, removed or moved count
    only for the blocks they cut through.

    Sign the model first and protect it then, so that its signature can be restored too. A signature
    or statement that is there must verify, as for `verify`, by one of the keys given or by
    `trusted_keys`: `repair` brings back what parity is of, so it must not be what a stranger
    signed. Parity of a model without any rests on the keys given alone. After any intended change,
    sign and protect again: parity of other bytes than the signed ones is refused by `repair`.
    Parity lies beside the model, so it does not help when the whole disk fails.

    Args:
        path: A file or folder. Symbolic links, in it or to it, are refused.
        signing_key: As for `sign`; of any algorithm.
        redundancy: Parity in proportion to the model's bytes, above 0 and at most 1. Digests for
            finding the damage come on top: about 2 % at 4 KiB a block, 0.15 % at 64 KiB.
        password: What the key is encrypted with: str, bytes or a callable. Default None.
        co_signing_keys: Further keys, as for `sign`.
        trusted_keys: As for `verify`: whose signature the model must have, if not that of one of
            the keys above. Default None: theirs, or no signature at all.
        parity_path: Where to write. Defaults to `path` with ".parity" added.
        signature_path: Where the model's signature is, if not beside it.
        ignore: Files or folders inside the model's folder to leave out, as for `sign`.
        progress: Called with bytes done and bytes in all.

    Returns:
        Where parity is, what can be restored from it, and whose signature on the model it rests on.

    Raises:
        ImportError: If `pyeclib` (the `repair` extra) is not installed.
        TamperedModelError: If the model is not what its signature says: it would be protected
            with its damage.
        UntrustedKeyError: A SignatureError: what is there was signed by none of these keys.
        UnsafePathError: A SignatureError, as for `sign`.
        SignatureError: If a signature is malformed, missing where `trusted_keys` are given, refused
            by a `TrustStore`, or a file changes while it is read.
        KeyFormatError: If a key cannot be used; WrongPasswordError if the password is the reason.
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If an argument is out of range, or the folder is empty.
        OSError: If a file cannot be read or the parity not written.

    Example:
    ```python
    ms.sign("model.keras", "owner.pem")
    ms.write_parity("model.keras", "owner.pem", redundancy=0.05)  # writes model.keras.parity
    ```

    Reference: docs/parity-format.md
    """
    redundancy = check_number("redundancy", redundancy, above=0, maximum=1)
    erasure_code.check_available()
    keys = [load_signing_key(signing_key, password), *map(load_signing_key, co_signing_keys)]
    model_path = files.absolute_path(path)
    places = Places.of(model_path, files.absolute_path(signature_path) if signature_path else None)
    target = files.absolute_path(parity_path) if parity_path else parity_path_of(model_path)
    _check_target(target, model_path, places)
    files.check_no_strangers(model_path)
    model = _Model.find(model_path, places, check_ignored(ignore))
    evidence = _Evidence.read(places, model, keys, trusted_keys)
    _check_lengths(model, evidence.said)
    with publishing.published(target, mode=0o644) as file:
        envelope, statement = _write(file, model, evidence, keys, redundancy, progress)
        model.check_unchanged()
        size = os.fstat(file.fileno()).st_size
    _mention(places, ParityRecord(target.name, size, header_digest(envelope)), keys)
    return ParityReport(
        path=model_path,
        parity=target,
        size=size,
        name=statement.model,
        version=statement.version,
        signers=tuple(key.verifying_key.hint for key in keys),
        rests_on=evidence.signers,
        blocks=statement.geometry.blocks,
        block_size=statement.geometry.block_size,
        groups=statement.geometry.stripes,
        lost_per_group=statement.geometry.parity,
    )


@dataclass(frozen=True)
class _Model:
    """A model's files as they were found."""

    path: Path
    files: Mapping[str, Path]
    found: Mapping[str, os.stat_result]

    @classmethod
    def find(cls, path: Path, places: Places, ignored: tuple[str, ...]) -> "_Model":
        listed = list_model(path, LeftOut(places.names_inside(path), ignored))
        if not listed:
            raise ValueError(
                "`path` must hold at least one file. Received: an empty folder. "
                "Save the model there first."
            )
        return cls(path, listed, {name: os.lstat(place) for name, place in listed.items()})

    @property
    def stream(self) -> ByteStream:
        return ByteStream((self.files[name], self.found[name].st_size) for name in self.files)

    def digests(self) -> dict[str, str]:
        """The whole-file digests, one file after another."""
        return {name: files.hash_file(place) for name, place in self.files.items()}

    def check_unchanged(self) -> None:
        for name, place in self.files.items():
            before, after = self.found[name], os.lstat(place)
            if files.identity(before) != files.identity(after):
                raise SignatureError(
                    "A model must not change while parity is made. Received: "
                    f"{str(place)!r}, which was written to meanwhile. Try again when its writer "
                    "has finished."
                )


@dataclass(frozen=True)
class _Evidence:
    """The model's signature and statement, as they are on the disk, and what they say."""

    signature: bytes
    statement: bytes
    manifests: Sequence[Manifest]
    said: ModelStatement | None
    signers: tuple[str, ...]

    @classmethod
    def read(
        cls,
        places: Places,
        model: _Model,
        keys: Sequence[SigningKey],
        trusted_keys: "TrustedKeys | None",
    ) -> "_Evidence":
        """What is there, verified as by `verify`; nothing only if nobody is said to be trusted."""
        found: Sequence[Evidence] = ()
        is_stated = os.path.lexists(places.statement)
        trust = _trust_of(keys, trusted_keys)
        if is_stated or os.path.lexists(places.signature) or trusted_keys is not None:
            found = _verified(places, model.path, trust)
        is_read = trust.reads_openssf or not is_stated  # else nobody has checked it
        return cls(
            _read_bytes(places.signature, MAX_SIGNATURE_BYTES) if is_read else b"",
            _read_bytes(places.statement, MAX_ENVELOPE_BYTES),
            [item.manifest for item in found],
            next((item.statement for item in found if item.statement), None),
            tuple(dict.fromkeys(who for item in found for _, who in item.signers)),
        )


def _trust_of(keys: Sequence[SigningKey], trusted_keys: "TrustedKeys | None") -> Trust:
    if trusted_keys is not None:
        return load_trust(trusted_keys)
    return Trust({key.verifying_key.hint: key.verifying_key for key in keys})


def _verified(places: Places, model: Path, trust: Trust) -> list[Evidence]:
    own_names = places.names_inside(model)
    try:
        found = read_evidence(places, trust, own_names, pending_of=None)
    except UntrustedKeyError:
        raise UntrustedKeyError(
            "Parity is made of what one of the keys given, or of `trusted_keys`, signed. Received: "
            f"{str(model)!r}, which others signed, or a certificate names. If you trust the "
            "signer, pass the public key, or TrustedRoots for a certificate, as `trusted_keys`; "
            "else sign the model first."
        ) from None
    if not found:
        raise SignatureError(
            "Signature and statement must speak of the same bytes. Received: "
            f"{str(places.signature)!r} and {str(places.statement)!r}, which do not. Sign again."
        )
    return [check_accepted(item, trust) for item in found]


def _check_lengths(model: _Model, said: ModelStatement | None) -> None:
    """Refuses a model of other lengths than the signed ones before it is read, however long."""
    if said is None:
        return
    sizes = {name: found.st_size for name, found in model.found.items()}
    digests = {}
    for name, size in sizes.items():
        signed = said.files.get(name)
        good = signed is not None and signed.size == size
        digests[name] = (
            signed.sha256 if signed and good else unread(size, signed.size if signed else None)
        )
    if digests != dict(said.manifest.digests):
        raise difference(said.manifest, Manifest(model.path.name, digests), model.path)


def _read_bytes(place: Path, limit: int) -> bytes:
    return files.read_limited(place, limit) if os.path.lexists(place) else b""


def _check_target(target: Path, model_path: Path, places: Places) -> None:
    if target in (model_path, places.signature, places.statement) or model_path in target.parents:
        raise ValueError(
            "`parity_path` must lie outside of the model and be no other file of it. "
            f"Received: {str(target)!r}. Leave it out, and parity lies beside the model."
        )
    publishing.check_target(target)


def _write(
    file: BinaryIO,
    model: _Model,
    evidence: _Evidence,
    keys: Sequence[SigningKey],
    redundancy: float,
    progress: Progress,
) -> tuple[bytes, ParityStatement]:
    """Writes all parts of a parity file; returns the signed envelope, and what it says."""
    draft = _draft(model, evidence, redundancy)
    draft = replace(draft, record_bytes=_record_bytes(draft, keys))
    check_readable(lambda: ParityStatement.from_bytes(draft.to_bytes()))
    with ThreadPoolExecutor(1) as pool, model.stream as stream:
        digests = pool.submit(model.digests)
        blocks, parity = write_blocks(file, draft, stream, progress)
        actual = Manifest(model.path.name, digests.result())
    for signed in evidence.manifests:
        if not agrees(signed, actual):
            raise difference(signed, actual, model.path)
    annex = Annex(blocks, parity, evidence.signature, evidence.statement).to_bytes()
    statement = replace(
        draft,
        files={
            name: SignedFile(draft.files[name].size, actual.digests[name]) for name in model.files
        },
        pages=b"".join(map(block_entry, pages_of(annex))),
    )
    envelope = DsseEnvelope.sign(statement.to_bytes(), keys).to_bytes()
    write_digests(file, statement, envelope, annex)
    return envelope, statement


def _draft(model: _Model, evidence: _Evidence, redundancy: float) -> ParityStatement:
    """The statement with zeros for digests, which has the length of the final one."""
    sizes = {name: found.st_size for name, found in model.found.items()}
    said = evidence.said
    draft = ParityStatement(
        model=said.model if said else model.path.name,
        version=said.version if said else None,
        created=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        files={name: SignedFile(size, "0" * 64) for name, size in sizes.items()},
        geometry=choose_geometry(sum(sizes.values()), redundancy),
        record_bytes=1 << 32,
        lengths=(len(evidence.signature), len(evidence.statement)),
        pages=b"",
    )
    pages = -(-draft.annex_bytes // PAGE_BYTES)
    return replace(draft, pages=bytes(pages * ENTRY_BYTES))


def _record_bytes(draft: ParityStatement, keys: Sequence[SigningKey]) -> int:
    envelope = DsseEnvelope.sign(draft.to_bytes(), keys).to_bytes()
    return record_length(len(envelope) + _SIGNATURE_ROOM * len(keys))


def write_blocks(
    file: BinaryIO, statement: ParityStatement, stream: ByteStream, progress: Progress = None
) -> tuple[bytes, bytes]:
    """Writes the parity blocks of the bytes in `stream` to their place in a parity file.

    Returns:
        The entries of data and parity blocks.
    """
    start = Layout.of(statement).parity

    def write(position: int, data: memoryview) -> None:
        file.seek(start + position)
        file.write(data)

    return encode(stream, statement.geometry, write, progress)


def write_digests(
    file: BinaryIO, statement: ParityStatement, envelope: bytes, annex: bytes
) -> None:
    """Writes records and annexes to their places in a parity file."""
    layout = Layout.of(statement)
    for start in layout.records:
        file.seek(start)
        file.write(record(envelope, statement.record_bytes))
    for start in layout.annexes:
        file.seek(start)
        file.write(b"".join(pages_of(annex)))
    file.flush()


def agrees(signed: Manifest, actual: Manifest) -> bool:
    """Whether two manifests speak of the same bytes; a single file's name does not matter."""
    if actual.is_single_file and len(signed.digests) == 1:
        return list(signed.digests.values()) == list(actual.digests.values())
    return signed.digests == actual.digests


def _mention(places: Places, parity: ParityRecord, keys: Sequence[SigningKey]) -> None:
    """Names the parity file in the model's statement, if these keys are all that signed it."""
    trust = Trust({key.verifying_key.hint: key.verifying_key for key in keys})
    if not os.path.lexists(places.statement):
        return
    data = files.read_limited(places.statement, MAX_ENVELOPE_BYTES)
    signers = {hint for hint, _ in DsseEnvelope.from_bytes(data).signatures}
    if signers == {key.verifying_key.hint for key in keys}:
        said = replace(read_statement(places.statement, trust), parity=(parity,))
        publishing.write_atomically(places.statement, make_statement(said, keys))
