"""Signs a model file or folder: an OpenSSF signature, and a statement of our own beside it.

Owns what is written, in which order, and what is reported. Hashing is in describing.py, the formats
in openssf_statement.py and model_statement.py.
"""

import dataclasses
import datetime
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_modelsec._signing.certificates import Certificates, load_certificate_chain
from keras_modelsec._signing.dsse import MAX_ENVELOPE_BYTES, DsseEnvelope
from keras_modelsec._signing.key_files import PrivateKeySource, load_signing_key
from keras_modelsec._signing.keys import SigningKey
from keras_modelsec._signing.secrets import Password
from keras_modelsec._signing.sigstore_bundle import MAX_SIGNATURE_BYTES, Envelope
from keras_modelsec._storage import files, publishing
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.signing.describing import Description, describe_for_signing
from keras_modelsec.integrity.signing.provenance import collect
from keras_modelsec.integrity.signing.versions import (
    VersionSource,
    check_version,
    next_version,
    own_statement,
    stated_places,
)
from keras_modelsec.integrity.statements import openssf_statement
from keras_modelsec.integrity.statements.manifest import Manifest, check_file_name
from keras_modelsec.integrity.statements.model_statement import (
    ModelStatement,
    ParityRecord,
)
from keras_modelsec.integrity.statements.places import LeftOut, Places, check_ignored


@dataclass(frozen=True)
class SigningReport:
    """The outcome of `sign`, which succeeded.

    Attributes:
        path: The model.
        name: What it is called in the statement.
        version: Its version there.
        signers: Hex SHA-256 of the public key (as PEM) of each key that signed, the first's first.
        signature: "NAME.sig", or None if the first key makes no OpenSSF signature.
        statement: "NAME.modelsec.json".
    """

    path: Path
    name: str
    version: int
    signers: Sequence[str]
    signature: Path | None
    statement: Path

    @property
    def written(self) -> Sequence[Path]:
        """The files that were written."""
        return tuple(place for place in (self.signature, self.statement) if place is not None)

    def __str__(self) -> str:
        places = " and ".join(str(place) for place in self.written)
        keys = ", ".join(f"{hint[:16]}..." for hint in self.signers)
        return (
            f"Signed {str(self.path)!r} as version {self.version} of {self.name!r}, by {keys}: "
            f"{places}"
        )


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
        ignored: Names inside the signed folder that were left out: of signature and statement, if
            they are to lie there, and what the signer ignored.
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
    payload = openssf_statement.to_bytes(manifest, ignore_paths=sorted(set(ignored)))
    check_readable(lambda: openssf_statement.from_bytes(payload, own_names=ignored))
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
    version: VersionSource = None,
    provenance: Mapping[str, Any] | None = None,
    ignore: "str | Iterable[str]" = (),
    progress: Progress = None,
) -> SigningReport:
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
            callable, an `ms.trust.EnvironmentVariable` or an `ms.trust.ExternalSigner`:
            ECDSA on P-256, P-384 or P-521; or Ed25519 or ML-DSA-65, which make the statement alone.
        signature_path: Where to write "NAME.sig"; the statement goes beside it. Defaults to `path`
            with ".sig" added. Inside the signed folder, both are left out of what is signed.
        password: What the key is encrypted with: str, bytes or a callable. Default None.
        co_signing_keys: Further keys that sign the statement, e.g. an ML-DSA-65 key, so that it
            holds against quantum computers too. Not encrypted, or `SigningKey` objects.
        certificate_chain: X.509 certificates for `signing_key` (an ECDSA key): the signer's first,
            then who certified whom: path of a PEM file, PEM, or a list. They go into "NAME.sig" in
            place of the key's hint; who trusts their root (`ms.trust.TrustedRoots`) can
            verify. Default None.
        name: What the model is called, for lowest versions in a `TrustStore`. Defaults to the last
            part of `path`. Needed where a statement by one of the keys given is replaced that names
            another model: who can write to the folder may have put that one there.
        version: Integer >= 1; or a `TrustStore`: one more than its lowest version of `name`, and
            than what keys it holds, revoked ones too, stated here; or the path of a counter file, a
            JSON object of names and last versions (first `{}`), which is counted up. Defaults to
            one more than that of the statement it replaces, which one of the keys given must have
            signed; 1 if there is none, and no signature either: one without its statement says that
            there was an earlier version, and not which. With a store or a counter, a statement here
            that an unknown key signed and that claims a version as high is refused. A fresh
            checkout knows no earlier version: give one of the three there.
        provenance: JSON object that says where the model comes from, such as
            `{"dataset_sha256": ...}`; package versions and what a .keras file says of itself are
            added.
        ignore: Files or folders inside the folder that are not signed, such as ".git" or ".cache";
            nothing that loads the model may read them. "NAME.sig" lists them; who verifies must
            ignore them too (`verify(ignore=)`): what is listed hides nothing. Default: none.
        progress: Called with bytes done and bytes in all.

    Returns:
        What was signed, by whom, and where it was written.

    Raises:
        KeyFormatError: If a key cannot be used; WrongPasswordError if the password is the reason.
        FileNotFoundError: If there is nothing at `path`.
        UnsafePathError: If a symbolic link or special file is met, or, in a shared folder such as
            /tmp, a model that another user put there.
        ValueError: If the folder is empty or has too many files, an argument is out of range,
            `name` is None where a statement on another name would be replaced, or `version` is None
            where another key's would, or where a signature lies without its statement.
        OSError: If a file cannot be read or the signature not written.

    Example:
    ```python
    model.save("model.keras")
    ms.sign("model.keras", "owner.pem")  # writes model.keras.sig and model.keras.modelsec.json
    ```

    Reference: https://github.com/ossf/model-signing-spec, https://in-toto.io/Statement/v1
    """
    source = check_version(version)
    keys = [load_signing_key(signing_key, password), *map(load_signing_key, co_signing_keys)]
    model_path = files.absolute_path(path)
    places = Places.of(model_path, files.absolute_path(signature_path) if signature_path else None)
    own_names = _check_places(places, model_path)
    files.check_no_strangers(model_path)
    ignored = check_ignored(ignore)
    earlier = own_statement(places.statement, *keys)
    name = name or _name_of(model_path, earlier)
    number = next_version(source, name, stated_places(places), keys)
    description = describe_for_signing(
        model_path,
        skip=LeftOut(own_names, ignored),
        progress=progress,
    )
    said = state(
        description,
        name=name,
        version=number,
        provenance=collect(model_path, provenance),
        parity=_parity_kept(earlier, description),
    )
    chain = load_certificate_chain(certificate_chain, keys[0]) if certificate_chain else ()
    written = write_signed(places, said, keys, (*own_names, *ignored), chain)
    return SigningReport(
        path=model_path,
        name=said.model,
        version=said.version,
        signers=tuple(key.verifying_key.hint for key in keys),
        signature=None if written == places.statement else written,
        statement=places.statement,
    )


def _name_of(model: Path, earlier: ModelStatement | None) -> str:
    """The last part of the path, unless what is replaced was called otherwise."""
    if earlier is not None and earlier.model != model.name:
        raise ValueError(
            "`name=` must be given where a statement on another name would be replaced: a file "
            "that anybody put there would choose what the key says. Received: None for "
            f"{str(model)!r}, whose statement names {earlier.model!r}. Give "
            f"{earlier.model!r} if that is what it is, or {model.name!r}."
        )
    return model.name


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
        own_names: Names inside the signed folder that were left out: the places' and others.
        certificates: The first key's certificate chain, or none.

    Returns:
        The path of the OpenSSF signature, or of the statement if there is none.
    """
    data = make_statement(said, keys)
    if not keys[0].verifying_key.makes_openssf:
        publishing.write_atomically(places.statement, data)
        if os.path.lexists(places.signature):
            places.signature.unlink()  # of an earlier key, on other bytes perhaps
        return places.statement
    signature = make_signature(said.manifest, keys[0], ignored=own_names, certificates=certificates)
    publishing.write_atomically(places.statement, data)  # first: a signature alone has no version
    publishing.write_atomically(places.signature, signature)
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
    publishing.write_atomically(places.statement, make_statement(said, [key]))
    return True


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
    publishing.check_target(places.signature)
    publishing.check_target(places.statement)
    return own_names
