"""Owns `verify_watermark`: from a file or a Keras model to the weights that `detection` reads."""

import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_modelsec._core import keras_internals
from keras_modelsec._core.checks import check_integer, shown
from keras_modelsec.errors import WatermarkError
from keras_modelsec.watermark.carriers import layer_variables, readings
from keras_modelsec.watermark.detection import detect, tensor_digest
from keras_modelsec.watermark.keys import SecretKey
from keras_modelsec.watermark.watermark_report import WatermarkReport

_FILE_SUFFIXES = (".keras", ".h5")


def verify_watermark(
    model: keras.Model | str | os.PathLike[str],
    key: Any,
    layers: Sequence[str | keras.Layer] | None = None,
    *,
    indices: int | None = None,
    tried: int = 1,
) -> WatermarkReport:
    """Says how strongly a model's weights speak for the mark of a key.

    Needs the weights only: layers may have been renamed or added, regularizers and this package's
    classes removed, weights pruned, cast, negated or fine-tuned, kernels of one shape swapped.
    Kernels are read as their layers compute with them: unpacked and scaled, however Keras quantized
    them, and with their LoRA adapters. NaN and infinity are read as 0, so that planting some hides
    nothing else.

    The reported p is a bound on the chance that a random key would fit the model this well if its
    weights had been made without the key. It holds for any weights whatever, and is corrected for
    the search over layers. It says nothing about who made the mark first: somebody else's mark can
    be added to a marked model, and both are read; the earlier timestamped record decides. Have
    `key_commitment` and `weights_digest` of the report timestamped by somebody else before release.

    Args:
        model: A built model, or the path of a .keras (or Keras .h5) file. Of a file, the bytes
            whose SHA-256 the report states are those that are loaded, by Keras in safe mode:
            custom layers must be registered. Read a stranger's file on a machine you can lose.
        key: The key, as bytes, hexadecimal string; whoever sees it can remove the mark.
        layers: Names of layers, or layers, to read; None (default) for all. The correction is the
            same either way: choosing layers after a look at the result gains nothing.
        indices: How many chip sequences to try for each shape, >= 1. None (default) for as many
            as the model has weights of that shape; give the original model's number if layers
            were cut off. The choice is not corrected for: fix it before you look at a result, and
            count each other value that was tried in `tried`.
        tried: How many keys, models, alignments or `indices` were tried to get this result, >= 1,
            default 1; p is multiplied by it. Never align a suspect's neurons to the marked model:
            that makes innocent models fit. Align to a reference that is independent of the key.

    Returns:
        A `WatermarkReport`; print it, or see its `log10_p` and `is_evidence`.

    Raises:
        WatermarkError: If the model is not built, has no weight large enough, or a layer is
            unknown; if the path is not that of a file with a suffix named above, Keras cannot load
            the file, or unsafe deserialization is enabled while one is read.
        TypeError: If `layers` is neither a layer, nor a name, nor a list of them.
        WatermarkKeyError: If the key is missing, weak or malformed.

    Example:
    ```python
    report = ms.verify_watermark(suspect, key)
    print(report)
    ```

    Limits: permuted or split neurons, columns of a kernel rescaled or negated one by one, and
    distillation into a fresh model leave little or nothing to read. Nor does fine-tuning at a high
    rate: Adam at 1e-2 for 20 epochs took an MNIST network from log10 p -392 to between -16 and -20,
    and at 1e-3 with an L2 penalty of 1e-2 to between -3 and -19, short of the -30 that count as
    evidence; mark with more `strength` what will be fine-tuned so. A kernel in another shape
    (transposed, reshaped, cut in two, joined with another), or kept outside of `model.weights`, is
    read once it is put back: build a model of the original shapes, and say in `tried` how many ways
    to put it back were tried. Time grows with the square of the number of tensors of one shape.

    Not undone either are changes of the values that the rest of the network cancels, so that they
    cost a thief nothing: one number per input row added to all of it before a softmax (log10 p -178
    to 0 for a model that is one such kernel), shifts of kernels before and after a normalisation
    layer (-2086 to 0 for three blocks), a low-rank term added to a kernel and taken off again by
    layers beside it (a LoRA adapter of Keras is read, one built of layers is not), and rotations
    inside attention heads, of query with key and of value with output (-708 to -15). A mark says
    much where it is found; where it is not found, the weights may still be yours.
    """
    secret = SecretKey(key)
    check_integer("tried", tried, minimum=1)
    check_integer("indices", indices, minimum=1, optional=True)
    file_digest = None
    if isinstance(model, (str, os.PathLike)):
        model, file_digest = _load(pathlib.Path(model))
    found = readings(model)
    _, ids = layer_variables(model, layers)
    allowed = [position for position, r in enumerate(found) if id(r.variable) in ids]
    if not allowed:
        raise WatermarkError(
            f"`layers` must have a weight that can carry a mark. Received: layers={shown(layers)}. "
            "Leave `layers` out to read all that can."
        )
    return detect(
        [reading.value for reading in found],
        secret,
        names=[reading.variable.path for reading in found],
        allowed=allowed,
        indices=indices,
        tried=tried,
        weights_digest=_weights_digest(model),
        file_digest=file_digest,
    )


def _weights_digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for variable in model.weights:
        values = np.asarray(keras.ops.convert_to_numpy(variable))
        digest.update(bytes.fromhex(tensor_digest(values)))
    return digest.hexdigest()


def _load(path: pathlib.Path) -> tuple[keras.Model, str]:
    """The model in a file and the file's SHA-256, from one copy that nobody else can change."""
    _check_file(path)
    _refuse_unsafe_mode()
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, f"model{path.suffix}")
        with path.open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        with copy.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return _by_keras(copy, shown(str(path))), digest


def _check_file(path: pathlib.Path) -> None:
    known = path.suffix in _FILE_SUFFIXES and not path.name.endswith(".weights.h5")
    if not known or not path.is_file():
        raise WatermarkError(
            f"`model` must be a model, or the path of a {' or '.join(_FILE_SUFFIXES)} file of one. "
            f"Received: {shown(str(path))}, {'where no file is' if known else 'named otherwise'}. "
            "Load weights into a model of their architecture first."
        )


def _refuse_unsafe_mode() -> None:
    if keras_internals.is_unsafe_deserialization_enabled():
        raise WatermarkError(
            "Unsafe deserialization must be off while a file is read. Received: it is enabled "
            "(keras.config.enable_unsafe_deserialization or SafeModeScope(False)), and the file "
            "could run code. Do not enable it in a process that verifies files."
        )


def _by_keras(copy: pathlib.Path, path_shown: str) -> keras.Model:
    try:
        return keras.models.load_model(copy, compile=False, safe_mode=True)
    except Exception as error:  # a hostile or damaged file can have Keras raise anything
        raise WatermarkError(
            f"The file must hold a model that Keras loads in safe mode. Received: {path_shown}, "
            f"at which Keras raised {type(error).__name__} (shown above; it names a temporary "
            "copy). Register custom layers first; if the file is damaged, get another copy."
        ) from error
