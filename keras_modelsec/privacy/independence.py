"""A probe that no example of a batch reaches another's output.

The static checks know Keras's layers; a custom layer or a Lambda can mix examples without owning a
weight. The probe runs the model once on two random examples and differentiates the first one's
output with respect to everything that belongs to the second.
"""

import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.privacy.capture import capturing, find_units
from keras_modelsec.privacy.errors import UnsupportedModelError
from keras_modelsec.privacy.layer_rules.rule import floating_leaves

_PROBED: "weakref.WeakSet[keras.Model]" = weakref.WeakSet()


def check_examples_are_independent(model: keras.Model, x: Any) -> None:
    """Refuses a model whose forward pass mixes examples; each model is probed once.

    Not probed: inputs whose shape is not known apart from the batch, inputs that are not numbers,
    and what happens before the first weight to inputs that are not floating-point.

    Args:
        model: A built model.
        x: The inputs of the step that is being traced; only shapes and dtypes are used.

    Raises:
        UnsupportedModelError: With the name of the layer after which examples meet.
    """
    if model in _PROBED:
        return
    samples = [_two_examples(leaf) for leaf in keras.tree.flatten(x)]
    if all(sample is not None for sample in samples):
        backend.run_eagerly_now(
            lambda: _probe(model, keras.tree.pack_sequence_as(x, list(samples)))
        )
    _PROBED.add(model)


def _two_examples(leaf: Any) -> np.ndarray | None:
    """Two examples like `leaf`, or None where they cannot be made up."""
    dtype = keras.backend.standardize_dtype(leaf.dtype)
    shape = tuple(leaf.shape[1:])
    if None in shape or dtype == "string":
        return None
    generator = np.random.default_rng(0)
    if keras.backend.is_float_dtype(dtype):
        return generator.uniform(0.05, 0.95, (2, *shape)).astype("float32")
    return generator.integers(0, 2, (2, *shape)).astype(dtype)


def _probe(model: keras.Model, x: Any) -> None:
    units = find_units(model)
    x = keras.tree.map_structure(ops.convert_to_tensor, x)

    def first_output(watch: Any) -> tuple[Any, None]:
        for leaf in floating_leaves(x):
            watch(leaf)
        with capturing(units, watch, ops.shape(keras.tree.flatten(x)[0])[0]):
            outputs = floating_leaves(internals.call_for_training(model, x))
        return sum(ops.sum(ops.cast(output[0], "float32") ** 2) for output in outputs), None

    _, gradients = backend.gradients_of_watched(first_output)
    places = {
        place: f"layer {unit.layer.name!r}"
        for unit in units
        for call in unit.calls
        for place in call.watched_as
    }
    for place, gradient in reversed(list(enumerate(gradients))):
        if gradient is not None and bool(ops.any(gradient[1:] != 0)):
            raise UnsupportedModelError(
                "A model trained privately must treat the examples of a batch independently. "
                "Received: a model in which one example's output depends on another example, by "
                f"something after {places.get(place, 'the inputs')}. Remove what averages, "
                "normalises or compares along the batch axis."
            )
