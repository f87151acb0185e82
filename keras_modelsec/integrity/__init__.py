"""Integrity: sign, verify, and load exactly what was verified; find damage, repair it, hide, guard.

One folder a subject: `keys` (and trust), `signatures`, `loaders`, `damage` (what differs), `parity`
(and repair), `guards`, `encryption`; what all of them use lies beside this file. Only names that
need Keras are resolved on first use, so that signing and verifying files does not import it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_modelsec.integrity.encryption.encryption_keys import (
    EncryptionPrivateKey,
    EncryptionPublicKey,
    generate_encryption_keys,
)
from keras_modelsec.integrity.encryption.file_encryption import decrypt_file, encrypt_file
from keras_modelsec.integrity.encryption.key_slots import Passphrase
from keras_modelsec.integrity.errors import (
    ChangedFile,
    CheckpointError,
    CodeInModelError,
    ConcurrentChangeError,
    DecryptionError,
    KeyFormatError,
    LostRange,
    RevokedModelError,
    RolledBackError,
    SignatureError,
    TamperedModelError,
    TamperedWeightsError,
    UnrepairableError,
    UnsafeModelError,
    UnsafePathError,
    UntrustedKeyError,
    WrongPasswordError,
)
from keras_modelsec.integrity.keys.certificates import TrustedRoots, load_certificate_chain
from keras_modelsec.integrity.keys.external_signer import ExternalSigner
from keras_modelsec.integrity.keys.key_loading import load_signing_key
from keras_modelsec.integrity.keys.keys import KeyPair, generate_keys
from keras_modelsec.integrity.keys.signing_key import SigningKey, VerifyingKey
from keras_modelsec.integrity.keys.trust_store import TrustStore
from keras_modelsec.integrity.loaders.verified_copy import verified_copy
from keras_modelsec.integrity.secrets import EnvironmentVariable
from keras_modelsec.integrity.signatures.signing import sign
from keras_modelsec.integrity.signatures.verifying import verify

if TYPE_CHECKING:
    from keras_modelsec.integrity.damage.locating import locate_tampering
    from keras_modelsec.integrity.damage.tamper_report import (
        ChunkDamage,
        FileDamage,
        Shift,
        TamperReport,
        TensorDamage,
    )
    from keras_modelsec.integrity.damage.value_changes import ValueChanges
    from keras_modelsec.integrity.encryption.encrypted_models import (
        load_encrypted,
        load_encrypted_weights,
        save_encrypted,
    )
    from keras_modelsec.integrity.guards.activation_guard import (
        ActivationGuard,
        ActivationReport,
        activation_reports,
    )
    from keras_modelsec.integrity.guards.guarding import guard_activations
    from keras_modelsec.integrity.guards.integrity_guard import IntegrityGuard
    from keras_modelsec.integrity.loaders.loading import load_verified_model, load_verified_weights
    from keras_modelsec.integrity.parity.protecting import protect
    from keras_modelsec.integrity.parity.repair_report import RepairReport
    from keras_modelsec.integrity.parity.repairing import repair
    from keras_modelsec.integrity.signatures.sign_on_save import SignOnSave
    from keras_modelsec.integrity.signatures.signed_backup import SignedBackupAndRestore

_NEED_KERAS = {
    "ActivationGuard": "keras_modelsec.integrity.guards.activation_guard",
    "ActivationReport": "keras_modelsec.integrity.guards.activation_guard",
    "IntegrityGuard": "keras_modelsec.integrity.guards.integrity_guard",
    "activation_reports": "keras_modelsec.integrity.guards.activation_guard",
    "guard_activations": "keras_modelsec.integrity.guards.guarding",
    "SignOnSave": "keras_modelsec.integrity.signatures.sign_on_save",
    "load_encrypted": "keras_modelsec.integrity.encryption.encrypted_models",
    "load_encrypted_weights": "keras_modelsec.integrity.encryption.encrypted_models",
    "save_encrypted": "keras_modelsec.integrity.encryption.encrypted_models",
    "SignedBackupAndRestore": "keras_modelsec.integrity.signatures.signed_backup",
    "load_verified_model": "keras_modelsec.integrity.loaders.loading",
    "load_verified_weights": "keras_modelsec.integrity.loaders.loading",
    # these need numpy
    "ChunkDamage": "keras_modelsec.integrity.damage.tamper_report",
    "FileDamage": "keras_modelsec.integrity.damage.tamper_report",
    "RepairReport": "keras_modelsec.integrity.parity.repair_report",
    "Shift": "keras_modelsec.integrity.damage.tamper_report",
    "TamperReport": "keras_modelsec.integrity.damage.tamper_report",
    "TensorDamage": "keras_modelsec.integrity.damage.tamper_report",
    "ValueChanges": "keras_modelsec.integrity.damage.value_changes",
    "locate_tampering": "keras_modelsec.integrity.damage.locating",
    "protect": "keras_modelsec.integrity.parity.protecting",
    "repair": "keras_modelsec.integrity.parity.repairing",
}

__all__ = [
    # keys
    "EnvironmentVariable",
    "ExternalSigner",
    "KeyPair",
    "SigningKey",
    "TrustStore",
    "TrustedRoots",
    "VerifyingKey",
    "generate_keys",
    "load_certificate_chain",
    "load_signing_key",
    # sign, verify, load
    "SignOnSave",
    "SignedBackupAndRestore",
    "load_verified_model",
    "load_verified_weights",
    "sign",
    "verified_copy",
    "verify",
    # secrecy at rest
    "EncryptionPrivateKey",
    "EncryptionPublicKey",
    "Passphrase",
    "decrypt_file",
    "encrypt_file",
    "generate_encryption_keys",
    "load_encrypted",
    "load_encrypted_weights",
    "save_encrypted",
    # find and repair damage
    "ChunkDamage",
    "FileDamage",
    "RepairReport",
    "Shift",
    "TamperReport",
    "TensorDamage",
    "ValueChanges",
    "locate_tampering",
    "protect",
    "repair",
    # guards at run time
    "ActivationGuard",
    "ActivationReport",
    "IntegrityGuard",
    "activation_reports",
    "guard_activations",
    # errors
    "ChangedFile",
    "CheckpointError",
    "CodeInModelError",
    "ConcurrentChangeError",
    "DecryptionError",
    "KeyFormatError",
    "LostRange",
    "RevokedModelError",
    "RolledBackError",
    "SignatureError",
    "TamperedModelError",
    "TamperedWeightsError",
    "UnrepairableError",
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
