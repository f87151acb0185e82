"""A probe of what the static checks cannot see, once per model, on made-up examples.

The static checks know Keras's layers; a custom layer or a Lambda can mix examples without owning a
weight, keep something of the data in its state, or use a weight where its gradient is not seen. The
probe runs the model once on random examples and differentiates the outputs of half of them: with
respect to everything that belongs to the other half, which must give zero, and with respect to the
weights, which must give the sum of the per-example gradients.
"""

import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.privacy.capture import Unit, capturing, find_units
from keras_modelsec.privacy.clipping import per_example_gradients
from keras_modelsec.privacy.errors import UnsupportedModelError
from keras_modelsec.privacy.layer_rules.rule import floating_leaves

_PROBED: "weakref.WeakSet[keras.Model]" = weakref.WeakSet()

# Half of the examples, such that no shift, flip or swap of pairs maps the half onto itself; a
# random permutation does so once in 70 times.
_EXAMPLES, _HALF = 8, np.array([1, 0, 0, 1, 0, 1, 1, 0], "float32")

_UNKNOWN_SIZE = 16  # tried for an axis whose length is not known
_TOLERANCE = {"float32": 0.01, "float64": 0.01}
_LOW_PRECISION_TOLERANCE = 0.2


def check_examples_are_independent(model: keras.Model, x: Any) -> None:
    """Refuses a model whose forward pass mixes examples; each model is probed once.

    Not probed: inputs that are not numbers, inputs with axes of unknown length that the model does
    not take at a length of 16, and what happens before the first weight to inputs that are not
    floating-point.

    Args:
        model: A built model.
        x: The inputs of the step that is being traced; only shapes and dtypes are used.

    Raises:
        UnsupportedModelError: With the name of the layer after which examples meet.
    """
    if model in _PROBED:
        return
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    if all(keras.backend.standardize_dtype(leaf.dtype) != "string" for leaf in leaves):
        is_guess = any(None in leaf.shape[1:] for leaf in leaves)
        backend.run_eagerly_now(lambda: _probe_and_restore(model, x, is_guess=is_guess))
    _PROBED.add(model)


def _examples_like(x: Any, seed: int) -> Any:
    """Examples in the structure, shapes and dtypes of `x`."""
    generator = np.random.default_rng(seed)

    def examples(leaf: Any) -> Any:
        if leaf is None:
            return None
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        shape = (_EXAMPLES, *(_UNKNOWN_SIZE if n is None else n for n in leaf.shape[1:]))
        if keras.backend.is_float_dtype(dtype):
            return ops.convert_to_tensor(generator.uniform(0.05, 0.95, shape).astype("float32"))
        return ops.convert_to_tensor(generator.integers(0, 2, shape).astype(dtype))

    return keras.tree.map_structure(examples, x)


def _probe_and_restore(model: keras.Model, x: Any, *, is_guess: bool) -> None:
    before = [np.array(v) for v in model.weights]
    try:
        _check_state(model, x, before)
        _probe(model, _examples_like(x, seed=0))
    except UnsupportedModelError:
        raise
    except Exception:
        # The model may rightly refuse a length it was not made for.
        if not is_guess:
            raise
    finally:
        _restore(model, before)


def _restore(model: keras.Model, values: list[np.ndarray]) -> list[np.ndarray]:
    """Puts back what the run changed, and returns what it had become."""
    became = [np.array(v) for v in model.weights]
    for variable, value, changed in zip(model.weights, values, became, strict=True):
        if not np.array_equal(value, changed):
            variable.assign(value)
    return became


def _check_state(model: keras.Model, x: Any, before: list[np.ndarray]) -> None:
    """Refuses state that the forward pass updates differently for different examples."""
    internals.call_for_training(model, _examples_like(x, seed=0))
    after = _restore(model, before)
    if all(map(np.array_equal, before, after)):
        return
    internals.call_for_training(model, _examples_like(x, seed=1))
    for variable, left, right in zip(model.weights, after, _restore(model, before), strict=True):
        if not np.allclose(left, right, rtol=1e-5, atol=1e-7):
            raise UnsupportedModelError(
                "A model trained privately must not keep anything of its data but by the noisy "
                f"steps. Received: {variable.path!r}, which the forward pass updates from the "
                "examples, without noise. Remove the update in training, or freeze the layer."
            )


def _probe(model: keras.Model, x: Any) -> None:
    units = find_units(model)
    weights = [v for unit in units for v in unit.variables]

    def half_of_output(watch: Any) -> tuple[Any, None]:
        for leaf in floating_leaves(x):
            watch(leaf)
        for variable in weights:
            watch(variable.value)
        with capturing(units, watch, ops.convert_to_tensor(_EXAMPLES)):
            outputs = floating_leaves(internals.call_for_training(model, x))
        return sum(_half(ops.cast(output, "float32") ** 2) for output in outputs), None

    _, gradients = backend.gradients_of_watched(half_of_output)
    inputs = len(floating_leaves(x))
    _check_independence(units, gradients, set(range(inputs, inputs + len(weights))))
    _check_sums(units, gradients, gradients[inputs : inputs + len(weights)])


def _half(values: Any) -> Any:
    return ops.sum(ops.sum(ops.reshape(values, (_EXAMPLES, -1)), axis=1) * _HALF)


def _check_independence(units: list[Unit], gradients: list[Any], weights: set[int]) -> None:
    places = {
        place: f"layer {unit.layer.name!r}"
        for unit in units
        for call in unit.calls
        for place in call.watched_as
    }
    others = np.flatnonzero(_HALF == 0)
    for place, gradient in reversed(list(enumerate(gradients))):
        if gradient is None or place in weights:
            continue
        if bool(ops.any(ops.take(gradient, others, axis=0) != 0)):
            raise UnsupportedModelError(
                "A model trained privately must treat the examples of a batch independently. "
                "Received: a model in which one example's output depends on another example, by "
                f"something after {places.get(place, 'the inputs')}. Remove what averages, "
                "normalises or compares along the batch axis."
            )


def _check_sums(units: list[Unit], gradients: list[Any], expected: list[Any]) -> None:
    """Refuses a layer whose per-example gradients do not add up to its gradient."""
    remaining = iter(expected)
    known = {id(unit): parts for unit, parts in per_example_gradients(units, gradients)}
    ones = ops.ones((_EXAMPLES,))
    for unit in units:
        parts = known.get(id(unit))
        sums = [0.0] * len(unit.variables) if parts is None else parts.weighted_sums(ones, None)
        pairs = [(np.asarray(s), _dense(next(remaining))) for s in sums]
        difference = sum(float(np.sum(np.square(s - e))) for s, e in pairs) ** 0.5
        size = sum(float(np.sum(np.square(e))) for _, e in pairs) ** 0.5
        tolerance = _TOLERANCE.get(unit.layer.compute_dtype, _LOW_PRECISION_TOLERANCE)
        if difference > tolerance * size + 1e-6:
            raise UnsupportedModelError(
                f"The per-example gradients of layer {unit.layer.name!r} "
                f"({type(unit.layer).__name__}) must add up to its gradient. Received: a "
                f"difference of {difference / max(size, 1e-30):.0%}. Its weights may be used "
                "outside of its `call`, or its `call` under keras.remat, or it draws random "
                "numbers or takes a mask from its inputs instead of an argument. Make what does "
                "so a layer, and register its class with ms.privacy.register_layer_rule("
                "TheClass, ms.privacy.FallbackRule()); put random layers before or after it."
            )


def _dense(gradient: Any) -> np.ndarray:
    return np.zeros(()) if gradient is None else np.asarray(gradient)
