"""Attacks outside of training: checks, batches, and one compiled function per model."""

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend, checks
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks import inputs
from keras_modelsec.robustness.attacks.labels import check_labels, look_like_probabilities
from keras_modelsec.robustness.attacks.model_functions import ModelFunctions, form, tensors
from keras_modelsec.robustness.attacks.objective import Objective

# How many examples are looked at to tell probabilities from logits.
_PROBE = 32


class GradientVanishedWarning(UserWarning):
    """Some examples were not attacked, because the loss has no gradient there.

    The model may look more robust than it is.
    """


@dataclass(frozen=True)
class _Compiled:
    function: Callable[..., Any]
    state: Any
    objective: Objective
    outputs: Any


class AttackRunner:
    """Runs one attack on arrays.

    Args:
        attack: The attack; its loop is `attack.search`.
    """

    def __init__(self, attack: Any):
        self._attack = attack
        self._functions = ModelFunctions()

    def run(self, model: keras.Model, x: Any, y: Any, *, batch_size: int) -> Any:
        """Checks, attacks in batches and puts the results together; see `Attack.__call__`."""
        attack = self._attack
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}.")
        checks.check_integer("batch_size", batch_size, minimum=1)
        x, y = inputs.as_arrays("x", x), inputs.as_arrays("y", y)
        count = inputs.check_lengths(x, y)
        inputs.check_values(x, attack.bounds)
        compiled = self._compiled(model, x, y)
        if attack.seed is not None:
            compiled.state.seeds.state.assign([attack.seed, 0])
        parts, unmoved = [], 0
        for start in range(0, count, batch_size):
            batch = slice(start, start + batch_size)
            points, still = compiled.function(tensors(x, batch), tensors(y, batch))
            parts.append([ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(points)])
            unmoved += int(ops.convert_to_numpy(still).sum())
        if unmoved and attack.steps and attack.epsilon:
            _warn_unmoved(attack.name, unmoved, count)
        flat = [np.concatenate(leaves) for leaves in zip(*parts, strict=True)]
        return keras.tree.pack_sequence_as(x, flat)

    def _compiled(self, model: keras.Model, x: Any, y: Any) -> _Compiled:
        settings = tuple(sorted(_traced_settings(self._attack).items()))
        key = form(x), form(y), settings, bool(model.run_eagerly)
        compiled = self._functions.get(model, key, lambda: self._compile(model, x, y))
        check_labels(compiled.objective.terms(y, compiled.outputs))
        return compiled

    def _compile(self, model: keras.Model, x: Any, y: Any) -> _Compiled:
        few = slice(0, _PROBE)
        # Run once eagerly: it builds an unbuilt model outside of the graph, and shows the outputs.
        outputs = internals.call_for_inference(model, tensors(x, few))
        objective = Objective(model, probabilities=look_like_probabilities(outputs))
        check_labels(objective.terms(tensors(y, few), outputs))
        with backend.variable_scope(model):
            state = self._attack.new_state()
        attack, reference = self._attack, weakref.ref(model)

        def function(x: Any, y: Any) -> tuple[Any, Any]:
            points = attack.search(reference(), objective, x, y, state)
            return points, _unmoved(x, points)

        if model.run_eagerly:
            return _Compiled(function, state, objective, outputs)
        examples = [tensors(x, few), tensors(y, few)]
        compiled = backend.compile_for_batches(function, examples, jit_compile=model.jit_compile)
        return _Compiled(compiled, state, objective, outputs)


def _traced_settings(attack: Any) -> dict[str, Any]:
    """The settings that are constants in a compiled function; radius and seed are variables."""
    config = attack.get_config()
    return {key: value for key, value in config.items() if key not in ("epsilon", "seed", "name")}


def _unmoved(x: Any, points: Any) -> Any:
    """(batch,) bool: which examples are exactly what they were."""
    same = [
        ops.all(ops.equal(before, after), axis=tuple(range(1, len(before.shape))))
        for before, after in zip(keras.tree.flatten(x), keras.tree.flatten(points), strict=True)
    ]
    return ops.all(ops.stack(same), axis=0)


def _warn_unmoved(name: str, unmoved: int, count: int) -> None:
    warnings.warn(
        f"The gradient was zero for {unmoved} of {count} examples, so the attack {name!r} did not "
        "move them and the model may look more robust than it is. Usual causes: an output that "
        "saturates and hides its logits, rounding, or a layer without a gradient. Let the model "
        "return logits, or end in keras.layers.Softmax or a layer with activation='softmax'.",
        GradientVanishedWarning,
        stacklevel=4,
    )
