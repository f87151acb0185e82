"""Owns `verify_watermark`: from a Keras model to the weights that `detection` reads."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_modelsec._core.checks import check_integer
from keras_modelsec.watermark.carriers import layer_variables, readable_variables
from keras_modelsec.watermark.detection import detect
from keras_modelsec.watermark.errors import WatermarkError
from keras_modelsec.watermark.keys import SecretKey
from keras_modelsec.watermark.watermark_report import WatermarkReport


def verify_watermark(
    model: keras.Model,
    key: Any,
    layers: Sequence[str | keras.Layer] | None = None,
    *,
    indices: int | None = None,
    tried: int = 1,
) -> WatermarkReport:
    """Says how strongly a model's weights speak for the mark of a key.

    Needs the weights only: layers may have been renamed, regularizers and this package's classes
    removed, weights pruned, quantized, cast or fine-tuned, kernels of one shape swapped.

    The reported p is a bound on the chance that a random key would fit the model this well if its
    weights had been made without the key. It holds for any weights whatever, and is corrected for
    the search over layers. It says nothing about who made the mark first: somebody else's mark can
    be added to a marked model, and both are read; the earlier timestamped record decides.

    Args:
        model: A built model.
        key: The key, as bytes, hexadecimal string; whoever sees it can remove the mark.
        layers: Names of layers, or layers, to read; None (default) for all. The correction is the
            same either way: choosing layers after a look at the result gains nothing.
        indices: How many chip sequences to try for each shape, >= 1. None (default) for as many
            as the model has weights of that shape; give the original model's number if layers
            were cut off.
        tried: How many keys, models or alignments were tried to get this result, >= 1, default 1;
            p is multiplied by it. Never align a suspect's neurons to the marked model: that makes
            innocent models fit. Align to a reference that is independent of the key.

    Returns:
        A `WatermarkReport`; print it, or see its `log10_p` and `is_evidence`.

    Raises:
        WatermarkError: If the model is not built, has no weight large enough, has NaN or infinite
            weights, or a layer is unknown.
        WatermarkKeyError: If the key is missing, weak or malformed.

    Example:
    ```python
    report = ms.verify_watermark(suspect, key)
    print(report)
    ```

    Limits: permuted or split neurons, and distillation into a fresh model, leave nothing to read.
    """
    secret = SecretKey(key)
    check_integer("tried", tried, minimum=1)
    check_integer("indices", indices, minimum=1, optional=True)
    variables = readable_variables(model)
    _, ids = layer_variables(model, layers)
    allowed = [position for position, v in enumerate(variables) if id(v) in ids]
    if not allowed:
        raise WatermarkError(
            f"`layers` must have a weight that can carry a mark. Received: layers={layers!r}. "
            "Leave `layers` out to read all that can."
        )
    return detect(
        [keras.ops.convert_to_numpy(variable) for variable in variables],
        secret,
        names=[variable.path for variable in variables],
        allowed=allowed,
        indices=indices,
        tried=tried,
    )
