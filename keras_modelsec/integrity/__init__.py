"""Integrity: sign, verify, and load exactly what was verified; find damage, and repair it.

One folder a subject, in layers: `contents` (what a file holds) < `statements` (what is said of it)
< `signing` < `loading`, `damage`, `parity`, `encryption`, `guards`, which do not know one another,
< `callbacks`. Names are resolved on first use, so that signing and verifying files does not import
Keras. Keys, encryption and guards have addresses of their own: `ms.trust`, `ms.encryption`,
`ms.guards`.
"""

from keras_modelsec._core.lazy_names import names_of_stub

__getattr__, __dir__, __all__ = names_of_stub(globals())
