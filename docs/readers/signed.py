"""Opens the signed envelope that statements, trust stores and parity files share (DSSE in JSON).

One of the readers that need nothing of keras_modelsec: Python and `cryptography` alone.
"""

import base64
import binascii
import hashlib
import json

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_HASHES = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}


class RefusedError(ValueError):
    """The file is damaged, or not what a given key signed."""


def require(rule, what):
    """Refuses, in these words, what breaks a rule."""
    if not rule:
        raise RefusedError(what)


def digest(data):
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _once(pairs):
    require(len(dict(pairs)) == len(pairs), "a JSON field stands twice")
    return dict(pairs)


def open_envelope(data, payload_type, pems, threshold=1):
    """The JSON payload, if at least `threshold` of the public keys (PEM, bytes) have signed it."""
    try:
        envelope = json.loads(data, object_pairs_hook=_once)
        payload = base64.b64decode(envelope["payload"], validate=True)
        require(envelope["payloadType"] == payload_type, "the payload is of another type")
        signed = b"DSSEv1 %d %b %d %b" % (
            len(payload_type),
            payload_type.encode(),
            len(payload),
            payload,
        )
        keys, signers = dict(map(_key, pems)), set()
        for signature in envelope["signatures"]:
            if signature["keyid"] in keys:
                _check(keys[signature["keyid"]], base64.b64decode(signature["sig"]), signed)
                signers.add(signature["keyid"])
        require(len(signers) >= threshold, "too few of the given keys have signed")
        return json.loads(payload, object_pairs_hook=_once)
    except InvalidSignature:
        raise RefusedError("a signature is not that of the key it names") from None
    except (KeyError, TypeError, UnicodeError, binascii.Error, json.JSONDecodeError) as error:
        raise RefusedError(f"not an envelope: {error!r}") from None


def _key(pem):
    key = serialization.load_pem_public_key(pem)
    spelled = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return digest(spelled), key


def _check(key, signature, signed):
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, signed, ec.ECDSA(_HASHES[key.curve.key_size]))
    else:  # Ed25519, ML-DSA-65
        key.verify(signature, signed)
