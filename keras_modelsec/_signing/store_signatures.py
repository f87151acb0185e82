"""The file of a trust store: who must have signed it.

Owns the payload type, the limits, and the rule of roots that reading and writing share.
"""

from collections.abc import Mapping, Sequence

from keras_modelsec._signing.dsse import DsseEnvelope
from keras_modelsec._signing.keys import SigningKey, VerifyingKey
from keras_modelsec._signing.trust import Trust
from keras_modelsec._signing.trust_store_contents import TrustStoreContents
from keras_modelsec.errors import UntrustedKeyError

PAYLOAD_TYPE = "application/vnd.keras-modelsec.trust-store.v1+json"
MAX_STORE_BYTES = 16 << 20


def sign_store(contents: TrustStoreContents, signers: Sequence[SigningKey]) -> bytes:
    """The file's bytes, read back once before they replace anything.

    Raises:
        ValueError: If they are too many.
    """
    data = DsseEnvelope.sign(contents.to_bytes(), signers, PAYLOAD_TYPE).to_bytes()
    if len(data) > MAX_STORE_BYTES:
        raise ValueError(
            f"A trust store must have at most {MAX_STORE_BYTES} bytes. Received: {len(data)}. "
            "Drop keys that have expired."
        )
    read_signed(data, {key.verifying_key.hint: key.verifying_key for key in signers}, 1)
    return data


def read_signed(
    data: bytes, trusted: Mapping[str, VerifyingKey], needed: int
) -> TrustStoreContents:
    """The contents, once the reader's root keys, and then the store's own roots, have signed.

    Args:
        data: The file's bytes; untrusted.
        trusted: The root keys the reader holds, by hint.
        needed: How many of them must have signed.

    Raises:
        SignatureError: If they have not, or the file is malformed.
    """
    envelope = DsseEnvelope.from_bytes(data, payload_type=PAYLOAD_TYPE, what="The trust store")
    contents = TrustStoreContents.from_bytes(_signed(envelope, trusted, needed, "`root_keys`"))
    _signed(envelope, contents.roots, contents.root_threshold, "the roots it names")
    return contents


def _signed(
    envelope: DsseEnvelope, keys: Mapping[str, VerifyingKey], needed: int, whose: str
) -> bytes:
    try:
        return envelope.verified_payload(Trust(keys, threshold=needed))
    except UntrustedKeyError:
        names = ", ".join(f"{hint[:16]}..." for hint in keys)
        signers = ", ".join(f"{hint[:16]}..." for hint, _ in envelope.signatures)
        raise UntrustedKeyError(
            f"A trust store must be signed by {needed} of {whose} ({names}). Received: one signed "
            f"by {signers}. If its roots were rotated, load a version between, or trust the new "
            "root."
        ) from None


def check_signers(
    signers: Sequence[SigningKey], roots: Mapping[str, VerifyingKey], needed: int, whose: str
) -> None:
    """Refuses to sign with too few of the roots."""
    signing = {key.verifying_key.hint for key in signers} & set(roots)
    if roots and len(signing) < needed:
        names = ", ".join(f"{hint[:16]}..." for hint in roots)
        raise ValueError(
            f"`root_keys` must hold {needed} of {whose} roots ({names}). Received: {len(signing)}. "
            "Sign with the old root and the new one when you rotate."
        )
