"""Loops, and checks that a compiled step makes while it runs."""

import functools
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Tensor = Any
Nested = Any


# As many steps as one trains with.
_UNROLLED_AT_MOST = 10


def repeat(
    fn: Callable[[Nested], Nested],
    state: Nested,
    times: int,
    *,
    turns_a_body: int = 1,
    unless: Callable[[Nested], Tensor] | None = None,
) -> Nested:
    """`fn(fn(...fn(state)))`, `times` times.

    While tracing, a long loop stays one: unrolled, 40 turns of a small network take 15 times as
    long to trace and optimise, and run no faster. A short one is unrolled, because TensorFlow does
    not optimise loops well inside the functions that Keras trains with.

    Args:
        fn: Gives the next state.
        state: The first, nested tensors.
        times: How often, int >= 0.
        turns_a_body: How many turns of a long loop are traced into its body, int >= 1. With one,
            TensorFlow compiles a loop over a network to 1.0 or 1.4 times the cost of its turns,
            by chance; with two it does not. Each is traced, and so are those left over, first.
        unless: Ends the loop early, where it says so of a state; not one that is unrolled.
    """
    if not tf.inside_function() or times <= _UNROLLED_AT_MOST:
        return _turns(fn, state, times, unless)
    return tf.while_loop(
        lambda current: True if unless is None else tf.logical_not(unless(current)),
        lambda current: (_turns(fn, current, turns_a_body),),
        (_turns(fn, state, times % turns_a_body),),
        parallel_iterations=1,
        maximum_iterations=times // turns_a_body,
    )[0]


def _turns(
    fn: Callable[[Nested], Nested],
    state: Nested,
    times: int,
    unless: Callable[[Nested], Tensor] | None = None,
) -> Nested:
    for _ in range(times):
        if unless is not None and tf.executing_eagerly() and bool(unless(state)):
            break
        state = fn(state)
    return state


# The messages of requirements that were traced, by which their failures are known again.
_messages: set[str] = set()


def require(condition: Tensor, message: str, *values: Tensor, passing: Nested) -> Nested:
    """`passing` itself if `condition` holds; what is computed from it waits for that.

    Under XLA nothing is checked.

    Args:
        condition: Scalar bool.
        message: What is required, with a "{}" for each of the values.
        *values: Scalar tensors, for the message.
        passing: Nested tensors.

    Raises:
        ValueError: If it does not hold, now or, in a function wrapped by `with_value_errors`, when
            the compiled step runs. In any other, an InvalidArgumentError with message and values.
    """
    if tf.executing_eagerly():
        if not bool(condition):
            raise ValueError(_filled(message, [str(np.asarray(value)) for value in values]))
        return passing
    _messages.add(message)
    with tf.control_dependencies([tf.debugging.Assert(condition, [message, *values])]):
        return keras.tree.map_structure(tf.identity, passing)


def with_value_errors(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, with failed requirements in what it compiled raised as a ValueError of their own."""

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            message = _failed_requirement(error.message)
            if message is None:
                raise
        raise ValueError(message)

    return wrapped


def _failed_requirement(text: str) -> str | None:
    """The message of the first failed `require` in the text of an error, with its values."""
    text = text.replace("\\'", "'").replace('\\"', '"')  # as TensorFlow writes them
    starts = {f"[{message}]": message for message in _messages}
    for start, message in starts.items():
        if start in text:
            rest = text[text.index(start) + len(start) :].splitlines()[0]
            return _filled(message, re.findall(r"\[([^\]]*)\]", rest))
    return None


def _filled(message: str, values: list[str]) -> str:
    places = message.count("{}")
    return message.format(*(values + ["?"] * places)[:places])


def assert_equal(left: Tensor, right: Tensor, message: str) -> None:
    """Raises, now or when the compiled step runs, unless the two tensors are equal."""
    tf.debugging.assert_equal(left, right, message=message)
