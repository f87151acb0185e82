"""What a recorded graph says of how a tensor was made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any
Nested = Any


def made_by(tensor: Tensor) -> tuple[str, list[Tensor]]:
    """The type of the recorded operation that made `tensor`, and what went into it.

    ("", []) if there is no graph to follow (eager execution).
    """
    if not tf.is_symbolic_tensor(tensor):
        return "", []
    return tensor.op.type, list(tensor.op.inputs)


def constant_in(tensor: Tensor) -> np.ndarray | None:
    """What a tensor of the recorded graph holds whatever the inputs; None if it depends on them."""
    return tf.get_static_value(tensor) if tf.is_symbolic_tensor(tensor) else None


_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")


# Operations that only move numbers about: which of their inputs hold them, and the same once more.
_MOVES: dict[str, tuple[slice, Callable[[Any, list[Tensor], list[Tensor]], Any]]] = {
    "ConcatV2": (slice(0, -1), lambda op, ins, new: tf.concat(new, ins[-1])),
    "Pack": (slice(None), lambda op, ins, new: tf.stack(new, op.get_attr("axis"))),
    "Unpack": (
        slice(1),
        lambda op, ins, new: tf.unstack(new[0], op.get_attr("num"), op.get_attr("axis")),
    ),
    "Split": (slice(1, 2), lambda op, ins, new: tf.split(new[0], op.get_attr("num_split"), ins[0])),
    "GatherV2": (
        slice(1),
        lambda op, ins, new: tf.gather(
            new[0], ins[1], axis=ins[2], batch_dims=op.get_attr("batch_dims")
        ),
    ),
    "StridedSlice": (
        slice(1),
        lambda op, ins, new: tf.raw_ops.StridedSlice(
            input=new[0],
            begin=ins[1],
            end=ins[2],
            strides=ins[3],
            **{mask: op.get_attr(mask) for mask in _MASKS},
        ),
    ),
    "Slice": (slice(1), lambda op, ins, new: tf.slice(new[0], ins[1], ins[2])),
    "Transpose": (slice(1), lambda op, ins, new: tf.transpose(new[0], ins[1])),
    "ReverseV2": (slice(1), lambda op, ins, new: tf.reverse(new[0], ins[1])),
    "Tile": (slice(1), lambda op, ins, new: tf.tile(new[0], ins[1])),
    "BroadcastTo": (slice(1), lambda op, ins, new: tf.broadcast_to(new[0], ins[1])),
    # The values, and their places, which are no numbers of the input.
    "TopKV2": (
        slice(1),
        lambda op, ins, new: list(tf.math.top_k(new[0], ins[1], op.get_attr("sorted"))),
    ),
}


def moved_by(tensor: Tensor) -> list[Tensor] | None:
    """The inputs whose numbers the operation behind `tensor` only moved about; None if it did more.

    Concatenation, slicing, gathering, transposing and the like.
    """
    kind, sources = made_by(tensor)
    return sources[_MOVES[kind][0]] if kind in _MOVES else None


def move_again(tensor: Tensor, others: list[Tensor]) -> Tensor:
    """Does to `others` what the operation behind `tensor` did to its inputs.

    For what `moved_by` finds; anything else is a change of form alone.
    """
    operation = tensor.op
    if operation.type not in _MOVES:
        return tf.reshape(others[0], tf.shape(tensor))
    outcome = _MOVES[operation.type][1](operation, list(operation.inputs), others)
    return outcome[tensor.value_index] if isinstance(outcome, list) else outcome
