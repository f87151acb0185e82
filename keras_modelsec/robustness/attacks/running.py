"""Attacks outside of training: checks, batches, and one compiled function per model."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend, checks
from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.undisturbed import undisturbed
from keras_modelsec.robustness.attacks import inputs, one_class
from keras_modelsec.robustness.attacks.attack_result import AttackResult
from keras_modelsec.robustness.attacks.labels import check_labels, look_like_probabilities
from keras_modelsec.robustness.attacks.logits import TermFacts
from keras_modelsec.robustness.attacks.model_functions import ModelFunctions, form, tensors
from keras_modelsec.robustness.attacks.objective import Objective
from keras_modelsec.robustness.attacks.scores import saturates
from keras_modelsec.robustness.attacks.target import Target

# How many examples are looked at to tell probabilities from logits.
_PROBE = 32


@dataclass(frozen=True)
class _Compiled:
    function: Callable[..., Any]
    state: Any
    objective: Objective


@dataclass(frozen=True)
class _Probe:
    """What running the model on a few examples has shown: its outputs, and what saturates."""

    outputs: Any
    saturates: list[bool]


class AttackRunner:
    """Runs one attack on arrays.

    Args:
        attack: The attack; what it does with a batch is `attack.find`.
    """

    def __init__(self, attack: Any):
        self._attack = attack
        self._functions = ModelFunctions()

    def run(self, model: keras.Model, x: Any, y: Any, *, batch_size: int) -> AttackResult:
        """Checks, attacks in batches and puts the results together; see `Attack.run`."""
        attack = self._attack
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}.")
        checks.check_integer("batch_size", batch_size, minimum=1)
        x, y = inputs.as_arrays("x", x), inputs.as_arrays("y", y)
        count = inputs.check_lengths(x, y)
        inputs.check_values(x, attack.bounds)
        attack.threat.attacked(x)
        with undisturbed(model):
            return self._run(model, x, y, count, batch_size)

    def _run(self, model: keras.Model, x: Any, y: Any, count: int, batch_size: int) -> AttackResult:
        attack = self._attack
        compiled = self._compiled(model, x, y)
        if attack.seed is not None:
            compiled.state.seeds.state.assign([attack.seed, 0])
        parts = []
        for start in range(0, count, batch_size):
            batch = slice(start, start + batch_size)
            found = compiled.function(tensors(x, batch), tensors(y, batch))
            parts.append([ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(found)])
        flat = [np.concatenate(leaves) for leaves in zip(*parts, strict=True)]
        *points, fooled, distance, queries, still = flat
        follows = attack.follows_gradient
        return AttackResult(
            attack.name,
            keras.tree.pack_sequence_as(x, points),
            fooled,
            distance,
            queries,
            # Without a radius nothing is followed.
            still & bool(follows and attack.epsilon != 0),
            masked=compiled.objective.masked and follows,
            followed=compiled.objective.followed if follows else (),
        )

    def _compiled(self, model: keras.Model, x: Any, y: Any) -> _Compiled:
        data = form(x), form(y), bool(model.run_eagerly)
        probe = self._functions.get(model, data, lambda: _probe(model, x, y))
        terms = Objective(model).terms(y, probe.outputs)
        check_labels(terms)
        facts = _facts(terms, probe.saturates)
        settings = repr(sorted(_traced_settings(self._attack).items()))
        key = data, settings, tuple(facts)
        leaves = keras.tree.flatten(probe.outputs)
        shapes: list[tuple[int | None, ...]] = [(None, *leaf.shape[1:]) for leaf in leaves]
        objective = Objective(model, facts=facts, shapes=shapes)
        return self._functions.get(model, key, lambda: self._compile(model, x, y, objective))

    def _compile(self, model: keras.Model, x: Any, y: Any, objective: Objective) -> _Compiled:
        few = slice(0, _PROBE)
        with backend.variable_scope(model):
            state = self._attack.new_state(model)
        attack, reference = self._attack, weakref.ref(model)

        def function(x: Any, y: Any) -> list[Any]:
            epsilon = ops.convert_to_tensor(state.epsilon)
            target = Target(reference(), objective, attack.threat, x, y, epsilon)
            found = attack.find(target, state)
            points = [ops.stop_gradient(point) for point in found.points]
            fooled = attack.has_reached(target.score(points))
            distance = target.ball.distance(points) if found.distance is None else found.distance
            leaves = keras.tree.flatten(target.inputs(points))
            return [*leaves, fooled, ops.cast(distance, "float32"), found.queries, found.still]

        if model.run_eagerly:
            return _Compiled(function, state, objective)
        examples = [tensors(x, few), tensors(y, few)]
        compiled = backend.compile_for_batches(function, examples, jit_compile=model.jit_compile)
        return _Compiled(compiled, state, objective)


def _probe(model: keras.Model, x: Any, y: Any) -> _Probe:
    few = slice(0, _PROBE)
    # Run once eagerly: it builds an unbuilt model outside of the graph, and shows the outputs.
    examples = tensors(x, few)
    outputs = internals.call_for_inference(model, examples)
    check_labels(Objective(model).terms(tensors(y, few), outputs))
    if not model.run_eagerly:
        return _Probe(outputs, [])
    # An eager attack has no graph to look for scores in; a trace shows whether it should.
    found: list[bool] = []

    def look(x: Any) -> Any:
        outputs = internals.call_for_inference(model, x)
        terms = Objective(model).terms(tensors(y, few), outputs)
        found[:] = [saturates(term.y_pred) for term in terms]
        return outputs

    return _Probe(outputs, found if backend.can_be_traced(look, examples) else [])


def _facts(terms: list[internals.LossTerm], saturating: list[bool]) -> list[TermFacts]:
    return [
        TermFacts(
            bool(one_class.name_one_class(term.y_true, term.y_pred)),
            look_like_probabilities(term.y_pred),
            bool(saturating) and saturating[index],
        )
        for index, term in enumerate(terms)
    ]


def _traced_settings(attack: Any) -> dict[str, Any]:
    """The settings that are constants in a compiled function; radius and seed are variables."""
    config = {**attack.get_config(), "threat": attack.threat.with_epsilon(None).get_config()}
    return {key: value for key, value in config.items() if key not in ("epsilon", "seed", "name")}
