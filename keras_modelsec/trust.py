"""Whose signatures count: keys, certificates, trust stores. `ms.trust`."""

from keras_modelsec._signing.certificates import TrustedRoots, load_certificate_chain
from keras_modelsec._signing.external_signer import ExternalSigner
from keras_modelsec._signing.key_files import KeyPair, generate_keys, load_signing_key
from keras_modelsec._signing.keys import SigningKey, VerifyingKey
from keras_modelsec._signing.secrets import EnvironmentVariable
from keras_modelsec._signing.trust import ANYBODY
from keras_modelsec._signing.trust_store import TrustStore

__all__ = [
    "ANYBODY",
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
]
