"""Attacks outside of training: checks, batches, and one compiled function per model.

Owns the cache of compiled functions. It holds models weakly, so an attack kept for long does not
keep models alive, and it drops a function when what it was traced from has changed.
"""

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
from keras_modelsec.robustness.attacks.objective import Objective

# How many examples are looked at to tell probabilities from logits.
_PROBE = 32


class GradientVanishedWarning(UserWarning):
    """Some examples were not attacked, because the loss has no gradient there.

    The model may look more robust than it is.
    """


@dataclass(frozen=True)
class _Compiled:
    token: tuple[Any, ...]
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
        self._functions: weakref.WeakKeyDictionary[keras.Model, dict[Any, _Compiled]] = (
            weakref.WeakKeyDictionary()
        )

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
        compiled.state.epsilon.assign(attack.epsilon)
        parts, unmoved = [], 0
        for start in range(0, count, batch_size):
            batch = slice(start, start + batch_size)
            points, still = compiled.function(_tensors(x, batch), _tensors(y, batch))
            parts.append([np.asarray(leaf) for leaf in keras.tree.flatten(points)])
            unmoved += int(ops.convert_to_numpy(ops.sum(ops.cast(still, "int32"))))
        if unmoved and attack.steps and attack.epsilon:
            _warn_unmoved(attack.name, unmoved, count)
        flat = [np.concatenate(leaves) for leaves in zip(*parts, strict=True)]
        return keras.tree.pack_sequence_as(x, flat)

    def _compiled(self, model: keras.Model, x: Any, y: Any) -> _Compiled:
        functions = self._functions.setdefault(model, {})
        key = _form(x), _form(y), tuple(sorted(_traced_settings(self._attack).items()))
        known = functions.get(key)
        if known is None or not _is_same(known.token, _token(model)):
            known = functions[key] = self._compile(model, x, y)
        check_labels(known.objective.terms(y, known.outputs))
        return known

    def _compile(self, model: keras.Model, x: Any, y: Any) -> _Compiled:
        few = slice(0, _PROBE)
        # Run once eagerly: it builds an unbuilt model outside of the graph, and shows the outputs.
        outputs = internals.call_for_inference(model, _tensors(x, few))
        probabilities = look_like_probabilities(outputs)
        objective = Objective(model, probabilities=probabilities)
        check_labels(objective.terms(_tensors(y, few), outputs))
        with backend.variable_scope(model):
            state = self._attack.new_state()
        # The function must not keep the model alive, or the weak dictionary would never let go.
        attack, reference = self._attack, weakref.ref(model)

        def function(x: Any, y: Any) -> tuple[Any, Any]:
            points = attack.search(reference(), objective, x, y, state)
            return points, _unmoved(x, points)

        if not model.run_eagerly:
            examples = [_tensors(x, few), _tensors(y, few)]
            function = backend.compile_for_batches(
                function, examples, jit_compile=model.jit_compile
            )
        return _Compiled(_token(model), function, state, objective, outputs)


def _tensors(arrays: Any, batch: slice) -> Any:
    return keras.tree.map_structure(lambda leaf: ops.convert_to_tensor(leaf[batch]), arrays)


def _form(arrays: Any) -> Any:
    """Structure, dtypes and shapes without the number of examples."""
    paths = keras.tree.flatten_with_path(arrays)
    return tuple((path, leaf.dtype.name, leaf.shape[1:]) for path, leaf in paths)


def _traced_settings(attack: Any) -> dict[str, Any]:
    """The settings that are constants in a compiled function; radius and seed are variables."""
    config = attack.get_config()
    return {key: value for key, value in config.items() if key not in ("epsilon", "seed", "name")}


def _token(model: keras.Model) -> tuple[Any, ...]:
    """Objects that are replaced when a compiled function of the model is out of date."""
    return internals.compile_token(model), model.dtype_policy, *model.variables


def _is_same(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


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
