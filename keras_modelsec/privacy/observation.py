"""What the probe looks at in one private step: every value and gradient that an example enters.

The observer takes the place of the clipping inside the model's own `compute_gradients`, so that
whatever hooks a model adds before and around it are run as in training.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.batch import Batch, Extra
from keras_modelsec.errors import UnsupportedModelError
from keras_modelsec.privacy.capture import SavedCall, Unit, capturing, find_units
from keras_modelsec.privacy.clipping import (
    ClippedGradients,
    batch_size_of,
    loss_scale,
    losses,
    penalties,
    per_example_gradients,
    predictions,
    seal,
    unseal,
)
from keras_modelsec.privacy.layer_rules.rule import floating_leaves
from keras_modelsec.privacy.model_checks import check_model

Tensor = Any

_CURRENT = threading.local()


class Label(NamedTuple):
    """What an observed tensor is: its group, and what is to blame where it shows a coupling.

    Groups, in the order of computation: "forward" and "backward" (one row per example, which no
    other example may change), "cross" (gradients of the kept examples' outputs, zero for the
    others), "sum" and "expected" (a unit's summed per-example gradients, and its own), "update"
    (what comes to the noisy sums or is made of them, in which no example has a part).
    """

    group: str
    blame: str


class Observer:
    """Notes the tensors of one private step.

    Args:
        model: The model whose train step is run, but for the optimizer's update.
        uses_loss: Whether the compiled loss is differentiated, or the squares of the outputs.

    Attributes:
        labels: One `Label` for each tensor that `step` returned.
        units: The units of the model.
    """

    def __init__(self, model: keras.Model, *, uses_loss: bool = True):
        self._model = model
        self._uses_loss = uses_loss
        self.labels: list[Label] = []
        self.units: list[Unit] = []
        self._tensors: list[Tensor] = []
        self._kept: Tensor = None

    def step(self, x: Any, y: Any, sample_weight: Any, kept: Tensor) -> list[Tensor]:
        """Runs all hooks of a train step, but without an update, and returns what was noted.

        Args:
            x: Inputs.
            y: Targets.
            sample_weight: Weights of the examples, or None.
            kept: 1.0 for each example whose output the "cross" gradients are of, else 0.0.

        Raises:
            NotPrivateError: If a hook leaves the private gradients out, or changes them.
        """
        model: Any = self._model
        self._kept = kept
        with _as_current(self), internals.without_loss_metrics(model):
            given = Batch(x, y, sample_weight)
            model.begin_step(given)
            model.run_update(given, self._take)
        return self._tensors

    def _take(self, gradients: Any) -> None:
        """In the place of the optimizer's `apply`."""
        if not self.labels:
            raise UnsupportedModelError(
                "`compute_gradients` of a model trained privately must call `super()`, which "
                f"clips. Received: {type(self._model).__name__}.compute_gradients, which does not."
            )
        taken = unseal(gradients, self)
        self._note(
            "update", "a regularizer of a weight", [p for p in taken.penalties if p is not None]
        )
        model: Any = self._model
        for variable in model.trainable_variables:
            if variable.constraint is not None:
                blame = f"the constraint of the weight {variable.path!r}"
                self._note("update", blame, ops.convert_to_tensor(variable.constraint(variable)))
        inner = model.optimizer.inner_optimizer
        if internals.has_own_schedule(inner):
            rate = ops.convert_to_tensor(inner.learning_rate)
            self._note("update", "the schedule of the learning rate", rate)

    def observe(self, data: Batch) -> tuple[Any, ClippedGradients, Extra]:
        """In the place of `clipped_gradients`: the same computation, without clipping."""
        model: Any = self._model
        check_model(model)
        self.units = units = find_units(model)
        hidden = (data.x, data.y, data.sample_weight, data.aux)
        data = Batch(*backend.forget_batch_size(hidden))
        batch = batch_size_of(data.x)
        noted: list[Tensor] = []
        inputs: list[int] = []
        outputs: list[int] = []

        def forward(watch: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
            leaves = floating_leaves((data.x, data.aux))
            inputs.extend(watch(leaf) for leaf in leaves if len(leaf.shape))
            for unit in units:
                weights[id(unit)] = [watch(v.value) for v in unit.variables]
            with capturing(units, watch, batch):
                y_pred = predictions(model, data)
                outputs.extend(watch(leaf) for leaf in floating_leaves(y_pred))
                values, _ = losses(model, data, y_pred, batch, noted.append)
            squares = sum(_squares(leaf, batch) for leaf in floating_leaves(y_pred))
            noted.append(values)
            total = ops.sum(values if self._uses_loss else squares) * loss_scale(model)
            return y_pred, total, ops.sum(squares * self._kept), ops.sum(values * self._kept)

        weights: dict[int, list[int]] = {}
        (y_pred, total, kept, kept_losses), differentiate = backend.differentiable(forward)
        calls = _in_order(units)
        self._note_forward(data, calls, y_pred, noted)
        gradients = differentiate(total)
        self._note_backward(calls, gradients, outputs)
        self._note_cross(calls, differentiate(kept), inputs)
        if model.changes_loss():
            of_losses = differentiate(kept_losses)
            self._note("cross", "the loss", [of_losses[place] for place in inputs])
        sums = self._note_sums(gradients, weights, batch)
        return y_pred, seal(ClippedGradients(sums, penalties(model), batch, 0.0), self), Extra()

    def _note(self, group: str, blame: str, tensors: Any) -> None:
        for leaf in keras.tree.flatten(tensors):
            if ops.is_tensor(leaf):
                self.labels.append(Label(group, blame))
                self._tensors.append(leaf)

    def _note_forward(
        self, data: Batch, calls: list[Any], y_pred: Any, values: list[Tensor]
    ) -> None:
        leaves = (data.x, data.y, data.sample_weight, data.aux)
        self._note("forward", "a hook before the forward pass (`prepare_batch`)", leaves)
        last = "something after the inputs"
        for name, call in calls:
            self._note("forward", last, (call.args, call.kwargs))
            self._note("forward", f"layer {name!r} itself", call.outputs)
            last = f"something after layer {name!r}"
        self._note("forward", last, y_pred)
        self._note("forward", "the loss", values)

    def _note_backward(self, calls: list[Any], gradients: Any, outputs: list[int]) -> None:
        self._note("backward", "the loss", [gradients[place] for place in outputs])
        for name, call in reversed(calls):
            blame = f"the gradient of something after layer {name!r}"
            self._note("backward", blame, [gradients[place] for place in call.watched_as])

    def _note_cross(self, calls: list[Any], gradients: Any, inputs: list[int]) -> None:
        for name, call in reversed(calls):
            received = [gradients[place] for place in call.watched_as]
            self._note("cross", f"something after layer {name!r}", received)
        self._note("cross", "something after the inputs", [gradients[place] for place in inputs])

    def _note_sums(
        self, gradients: Any, weights: dict[int, list[int]], batch: Tensor
    ) -> list[Tensor]:
        scale = loss_scale(self._model)
        ones = ops.ones((batch,))
        per_example = per_example_gradients(self.units, gradients, scale)
        known = {id(unit): parts.weighted_sums(ones, None) for unit, parts in per_example}
        by_variable: dict[int, Tensor] = {}
        for number, unit in enumerate(self.units):
            sums = known.get(id(unit)) or [ops.zeros(v.shape) for v in unit.variables]
            expected = [gradients[place] for place in weights[id(unit)]]
            for variable, total, own in zip(unit.variables, sums, expected, strict=True):
                by_variable[id(variable)] = total
                own = ops.zeros(variable.shape) if own is None else own
                self._note("sum", str(number), total)
                self._note("expected", str(number), ops.cast(own, "float32") / scale)
        return [by_variable[id(v)] for v in self._model.trainable_variables]


def current_observer() -> Observer | None:
    """The observer whose `step` runs in this thread, if any."""
    return getattr(_CURRENT, "observer", None)


@contextlib.contextmanager
def _as_current(observer: Observer) -> Iterator[None]:
    _CURRENT.observer = observer
    try:
        yield
    finally:
        _CURRENT.observer = None


def _squares(output: Tensor, batch: Tensor) -> Tensor:
    """One sum for each example."""
    squares = ops.square(ops.cast(output, "float32"))
    return ops.sum(ops.reshape(squares, (batch, -1)), axis=1)


def _in_order(units: list[Unit]) -> list[tuple[str, SavedCall]]:
    """The calls of all units, as they came."""
    calls = [(unit.layer.name, call) for unit in units for call in unit.calls if call.watched_as]
    return sorted(calls, key=lambda entry: entry[1].watched_as[0])


def by_group(labels: list[Label], values: list[np.ndarray], group: str) -> list[Any]:
    """The entries of one group: (blame, values)."""
    pairs = zip(labels, values, strict=True)
    return [(label.blame, value) for label, value in pairs if label.group == group]
