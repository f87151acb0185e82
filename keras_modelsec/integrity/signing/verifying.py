"""Verifies a model against its signature and statement, more strictly than other tools do.

Owns the comparison of what was found with what was signed. Which files vouch for a model and when
they are enough is in evidence.py, how a model's bytes are read in describing.py.
"""

import os
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from keras_modelsec._signing.trust import Threshold, Trust, TrustedKeys, load_trust
from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.signing.describing import Comparison, compare
from keras_modelsec.integrity.signing.evidence import (
    ATTEMPTS,
    Evidence,
    agree,
    check_accepted,
    normalise,
    read_evidence,
)
from keras_modelsec.integrity.statements.manifest import Manifest, difference
from keras_modelsec.integrity.statements.model_statement import ModelStatement
from keras_modelsec.integrity.statements.places import LeftOut, Places, check_ignored

# How a model is read: given the statement to compare with, if there is one, and the names inside a
# folder to leave out. It may be called more than once.
ReadModel: TypeAlias = Callable[[ModelStatement | None, Container[str]], Comparison]


def verify(
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    signature_path: "str | os.PathLike[str] | None" = None,
    expected_name: str | None = None,
    threshold: Threshold = 1,
    ignore: "str | Iterable[str]" = (),
    progress: Progress = None,
) -> None:
    """Returns None if the model is exactly what a trusted key signed; raises otherwise.

    In this order: `NAME.sig` and `NAME.modelsec.json`, as far as they are there, are parsed
    strictly, their key hints must name trusted keys, the signatures must be those keys', only then
    is what they say parsed; both must speak of the same bytes; and every file must be there with
    the signed bytes and no other file beside them. One of the two files is enough, unless a
    `TrustStore` asks for versions or several signatures, which only the statement has. If no
    trusted key is ECDSA, `NAME.sig`, which none of them can have made, is not looked at.

    The answer holds for the bytes that were read. What is at `path` a moment later may be something
    else: to load a model, use `load_verified_model`, which loads what it verified. That the model
    is the newest one the owner signed is shown only with a `TrustStore` that names the lowest
    version.

    Args:
        path: A file or folder. Symbolic links, in it or to it, are refused.
        trusted_keys: Path of a PEM public key, PEM text or bytes, a `cryptography` key object, a
            list of these, a `TrustStore` or an `ms.trust.TrustedRoots`. Of several, one that
            signed is enough, unless `threshold` says otherwise.
        signature_path: Where the signature is; the statement is beside it. Defaults to `path` with
            ".sig" added; pending ones ("NAME.sig.next"), left when `SignOnSave` was killed between
            its renames, then count too if they verify.
        expected_name: The name it must have been signed under (`sign(name=...)`), or None for any.
            Without it, another model of the same owner in the model's place verifies, and a lowest
            version is looked up by the name that was signed.
        threshold: How many different ones of `trusted_keys` must have signed the statement, integer
            >= 1; or "all": each of them, so that a co-signature cannot be taken off unseen. What
            certificates vouch for counts as one key. Above 1, `NAME.sig` alone, which has one
            signature, is not enough. A store's own threshold holds too. Default 1.
        ignore: Files or folders inside the model's folder that are not looked at, such as ".git",
            unless they are signed. Whatever they hold is not vouched for: nothing that loads the
            model may read them. What the signer ignored is not ignored for that. Default: none.
        progress: Called with bytes done and bytes in all.

    Raises:
        SignatureError: If the signature is missing, malformed, of an unsupported kind or forged, or
            a symbolic link or special file is met.
        UntrustedKeyError: A SignatureError: signed by a key that is not trusted, or no more.
        RolledBackError, RevokedModelError: A SignatureError: a `TrustStore` refuses this model.
        TamperedModelError: A SignatureError: the signature is genuine, the files are not; says
            which file was changed, added or is missing, and which tensors.
        KeyFormatError: If a trusted key cannot be used.
        ValueError: If `trusted_keys` is empty, or has fewer keys than `threshold`.
        FileNotFoundError: If there is nothing at `path`.
        OSError: If a file cannot be read.

    Example:
    ```python
    ms.verify("model.keras", "owner.pub")
    ```
    """
    trust = load_trust(trusted_keys, threshold=threshold)
    model_path = files.absolute_path(path)
    explicit = files.absolute_path(signature_path) if signature_path else None
    check_path(model_path, trust, explicit, expected_name, ignore, progress)


def check_path(
    model_path: Path,
    trust: Trust,
    signature_path: Path | None,
    expected_name: str | None = None,
    ignore: "str | Iterable[str]" = (),
    progress: Progress = None,
) -> Evidence:
    """As `verify`; returns what vouches for the model."""
    ignored = check_ignored(ignore)
    files.kind_of(model_path)

    def read_model(guide: ModelStatement | None, skip: Container[str]) -> Comparison:
        return compare(model_path, guide, skip=skip, progress=progress)

    found = check_model(model_path, trust, read_model, signature_path, expected_name, ignored)
    if not ignored or found.manifest.is_single_file:
        return found
    own = Places.of(model_path, signature_path).names_inside(model_path)
    left_out = LeftOut(own=own, ignored=ignored, signed=frozenset(found.manifest.digests))
    there = sorted(path for path in ignored if os.path.lexists(model_path / path))
    return replace(found, ignored=tuple(path for path in there if path in left_out))


def check_model(
    model_path: Path,
    trust: Trust,
    read_model: ReadModel,
    signature_path: Path | None,
    expected_name: str | None = None,
    ignored: tuple[str, ...] = (),
) -> Evidence:
    """Compares what `read_model` finds with what was signed.

    The model is read once, or again while its signature changes under the reader's eyes.

    Args:
        model_path: An absolute path, for the places of signature and statement and the messages.
        trust: Whom the signatures may be by.
        read_model: Reads the model.
        signature_path: An absolute path, or None for the place beside the model.
        expected_name: The name it must have been signed under, or None for any.
        ignored: Paths inside a folder, from `check_ignored`, that are looked at only if signed.

    Returns:
        What the trusted keys say of it.

    Raises:
        SignatureError: As `verify` does.
    """
    places = Places.of(model_path, signature_path)
    own = places.names_inside(model_path, openssf=trust.reads_openssf)
    pending_of = model_path if signature_path is None else None
    for _ in range(ATTEMPTS):
        # A live SignOnSave may be renaming its files: while we read them, or while we hash.
        expected = read_evidence(places, trust, own, pending_of=pending_of)
        if not expected:
            continue
        signed = frozenset(name for item in expected for name in item.manifest.digests)
        found = _read(read_model, expected, LeftOut(own, ignored, signed))
        again = read_evidence(places, trust, own, pending_of=pending_of)
        agreeing = [item for item in (*expected, *again) if agree(item.manifest, found.manifest)]
        if agreeing:
            return _first_accepted(agreeing, trust, expected_name)
        if again == expected:
            break
    if not expected:
        raise SignatureError(
            f"Signature and statement must speak of the same bytes. Received: "
            f"{str(places.signature)!r} and {str(places.statement)!r}, which do not. "
            "One of them is older than the other: sign the model again."
        )
    wanted = expected[0].manifest
    _check_same_kind(wanted, found.manifest, model_path)
    normal = normalise(wanted, found.manifest)
    raise difference(normal, found.manifest, model_path, found.tensor_names())


def _read(read_model: ReadModel, expected: Sequence[Evidence], skip: Container[str]) -> Comparison:
    """What is there, read by the guide of the first evidence that it agrees with.

    What the first one's lengths rule out is not read; it may be what a pending one is about.
    """
    first = read_model(expected[0].statement, skip)
    found = first
    for item in expected[1:]:
        if any(agree(other.manifest, found.manifest) for other in expected):
            return found
        if item.statement is not None and item.statement is not expected[0].statement:
            found = read_model(item.statement, skip)
    return found if any(agree(o.manifest, found.manifest) for o in expected) else first


def _first_accepted(
    agreeing: Sequence[Evidence], trust: Trust, expected_name: str | None
) -> Evidence:
    """The first evidence that is accepted: one in place may be older than one that is pending."""
    refusal: SignatureError | None = None
    for item in agreeing:
        try:
            return check_accepted(item, trust, expected_name)
        except SignatureError as error:
            refusal = refusal or error
    raise refusal or SignatureError("A model must come with evidence. Received: none.")


def _check_same_kind(expected: Manifest, actual: Manifest, path: Path) -> None:
    if normalise(expected, actual).is_single_file != actual.is_single_file:
        found = "a file" if actual.is_single_file else "a folder"
        names = ", ".join(repr(name) for name in sorted(expected.digests)[:5])
        raise SignatureError(
            f"A signature must be for what it is used on. Received: one for {names} (of "
            f"{expected.model_name!r}), with {str(path)!r}, which is {found}. "
            "Use the signature that was made for it."
        )
