"""A probe of what the static checks cannot see: whether examples of a batch meet.

The static checks know Keras's layers; a custom layer, loss or hook can mix examples without owning
a weight, keep something of the data in its state, or use a weight where its gradient is not seen.
So before the first step after each `compile`, and for each new structure of the data, the model's
own step is traced on made-up examples and run several times: with the same state and the same
randomness, and with half of the examples exchanged. For the other half nothing may change, neither
what goes into a layer and comes out of it, nor its loss, nor the gradients; nor may the variables
that step and inference leave behind, nor what penalties, constraints and schedules do. The
per-example gradients must add up to the gradient. `probe_states.py` says in which states.

How many examples a small made-up batch has is drawn anew for each probe; besides, some are as large
as the batches of the data, where that is known (arrays, `train_on_batch`, `tf.data` batches), and
37 examples where it is not; there each example in turn is exchanged while each other is kept.

What it does not see: a coupling that none of the values tried brings out (one that begins at a
threshold far away, needs certain labels, tokens or lengths, or is weaker than the tolerance), or
none of the states; one that only batches of another size have, or examples further apart than 36 in
batches whose size is not known; what depends on the number of examples, which is taken as public;
what Python code does from the second trace on, or only when it is not traced (`run_eagerly=True`);
what an optimizer class of the user's own does besides its learning rate; what becomes of the
metrics and logs; and what was done to the data before `fit` got them.
"""

import warnings
import weakref
from collections.abc import Callable, Collection
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.errors import NotPrivateError, UnsupportedModelError
from keras_modelsec.privacy import probe_states
from keras_modelsec.privacy.inference_probe import (
    check_inference_keeps_nothing,
    refuse_unseen_state,
)
from keras_modelsec.privacy.metric_probe import check_metrics_keep_to_themselves
from keras_modelsec.privacy.model_checks import has_own_hooks
from keras_modelsec.privacy.observation import Observer, by_group
from keras_modelsec.privacy.probe_batches import (
    GUESSED_LENGTHS,
    UNKNOWN_SIZE,
    Batch,
    Leaf,
    draw_size,
    full_groups,
    groups,
    leaves_of,
)

# For each model what it was when it was probed, and the structures of data it was probed with.
_PROBED: "weakref.WeakKeyDictionary[keras.Model, tuple[Any, set[Any]]]" = (
    weakref.WeakKeyDictionary()
)

# Relative to the largest value. The arithmetic of one example's row is the same whatever the others
# hold, so these leave room only for operations that gather rows before they compute.
_SAME, _SAME_IN_LOW_PRECISION, _ROUNDING = 1e-4, 0.02, 1e-6
_SUMS, _SUMS_IN_LOW_PRECISION = 0.01, 0.2

# How much of the batches is run in further states: the first of a group, and one with each half of
# the examples exchanged; of the first kinds of values that the model takes.
_FEW, _FEW_KINDS = 3, 2


def check_examples_are_independent(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
) -> None:
    """Refuses a model whose private step mixes examples, or keeps something of them.

    Args:
        model: A built and compiled model.
        x: The inputs of the step that is being traced, as `fit` hands them over; only structure,
            shapes and dtypes are used, as of `y` and `sample_weight`.
        y: Targets.
        sample_weight: Weights of the examples, or None.
        batch_size: Examples in a batch at most, for data whose shapes do not tell; None if unknown.

    Raises:
        UnsupportedModelError: With the name of what mixes the examples, or of the layer before it.
    """
    leaves = leaves_of(x, y, sample_weight)
    fixed = next(leaf.shape[0] for leaf in keras.tree.flatten(x) if leaf is not None)
    size = max(fixed or batch_size or UNKNOWN_SIZE, 2)
    if not (fixed == size and has_own_hooks(model)):
        fixed = None  # of no consequence: the model and its loss are not told
    token = internals.compile_token(model), tuple(v.trainable for v in model.variables)
    probed_as, structures = _PROBED.get(model, (None, set()))
    if probed_as is None or probed_as[0] is not token[0] or probed_as[1] != token[1]:
        probed_as, structures = token, set()
    structure = (size, fixed, *leaves)
    if structure not in structures:
        backend.run_eagerly_now(lambda: _check((x, y, sample_weight), model, leaves, size, fixed))
        structures.add(structure)
    _PROBED[model] = probed_as, structures


def _check(
    data: Any, model: keras.Model, leaves: list[Leaf], full_size: int, fixed_size: int | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the step itself will say them
        probe = _Probe(model, data, fixed_size)
        is_guess = any(None in leaf.shape for leaf in leaves)
        for length in GUESSED_LENGTHS if is_guess else GUESSED_LENGTHS[:1]:
            if probe.succeeds_with(leaves, length, full_size):
                return
    raise UnsupportedModelError(
        "A model trained privately is run on made-up examples first, to see that it treats them "
        f"independently. Received: a model that ran on none of them: {probe.failure}. Give axes of "
        "the data a fixed length, and let the model take values between 0 and 1 (integers 0, 1)."
    )


class _Probe:
    """The traced step of one model, and the comparisons."""

    def __init__(self, model: keras.Model, data: Any, fixed_size: int | None):
        self._model = model
        self._data = data
        self._fixed_size = fixed_size
        self._size = fixed_size or draw_size()
        self._is_repeatable = True
        self.failure: str = ""
        kinds = {layer.compute_dtype for layer in internals.flatten_layers(model)}
        self._is_low_precision = bool(kinds & {"float16", "bfloat16"})
        self._trace(uses_loss=True)
        refuse_unseen_state(self._step)
        if self._step.places_of(internals.metric_variables(model)):
            raise UnsupportedModelError(
                "A model trained privately must not use its metrics, which hold what the data "
                "were, without noise. Received: a forward pass, loss or hook (or a regularizer, "
                "constraint or learning rate schedule) that reads or updates a variable of a "
                "metric. Keep metrics out of what is trained."
            )

    def _trace(self, *, uses_loss: bool) -> None:
        self._observer = Observer(self._model, uses_loss=uses_loss)
        self._step = self._traced(self._observer.step)

    def _traced(self, function: Callable[..., list[Any]]) -> backend.TracedFunction:
        """A trace of a function of x, y, sample_weight and which examples are kept."""

        def step(kept: Any, *leaves: Any) -> list[Any]:
            remaining = iter(leaves)
            x, y, sample_weight = keras.tree.map_structure(
                lambda leaf: None if leaf is None else next(remaining), self._data
            )
            return function(x, y, sample_weight, kept)

        present = [leaf for leaf in keras.tree.flatten(self._data) if leaf is not None]
        self._dtypes = [leaf.dtype for leaf in present]
        arguments = [ops.zeros((self._size,)), *present]
        try:
            traced = backend.TracedFunction(step, arguments, self._fixed_size)
            _refuse_secrets(traced, self._model)
            return traced
        except NotPrivateError:
            raise
        except Exception as error:
            if not self._model.run_eagerly:
                raise  # what `fit` itself would say of it
            raise UnsupportedModelError(
                "The step of a model trained privately must be one that TensorFlow can trace, to "
                "see that examples do not meet in it, also with run_eagerly=True. Received: a step "
                f"that fails with {type(error).__name__}: {error}. Leave out `.numpy()` and what "
                "else needs values while it is traced."
            ) from error

    def _run(self, batch: Batch) -> tuple[list[np.ndarray], list[Any]]:
        """What was observed, and what the variables became; they are put back."""
        if not self._is_repeatable:
            self._step.begin_randomness_again()
        before = self._step.state()
        try:
            return self._call(self._step, batch), self._step.state()
        finally:
            self._step.set_state(before)

    def _call(self, step: backend.TracedFunction, batch: Batch) -> list[np.ndarray]:
        leaves = [
            part if part.dtype == object else ops.cast(ops.convert_to_tensor(part), dtype)
            for part, dtype in zip(batch.arrays, self._dtypes, strict=True)
        ]
        return step(batch.kept.astype("float32"), *leaves)

    def succeeds_with(self, leaves: list[Leaf], length: int, full_size: int) -> bool:
        """False if the model could not be run on any batch with axes of this length."""
        batches = list(groups(leaves, length, self._size))
        tried = [(group, self._compare(group)) for group in batches]
        ran = [group for group, run in tried if run is not None]
        runs = [run for _, run in tried if run is not None]
        if not runs:
            return False
        _check_same_state(self._step, [state for _, state in runs])
        before, after = self._step.state(), runs[0][1]
        counters = probe_states.counters(self._step, before, after)
        for later in probe_states.ahead(before, after, counters):
            self._compare_in(later, batches)
        few = [group[:_FEW] for group in ran[:_FEW_KINDS]]
        runs += self._check_elsewhere(few, counters)
        self._check_sums(batches, [run[0] for run in runs])
        for check in (check_metrics_keep_to_themselves, check_inference_keeps_nothing):
            check(
                self._model,
                lambda other: self._traced(lambda x, y, weight, _: other(x, y, weight)),
                self._call,
                batches,
                _check_same_state,
            )
        return any(
            self._compare(group) is not None for group in full_groups(leaves, length, full_size)
        )

    def _compare_in(
        self, state: list[Any], batches: list[list[Batch]], *, is_known_to_repeat: bool = False
    ) -> list[Any]:
        """As `_compare`, of several groups and in another state, which is taken back."""
        before = self._step.state()
        try:
            self._step.set_state(state)
            compared = [
                self._compare(group, is_known_to_repeat=is_known_to_repeat) for group in batches
            ]
            runs = [run for run in compared if run is not None]
            _check_same_state(self._step, [after for _, after in runs])
            return runs
        finally:
            self._step.set_state(before)

    def _check_elsewhere(self, batches: list[list[Batch]], counters: list[int]) -> list[Any]:
        """Looks again at other weights, where what a zero hides shows, and at ends of periods."""
        state = self._step.state()
        runs: list[Any] = []
        moved = probe_states.with_other_weights(self._step, self._model.trainable_variables, state)
        for other in moved:
            runs += self._compare_in(other, batches, is_known_to_repeat=True)
            if not runs:
                raise UnsupportedModelError(
                    "A model trained privately is run at other weights than it has, to see that "
                    "it treats examples independently there, too. Received: a model that does not "
                    f"run at any but its own: {self.failure}. Let it take weights moved a little."
                )
            state = other
        for later in probe_states.at_ends_of_periods(state, counters):
            self._compare_in(later, batches, is_known_to_repeat=True)
        return runs

    def _compare(self, group: list[Batch], *, is_known_to_repeat: bool = False) -> Any:
        """Runs the batches of a group, which must agree in what they keep of the first."""
        try:
            base = self._run(group[0])
        except RuntimeError as error:
            # The model may rightly refuse values it was not made for.
            self.failure = self.failure or str(error)
            return None
        if not is_known_to_repeat:
            self._require_repeatable(group[0], base[0])
        self._check_cross(base[0], group[0].kept)
        for batch in group[1:]:
            try:
                run = self._run(batch)
            except RuntimeError:
                continue
            self._check_rows(base[0], run[0], batch.kept)
            self._check_cross(run[0], batch.kept)
            _check_same_state(self._step, [base[1], run[1]])
        return base

    def _require_repeatable(self, batch: Batch, expected: list[np.ndarray]) -> None:
        for attempt in (True, False):
            again, _ = self._run(batch)
            if all(map(self._is_same, expected, again)):
                return
            self._is_repeatable = False
            if attempt:
                expected, _ = self._run(batch)
        raise UnsupportedModelError(
            "A model trained privately must give the same for the same data and random seeds, or "
            "it cannot be seen whether examples meet. Received: a model that does not. Draw random "
            "numbers with keras.random and a keras.random.SeedGenerator."
        )

    def _is_same(self, left: Any, right: Any, tolerance: float | None = None) -> bool:
        if left.shape != right.shape:
            return False
        if left.dtype.kind in "biuOSU":
            return bool(np.array_equal(left, right))
        left, right = left.astype("float64"), right.astype("float64")
        finite = np.abs(np.concatenate([left[np.isfinite(left)], right[np.isfinite(right)]]))
        own = _SAME_IN_LOW_PRECISION if self._is_low_precision else _SAME
        atol = (tolerance or own) * finite.max(initial=0.0)
        return bool(np.allclose(left, right, rtol=0.0, atol=atol, equal_nan=True))

    def _check_rows(
        self, left: list[np.ndarray], right: list[np.ndarray], kept: np.ndarray
    ) -> None:
        """Compares what came of the kept examples, in the order of computation."""
        labels = self._observer.labels
        for group in ("forward", "backward", "update"):
            pairs = zip(by_group(labels, left, group), by_group(labels, right, group), strict=True)
            blamed = ""
            for (blame, one), (_, other) in pairs:
                has_rows = group != "update" and one.ndim > 0
                has_rows = has_rows and len(one) == len(kept) == len(other)
                rows = (one[kept], other[kept]) if has_rows else (one, other)
                if not self._is_same(*rows, tolerance=_ROUNDING if group == "update" else None):
                    blamed = blamed or blame
            if blamed:
                _refuse(blamed)

    def _check_cross(self, run: list[np.ndarray], kept: np.ndarray) -> None:
        """The kept examples' outputs must not depend on the others at all, however weakly."""
        for blame, gradient in by_group(self._observer.labels, run, "cross"):
            others = gradient[~kept]
            # Extreme values may overflow, and zero times infinity tells nothing.
            if np.any(others[np.isfinite(others)] != 0):
                _refuse(blame)

    def _check_sums(self, batches: list[list[Batch]], runs: list[Any]) -> None:
        """Refuses a layer whose per-example gradients do not add up to its gradient."""
        telling = [run for run in runs if self._is_telling(run)]
        if not telling:
            # A loss that gives made-up labels no gradient shows nothing; the outputs do.
            self._trace(uses_loss=False)
            telling = [self._run(batches[0][0])[0]]
        for run in telling:
            for number, unit in enumerate(self._observer.units):
                self._check_unit(unit.layer, str(number), run)

    def _is_telling(self, run: list[np.ndarray]) -> bool:
        expected = [value for _, value in by_group(self._observer.labels, run, "expected")]
        return all(np.isfinite(v).all() for v in expected) and any(v.any() for v in expected)

    def _check_unit(self, layer: keras.Layer, number: str, run: list[np.ndarray]) -> None:
        sums, expected = (
            [v for n, v in by_group(self._observer.labels, run, group) if n == number]
            for group in ("sum", "expected")
        )
        pairs = list(zip(sums, expected, strict=True))
        difference = sum(float(np.sum(np.square(s - e))) for s, e in pairs) ** 0.5
        size = sum(float(np.sum(np.square(e))) for _, e in pairs) ** 0.5
        is_low = layer.compute_dtype not in ("float32", "float64")
        tolerance = _SUMS_IN_LOW_PRECISION if is_low else _SUMS
        if not difference <= tolerance * size + 1e-6:
            raise UnsupportedModelError(
                f"The per-example gradients of layer {layer.name!r} ({type(layer).__name__}) must "
                "add up to its gradient. Received: a "
                f"difference of {difference / max(size, 1e-30):.0%}. Its weights may be used "
                "outside of its `call`, or its `call` under keras.remat, or it draws random "
                "numbers or takes a mask from its inputs instead of an argument. Make what does "
                "so a layer, and register its class with ms.privacy.register_layer_rule("
                "TheClass, ms.privacy.FallbackRule()); put random layers before or after it."
            )


def _check_same_state(
    step: backend.TracedFunction, states: list[list[Any]], ignored: Collection[int] = ()
) -> None:
    """Refuses variables that become what depends on the data."""
    for state in states[1:]:
        for place, (left, right) in enumerate(zip(states[0], state, strict=True)):
            if place in ignored or backend.is_equal_content(left, right):
                continue
            left, right = np.asarray(left, "float64"), np.asarray(right, "float64")
            if not np.allclose(left, right, rtol=1e-5, atol=1e-7):
                raise UnsupportedModelError(
                    "A model trained privately must not keep anything of its data but by the "
                    f"noisy steps. Received: {step.name_of(place)!r}, which the step updates "
                    "from the examples, without noise. Remove the update in training (and in "
                    "inference), or freeze the layer."
                )


def _refuse_secrets(step: backend.TracedFunction, model: Any) -> None:
    if step.places_of(model.optimizer.secrets):
        raise UnsupportedModelError(
            "Clipped sums that wait for their noise, and the state that the noise is drawn from, "
            "belong to the DPOptimizer alone. Received: a forward pass, loss or hook that reads or "
            "updates one of them. Use the weights, which have their noise."
        )


def _refuse(blame: str) -> None:
    raise UnsupportedModelError(
        "A model trained privately must treat the examples of a batch independently. Received: a "
        f"model in which what one example contributes depends on another example, by {blame}. "
        "Remove what averages, normalises, ranks or compares along the batch axis."
    )
