"""Owns `attach_watermark`, which marks a model that exists, and `restore_key`."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_modelsec._core.checks import check_number
from keras_modelsec._core.keras_averages import weight_averages
from keras_modelsec.errors import WatermarkError
from keras_modelsec.watermark import derivation, spreading
from keras_modelsec.watermark.carriers import (
    Carrier,
    readable_variables,
    refresh_compiled_steps,
    trainable_carriers,
)
from keras_modelsec.watermark.detection import normalise
from keras_modelsec.watermark.keys import SecretKey
from keras_modelsec.watermark.verification import verify_watermark
from keras_modelsec.watermark.watermark_regularizer import DEFAULT_RATE, WatermarkRegularizer
from keras_modelsec.watermark.watermark_report import WatermarkReport


def attach_watermark(
    model: keras.Model,
    key: Any,
    layers: Sequence[str | keras.Layer] | None = None,
    *,
    strength: float | None = None,
    rate: float = DEFAULT_RATE,
) -> WatermarkReport:
    """Marks a model that exists: writes the mark into its kernels, and keeps it there in training.

    Each carrier is moved to the nearest weights that hold the mark, then gets a
    `ms.WatermarkRegularizer`, beside whatever regularizer it had. Either all carriers are marked
    or, if an argument is refused, none. Optimizer state and compilation are kept; averages of the
    weights (`use_ema`), which Keras puts in their place when training ends, are marked with them.

    Measure accuracy afterwards. Marking a trained 64-128-10 network cost 3 points of accuracy,
    which three more epochs brought back; larger kernels need less of each weight. Attach the mark
    before training where you can, or use a smaller `strength`.

    Args:
        model: A built model of any kind: functional, Sequential, subclassed, `ms.SecureModel`.
        key: At least 16 random bytes or their hexadecimal form: `ms.watermark.generate_key()`.
        layers: Names of layers, or layers, whose kernels to mark; a nested model stands for all in
            it. None (default) for every trainable kernel of at least 512 weights: dense,
            convolution, einsum, recurrent and embedding layers.
        strength: As in `ms.WatermarkRegularizer`.
        rate: As in `ms.WatermarkRegularizer`.

    Returns:
        What `ms.verify_watermark` reads from the model now.

    Raises:
        WatermarkError: If the model is not built, a layer is unknown or too small, a kernel is all
            zero or not finite, or carries a regularizer of another key already.
        WatermarkKeyError: If the key is missing, weak or malformed.
        ValueError: If `strength` or `rate` is not above 0.

    Example:
    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
    report = ms.attach_watermark(model, ms.watermark.generate_key())
    print(report)
    ```

    Limits: as for `ms.WatermarkRegularizer`. A model that wraps these layers in another `keras.
    Model` and has trained already must be compiled again.
    """
    secret = SecretKey(key)
    check_number("strength", strength, above=0, optional=True)
    carriers = trainable_carriers(model, layers)
    plans = []
    for carrier in carriers:
        regularizer = WatermarkRegularizer(
            secret, strength=strength, rate=rate, index=carrier.index, base=_base(carrier, secret)
        )
        # An optimizer with `use_ema` puts its averages in the place of the weights in the end.
        holders = [carrier.variable, *weight_averages(model, carrier.variable)]
        marked = [(holder, _marked(holder, carrier.index, secret, strength)) for holder in holders]
        plans.append((carrier, regularizer, marked))
    for carrier, regularizer, marked in plans:
        for holder, weights in marked:
            holder.assign(weights)
        carrier.variable.regularizer = regularizer
        setattr(carrier.layer, carrier.attribute, regularizer)
    refresh_compiled_steps(model)
    return verify_watermark(model, secret)


def _base(carrier: Carrier, secret: SecretKey) -> Any:
    """The regularizer that the kernel has besides a mark of this key."""
    present = carrier.variable.regularizer
    if not isinstance(present, WatermarkRegularizer):
        return present
    if present.key_id != derivation.key_id(secret):
        raise WatermarkError(
            "A kernel must keep the mark of one key only. Received: "
            f"{carrier.variable.path!r}, which keeps a mark of key_id {present.key_id}. Attach "
            "the new mark to ms.export_plain(model), which keeps none."
        )
    return present.base


def _marked(variable: keras.Variable, index: int, secret: SecretKey, strength: float | None) -> Any:
    weights = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
    if not normalise(weights, variable.path).any():
        raise WatermarkError(
            f"A kernel must have some nonzero weights to hide a mark in. Received: "
            f"{variable.path!r}, all zero. Initialise it, or leave it out of `layers`."
        )
    signs = derivation.signs(secret, weights.shape, index).reshape(weights.shape)
    return spreading.embed(weights, signs, strength or spreading.default_strength(weights.size))


def restore_key(model: keras.Model, key: Any) -> list[str]:
    """Gives a loaded or cloned model's watermark regularizers their key again.

    Args:
        model: A built model whose regularizers were saved by this package.
        key: The key that the mark was made with.

    Returns:
        The paths of the weights whose mark is kept from now on.

    Raises:
        WatermarkError: If the model has no watermark regularizer.
        WatermarkKeyError: If it is another key, or not a key at all. Nothing is changed then.

    Example:
    ```python
    model = keras.models.load_model("marked.keras")
    ms.watermark.restore_key(model, key)
    model.fit(train, callbacks=[ms.WatermarkMonitor(key)])
    ```
    """
    secret = SecretKey(key)
    marked = [
        (v, v.regularizer)
        for v in readable_variables(model)
        if isinstance(v.regularizer, WatermarkRegularizer)
    ]
    if not marked:
        raise WatermarkError(
            f"The model must have watermark regularizers. Received: {model.name!r}, which has "
            "none. Call ms.attach_watermark(model, key)."
        )
    for _, regularizer in marked:
        WatermarkRegularizer(secret, key_id=regularizer.key_id)  # refuses before anything changes
    for _, regularizer in marked:
        regularizer.restore_key(secret)
    refresh_compiled_steps(model)
    return [variable.path for variable, _ in marked]
