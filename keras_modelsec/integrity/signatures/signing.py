"""Signs a model file or folder: an OpenSSF signature, and a statement of our own beside it.

Owns what is written and in which order. Hashing is in describing.py, the formats in statement.py
and model_statement.py.
"""

import dataclasses
import datetime
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_modelsec._core.checks import check_boolean, check_integer
from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import SignatureError
from keras_modelsec.integrity.keys.certificates import Certificates, load_certificate_chain
from keras_modelsec.integrity.keys.key_loading import PrivateKeySource, load_signing_key
from keras_modelsec.integrity.keys.signing_key import SigningKey
from keras_modelsec.integrity.keys.trust import Trust
from keras_modelsec.integrity.secrets import Password
from keras_modelsec.integrity.signatures import statement
from keras_modelsec.integrity.signatures.describing import Description, describe_for_signing
from keras_modelsec.integrity.signatures.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec.integrity.signatures.envelope import MAX_SIGNATURE_BYTES, Envelope
from keras_modelsec.integrity.signatures.hashing import Progress
from keras_modelsec.integrity.signatures.manifest import Manifest, check_file_name
from keras_modelsec.integrity.signatures.model_statement import (
    ModelStatement,
    ParityRecord,
    read_statement,
)
from keras_modelsec.integrity.signatures.places import Places
from keras_modelsec.integrity.signatures.provenance import collect


def make_signature(
    manifest: Manifest,
    key: SigningKey,
    *,
    ignored: Sequence[str] = (),
    certificates: Sequence[bytes] = (),
) -> bytes:
    """The OpenSSF signature file's bytes for a manifest.

    Args:
        manifest: What is signed.
        key: Who signs; an ECDSA key.
        ignored: Names of signature and statement, if they are to lie inside the signed folder.
        certificates: The key's certificate chain, from `load_certificate_chain`, or none.

    Raises:
        ValueError: If the model has no file, or so many that the signature grows past what
            `verify` reads, or a name that it refuses.
    """
    if not manifest.digests:
        raise ValueError(
            "`path` must hold at least one file. Received: an empty folder. "
            "Save the model there first."
        )
    payload = statement.to_bytes(manifest, ignore_paths=sorted(ignored))
    check_readable(lambda: statement.from_bytes(payload, own_names=ignored))
    data = Envelope.sign(payload, key, certificates).to_bytes()
    _check_size(data, MAX_SIGNATURE_BYTES, len(manifest.digests))
    return data


def make_statement(said: ModelStatement, keys: Sequence[SigningKey]) -> bytes:
    """The statement file's bytes, signed by each key.

    Raises:
        ValueError: If the model has no file, or the statement grows past what `verify` reads, or
            says what `verify` refuses.
    """
    if not said.files:
        raise ValueError(
            "`path` must hold at least one file. Received: an empty folder. "
            "Save the model there first."
        )
    payload = said.to_bytes()
    check_readable(lambda: ModelStatement.from_bytes(payload))
    data = DsseEnvelope.sign(payload, keys).to_bytes()
    _check_size(data, MAX_ENVELOPE_BYTES, len(said.files))
    return data


def check_readable(read: Callable[[], object]) -> None:
    """Refuses to sign what would then be refused, in place of what was there and good.

    Args:
        read: Reads what is to be signed as `verify` will.

    Raises:
        ValueError: If that fails.
    """
    try:
        read()
    except SignatureError as error:
        raise ValueError(
            f"What is signed must be what `verify` accepts. {error} Choose another name or version."
        ) from None


def _check_size(data: bytes, limit: int, count: int) -> None:
    if len(data) > limit:
        raise ValueError(
            f"A signature file must have at most {limit} bytes. Received: a folder "
            f"of {count} files, whose signature has {len(data)}. Sign an archive."
        )


def sign(
    path: "str | os.PathLike[str]",
    signing_key: PrivateKeySource,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
    password: Password = None,
    co_signing_keys: Iterable[PrivateKeySource] = (),
    certificate_chain: "Certificates | None" = None,
    name: str | None = None,
    version: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    reuse_unchanged: bool = False,
    progress: Progress = None,
) -> Path:
    """Signs a model file, or all files below a folder, and writes two files beside it.

    `NAME.sig` is a Sigstore bundle v0.3 with an in-toto statement that holds each file's SHA-256
    (OpenSSF Model Signing v1.0); `verify`, and the `model_signing` command, check it. An ECDSA key
    makes it. `NAME.modelsec.json` is a statement of our own on the same bytes: digests per tensor
    and per piece of 256 KiB, a version, and where the model comes from; any key makes it, and
    co-signers may join. Each is written atomically.

    It says that the holder of the key signed these bytes, not that they are good: a signed model
    can still be a bad or a malicious one, and a folder's empty subfolders, permissions and times
    are not covered. Provenance is the signer's word, published with the model: put no secret there.

    Args:
        path: A file or folder. Symbolic links, in it or to it, are refused.
        signing_key: Path of a PEM private key, PEM text or bytes, a `cryptography` key object, a
            callable, an `ms.integrity.EnvironmentVariable` or an `ms.integrity.ExternalSigner`:
            ECDSA on P-256, P-384 or P-521; or Ed25519 or ML-DSA-65, which make the statement alone.
        signature_path: Where to write "NAME.sig"; the statement goes beside it. Defaults to `path`
            with ".sig" added. Inside the signed folder, both are left out of what is signed.
        password: What the key is encrypted with: str, bytes or a callable. Default None.
        co_signing_keys: Further keys that sign the statement, e.g. an ML-DSA-65 key, so that it
            holds against quantum computers too. Not encrypted, or `SigningKey` objects.
        certificate_chain: X.509 certificates for `signing_key` (an ECDSA key): the signer's first,
            then who certified whom: path of a PEM file, PEM, or a list. They go into "NAME.sig" in
            place of the key's hint; who trusts their root (`ms.integrity.TrustedRoots`) can
            verify. Default None.
        name: What the model is called, for lowest versions in a `TrustStore`. Defaults to the
            earlier statement's name, or the last part of `path`.
        version: Integer >= 1. Defaults to one more than that of the statement it replaces if that
            was signed by the same key, else 1.
        provenance: JSON object that says where the model comes from, such as
            `{"dataset_sha256": ...}`; package versions and what a .keras file says of itself are
            added.
        reuse_unchanged: Whether files that cannot have changed since they were last signed by this
            key are not hashed again: the file system's own time of change (which a forged mtime
            moves) and inode are those of then. On Linux with ext4, xfs or f2fs, for files that are
            this user's and that nobody else may write to; others, and by default all, are hashed.
            Root and other programs of this user can deceive it.
        progress: Called with bytes done and bytes in all.

    Returns:
        The path of "NAME.sig", or of the statement if the key makes no OpenSSF signature.

    Raises:
        KeyFormatError: If a key cannot be used; WrongPasswordError if the password is the reason.
        FileNotFoundError: If there is nothing at `path`.
        UnsafePathError: If a symbolic link or special file is met.
        ValueError: If the folder is empty or has too many files, or an argument is out of range.
        OSError: If a file cannot be read or the signature not written.

    Example:
    ```python
    model.save("model.keras")
    ms.sign("model.keras", "owner.pem")  # writes model.keras.sig and model.keras.modelsec.json
    ```

    Reference: https://github.com/ossf/model-signing-spec, https://in-toto.io/Statement/v1
    """
    check_boolean("reuse_unchanged", reuse_unchanged)
    check_integer("version", version, minimum=1, optional=True)
    keys = [load_signing_key(signing_key, password), *map(load_signing_key, co_signing_keys)]
    model_path = files.absolute_path(path)
    places = Places.of(model_path, files.absolute_path(signature_path) if signature_path else None)
    own_names = _check_places(places, model_path)
    earlier = own_statement(places.statement, keys[0])
    description = describe_for_signing(
        model_path,
        skip=own_names,
        known=earlier if reuse_unchanged else None,
        progress=progress,
    )
    said = state(
        description,
        name=name or (earlier.model if earlier else model_path.name),
        version=version or (earlier.version + 1 if earlier else 1),
        provenance=collect(model_path, provenance),
        parity=_parity_kept(earlier, description),
    )
    chain = load_certificate_chain(certificate_chain, keys[0]) if certificate_chain else ()
    return write_signed(places, said, keys, own_names, chain)


def state(
    description: Description,
    *,
    name: str,
    version: int,
    provenance: Mapping[str, Any],
    parity: Iterable[ParityRecord] = (),
) -> ModelStatement:
    """A statement made now on what was described."""
    return ModelStatement(
        model=name,
        version=version,
        created=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        files=description.files,
        tensors=description.tensors,
        parity=tuple(parity),
        provenance=provenance,
    )


def write_signed(
    places: Places,
    said: ModelStatement,
    keys: Sequence[SigningKey],
    own_names: Sequence[str] = (),
    certificates: Sequence[bytes] = (),
) -> Path:
    """Signs a statement and the OpenSSF manifest that goes with it, and writes both.

    Args:
        places: Where to.
        said: What is signed.
        keys: Who signs the statement; the first signs the OpenSSF manifest too if it can.
        own_names: The places' names inside the signed folder.
        certificates: The first key's certificate chain, or none.

    Returns:
        The path of the OpenSSF signature, or of the statement if there is none.
    """
    data = make_statement(said, keys)
    if not keys[0].verifying_key.makes_openssf:
        files.write_atomically(places.statement, data)
        if os.path.lexists(places.signature):
            places.signature.unlink()  # of an earlier key, on other bytes perhaps
        return places.statement
    signature = make_signature(said.manifest, keys[0], ignored=own_names, certificates=certificates)
    files.write_atomically(places.signature, signature)
    files.write_atomically(places.statement, data)
    return places.signature


def state_parity(places: Places, key: SigningKey, parity: ParityRecord) -> bool:
    """Names a parity file in the statement in place, which is signed anew and otherwise unchanged.

    Args:
        places: Where signature and statement are.
        key: The key that signed the statement; co-signers must sign again by `sign`.
        parity: Replaces an earlier record of the same name.

    Returns:
        Whether there was a statement by `key`.
    """
    said = own_statement(places.statement, key)
    if said is None:
        return False
    others = tuple(record for record in said.parity if record.name != parity.name)
    said = dataclasses.replace(said, parity=(*others, parity))
    files.write_atomically(places.statement, make_statement(said, [key]))
    return True


def own_statement(place: Path, key: SigningKey) -> ModelStatement | None:
    """The statement at `place` if it was signed by `key`; None if there is none such."""
    try:
        return read_statement(place, Trust({key.verifying_key.hint: key.verifying_key}))
    except (SignatureError, OSError):
        return None


def _parity_kept(
    earlier: ModelStatement | None, description: Description
) -> tuple[ParityRecord, ...]:
    """The parity files of the earlier statement, if it was on the same bytes."""
    if earlier is None or earlier.manifest.digests != {
        name: record.sha256 for name, record in description.files.items()
    }:
        return ()
    return earlier.parity


def _check_places(places: Places, model_path: Path) -> tuple[str, ...]:
    if model_path in (places.signature, places.statement):
        raise ValueError(
            "`signature_path` must differ from `path`. Received: "
            f"{str(model_path)!r} for both. The signature would replace the model."
        )
    own_names = places.names_inside(model_path)
    for own_name in own_names:
        check_file_name(own_name)
    files.check_target(places.signature)
    files.check_target(places.statement)
    return own_names
