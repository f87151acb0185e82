"""Secrecy at rest: encrypt files and models, for passphrases and public keys. `ms.encryption`."""

from keras_modelsec._core.lazy_names import names_of_stub

__getattr__, __dir__, __all__ = names_of_stub(globals())
