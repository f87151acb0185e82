"""Integrity: sign, verify, and load exactly what was verified.

Only names that need Keras are resolved on first use, so that signing and verifying files does not
import it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_modelsec.integrity.errors import (
    ChangedFile,
    CheckpointError,
    KeyFormatError,
    RevokedModelError,
    RolledBackError,
    SignatureError,
    TamperedModelError,
    UnsafeModelError,
    UnsafePathError,
    UntrustedKeyError,
    WrongPasswordError,
)
from keras_modelsec.integrity.external_signer import ExternalSigner
from keras_modelsec.integrity.key_loading import load_signing_key
from keras_modelsec.integrity.keys import KeyPair, generate_keys
from keras_modelsec.integrity.secrets import EnvironmentVariable
from keras_modelsec.integrity.signing import sign
from keras_modelsec.integrity.signing_key import SigningKey, VerifyingKey
from keras_modelsec.integrity.verifying import verify

if TYPE_CHECKING:
    from keras_modelsec.integrity.loading import load_verified_model, load_verified_weights
    from keras_modelsec.integrity.sign_on_save import SignOnSave

_NEED_KERAS = {
    "SignOnSave": "keras_modelsec.integrity.sign_on_save",
    "load_verified_model": "keras_modelsec.integrity.loading",
    "load_verified_weights": "keras_modelsec.integrity.loading",
}

__all__ = [
    # keys
    "EnvironmentVariable",
    "ExternalSigner",
    "KeyPair",
    "SigningKey",
    "VerifyingKey",
    "generate_keys",
    "load_signing_key",
    # sign, verify, load
    "SignOnSave",
    "load_verified_model",
    "load_verified_weights",
    "sign",
    "verify",
    # errors
    "ChangedFile",
    "CheckpointError",
    "KeyFormatError",
    "RevokedModelError",
    "RolledBackError",
    "SignatureError",
    "TamperedModelError",
    "UnsafeModelError",
    "UnsafePathError",
    "UntrustedKeyError",
    "WrongPasswordError",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_KERAS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_NEED_KERAS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
