"""A probe of what the step does after the update: metrics may keep the data, nothing else may.

The values of metrics and logs are not private, and say so. But a `compute_metrics`, or a metric, of
the user's own could as well put what it sees into weights. So where there is one, what it does is
traced and run on made-up batches, twice in a row, since what a metric kept of one step may be used
in the next or when it is reset; and so in later states and at other weights.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.errors import UnsupportedModelError
from keras_modelsec.privacy import probe_states
from keras_modelsec.privacy.probe_batches import Batch

_Run: TypeAlias = Callable[[backend.TracedFunction, Batch], Any]


def check_metrics_keep_to_themselves(
    model: keras.Model,
    trace: Callable[[Callable[[Any, Any, Any], list[Any]]], backend.TracedFunction],
    run: _Run,
    batches: Sequence[Sequence[Batch]],
    check_same_state: Callable[[backend.TracedFunction, list[Any], set[int]], None],
) -> None:
    """Refuses metrics that update anything but the variables of metrics from the data.

    Args:
        model: A built and compiled model; Keras's own metrics need no probe.
        trace: Traces a function of x, y and sample_weight.
        run: Runs what it returned on a batch.
        batches: Groups of made-up batches.
        check_same_state: Refuses states that differ, but in the places it is given.

    Raises:
        UnsupportedModelError: With the name of the variable, or if they ran on no batch.
    """
    if not internals.has_own_metrics(model):
        return
    own = internals.metric_variables(model)
    for resets, runs in ((False, _twice(run)), (True, run)):  # True: as when a later epoch begins
        step = trace(functools.partial(_metrics_alone, model, resets))
        if not keeps_nothing_but(own, model, step, runs, batches, check_same_state):
            raise UnsupportedModelError(
                "Metrics of a model trained privately are run on made-up examples, to see that "
                "they update nothing but themselves. Received: a metric or `compute_metrics` of "
                "your own that ran on none of them. Let it take values between 0 and 1 (integers "
                "0, 1)."
            )


def _twice(run: _Run) -> _Run:
    def run_twice(step: backend.TracedFunction, batch: Batch) -> None:
        run(step, batch)
        run(step, batch)

    return run_twice


def keeps_nothing_but(
    own: Sequence[keras.Variable],
    model: keras.Model,
    step: backend.TracedFunction,
    run: _Run,
    batches: Sequence[Sequence[Batch]],
    check_same_state: Callable[[backend.TracedFunction, list[Any], set[int]], None],
) -> bool:
    """Refuses a step after which any variables but its `own` depend on the data.

    Returns:
        False if it ran on too few batches to see.
    """
    held = step.places_of(own)
    before = step.state()
    found = [(group, _states_after(step, run, group, before, held)) for group in batches]
    found = [(group, states) for group, states in found if len(states) > 1]
    for _, states in found:
        check_same_state(step, states, held)
    if not found:
        return False
    group, states = found[0]
    for other in _other_states(model, step, before, states[0]):
        # With the first, one in which its first half is exchanged and one in which the other is.
        check_same_state(step, _states_after(step, run, group[:3], other, held), held)
    return True


def _other_states(
    model: keras.Model, step: backend.TracedFunction, before: list[Any], after: list[Any]
) -> Iterator[list[Any]]:
    """Later ones, and others at other weights: what is kept may be kept after a while only."""
    counters = probe_states.counters(step, before, after)
    yield from probe_states.ahead(before, after, counters)
    for moved in probe_states.with_other_weights(step, model.trainable_variables, before):
        yield moved
        before = moved
    yield from probe_states.at_ends_of_periods(before, counters)


def _states_after(
    step: backend.TracedFunction,
    run: _Run,
    batches: Sequence[Batch],
    start: list[Any],
    held: set[int],
) -> list[list[Any]]:
    """What each batch makes of a state; those that do not run are left out.

    Metrics, whose places are `held`, begin with other values for each batch: the loss is one of
    them, and what it was of earlier batches is nobody's to use.
    """
    own = step.state()
    states = []
    for number, batch in enumerate(batches):
        try:
            step.set_state([_moved(v, number) if p in held else v for p, v in enumerate(start)])
            run(step, batch)
            states.append(step.state())
        except RuntimeError:
            continue
        finally:
            step.set_state(own)
    return states


def _moved(value: Any, number: int) -> Any:
    value = np.asarray(value)
    return value + value.dtype.type(number) if value.dtype.kind in "fiu" else value


def _metrics_alone(model: Any, is_reset: bool, x: Any, y: Any, sample_weight: Any) -> list[Any]:
    y_pred = internals.call_for_training(model, x)
    model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
    if is_reset:
        model.reset_metrics()
    return []
