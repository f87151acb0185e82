"""Do labels fit a model's outputs, and are those outputs probabilities?"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks import one_class
from keras_modelsec.robustness.attacks.inputs import is_floating

Tensor = Any

# How far the probabilities of an example may sum from 1, in any precision.
_SUM_TOLERANCE = 1e-2

_HINGES = {keras.losses.hinge, keras.losses.squared_hinge}
_LOSSES_OF_A_UNIT = _HINGES | {
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
}
_LOSSES_OF_ROWS = {
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.kl_divergence,
}


def look_like_probabilities(outputs: Any) -> bool:
    """Whether all outputs lie in [0, 1] and, where there are several per example, sum to 1."""
    for leaf in keras.tree.flatten(outputs):
        values = np.asarray(keras.ops.convert_to_numpy(leaf), dtype="float32")
        if not ((values >= 0).all() and (values <= 1).all()):
            return False
        if values.ndim > 1 and values.shape[-1] > 1:
            sums = values.sum(axis=-1)
            if not np.allclose(sums, 1.0, atol=_SUM_TOLERANCE):
                return False
    return True


@dataclass(frozen=True)
class Rule:
    """What the values of labels must be like, checked now or when a compiled step runs.

    Attributes:
        holds: Scalar bool.
        message: What is required, with a "{}" for each of `received`.
        received: Scalars.
    """

    holds: Tensor
    message: str
    received: tuple[Tensor, ...] = ()


def check_labels(terms: list[internals.LossTerm]) -> None:
    """Refuses labels that a cross-entropy would turn into nonsense without a word.

    Raises:
        ValueError: For labels in another form than the loss takes, class numbers the output does
            not have, rows without a class, binary labels of one output unit other than 0 and 1 (or
            -1 and 1), and, on a model compiled without a loss, for rows that are not one-hot.
    """
    for term in terms:
        rules = [*rules_of(term), *_rules_of_rows(term)]
        for rule in rules:
            if not bool(rule.holds):
                raise ValueError(rule.message.format(*map(_shown, rule.received)))


def training_rules(model: keras.Model, x: Any, y: Any) -> list[Rule]:
    """What the labels of a training step must be like.

    Rows of zeros, which the loss leaves out, are none of it: padding has them.

    Raises:
        ValueError: For labels in another form than the loss takes.
    """
    if internals.compiled_loss(model) is None:
        return []
    terms = internals.LossTerms(model)(y, _like_outputs(model, x))
    return [rule for term in terms for rule in rules_of(term)]


def check_label_form(model: keras.Model, x: Any, y: Any) -> None:
    """Refuses labels of another form than a built model's losses take, before Keras runs those.

    Raises:
        ValueError: If they have another form.
    """
    if model.built and not _is_loss_built(model):
        training_rules(model, x, y)


def _is_loss_built(model: keras.Model) -> bool:
    loss = internals.compiled_loss(model)
    return loss is None or loss.built


def _like_outputs(model: keras.Model, x: Any) -> Any:
    """Zeros in the form of the model's outputs for inputs like `x`."""
    if internals.has_graph(model):
        outputs = internals.graph_ends(model)[1]
    else:
        outputs = backend.outputs_of(lambda x: internals.call_for_inference(model, x), x)
    return keras.tree.map_structure(
        lambda leaf: ops.zeros([size or 1 for size in leaf.shape], dtype=leaf.dtype), outputs
    )


def rules_of(term: internals.LossTerm) -> list[Rule]:
    """What labels must be like for a loss to make sense of them.

    Raises:
        ValueError: For labels in another form than the loss takes.
    """
    kind = one_class.classification_kind(term)
    if term.loss is None:
        return _rules_without_loss(term, kind)
    _check_form(term, kind)
    if kind == "sparse":
        return _rules_of_numbers(term)
    return _rules_of_unit(term)


def _check_form(term: internals.LossTerm, kind: str | None) -> None:
    labels, shape = tuple(term.y_true.shape), tuple(term.y_pred.shape)
    if kind == "sparse" and len(labels) == len(shape) and labels[-1] not in (1, None):
        raise ValueError(
            "`y` must hold class numbers, as the model is compiled with a sparse loss. Received: "
            f"rows of {labels[-1]}. Give y.argmax(axis=-1), or compile with "
            "'categorical_crossentropy'."
        )
    if kind == "categorical" and not _fit_each_other(labels[1:], shape[1:]):
        raise ValueError(
            f"`y` must hold rows of {shape[-1]} numbers, one for each class, as the model is "
            f"compiled with a categorical loss. Received: shape {labels}. Use "
            "keras.utils.to_categorical, or compile with 'sparse_categorical_crossentropy'."
        )


def _fit_each_other(left: tuple[int | None, ...], right: tuple[int | None, ...]) -> bool:
    """Whether two shapes may be one; what a trace does not know may be anything."""
    return len(left) == len(right) and all(
        a is None or b is None or a == b for a, b in zip(left, right, strict=True)
    )


def _rules_of_numbers(term: internals.LossTerm) -> list[Rule]:
    rules, labels = [], ops.convert_to_tensor(term.y_true)
    if is_floating(labels):
        whole = ops.equal(labels, ops.round(labels))
        # Of what is not whole; NaN, which is not equal to itself, is shown as it is.
        found = ops.max(ops.where(whole, -float("inf"), labels))
        message = "`y` must hold whole class numbers. Received: {}."
        rules.append(Rule(ops.all(whole), message, (found,)))
    return [*rules, *_rules_of_range(term, labels)]


def _rules_of_range(term: internals.LossTerm, labels: Tensor) -> list[Rule]:
    ignored = internals.loss_function(term.loss)[1].get("ignore_class")
    if "bool" in keras.backend.standardize_dtype(labels.dtype):
        labels = ops.cast(labels, "int32")
    if ignored is not None:
        labels = ops.where(ops.equal(labels, ignored), ops.zeros_like(labels), labels)
    classes = int(term.y_pred.shape[-1])
    inside = ops.logical_and(labels >= 0, ops.cast(labels, "float32") <= classes - 1)
    return [
        Rule(
            ops.all(inside),
            f"`y` must hold class numbers from 0 to {classes - 1}, as the model has {classes} "
            "outputs. Received numbers from {} to {}.",
            (ops.min(labels), ops.max(labels)),
        )
    ]


def _rules_of_rows(term: internals.LossTerm) -> list[Rule]:
    """A loss that multiplies by the row is 0 for a row of zeros, whatever the model says."""
    loss = None if term.loss is None else internals.loss_function(term.loss)[0]
    if loss not in _LOSSES_OF_ROWS:
        return []
    empty = ops.all(ops.equal(ops.convert_to_tensor(term.y_true), 0), axis=-1)
    return [
        Rule(
            ops.logical_not(ops.any(empty)),
            "`y` must name a class in each row. Received: {} rows that hold zeros only. Leave "
            "those examples out.",
            (ops.sum(ops.cast(empty, "int32")),),
        )
    ]


def _rules_of_unit(term: internals.LossTerm) -> list[Rule]:
    """A unit for two classes has no third; a loss would read 2 as more than certain."""
    function = internals.loss_function(term.loss)[0]
    if not one_class.has_one_unit(term.y_pred) or function not in _LOSSES_OF_A_UNIT:
        return []
    labels = ops.cast(term.y_true, "float32")
    zero_or_one = ops.logical_or(ops.equal(labels, 0.0), ops.equal(labels, 1.0))
    right = ops.logical_or(ops.all(zero_or_one), ops.all(ops.equal(ops.abs(labels), 1.0)))
    if function not in _HINGES:
        between = ops.logical_and(labels >= 0.0, labels <= 1.0)
        right = ops.logical_or(right, ops.all(between))
    return [
        Rule(
            right,
            "`y` must hold 0 and 1 (or -1 and 1) for a model with one output unit. Received values "
            "from {} to {}. Give the two classes these numbers.",
            (ops.min(labels), ops.max(labels)),
        )
    ]


def _rules_without_loss(term: internals.LossTerm, kind: str | None) -> list[Rule]:
    labels = ops.convert_to_tensor(term.y_true)
    if kind == "sparse":
        return _rules_of_range(term, labels)
    labels = ops.cast(labels, "float32")
    if kind == "categorical":
        away = ops.sum(labels, axis=-1) - 1.0
        furthest = ops.reshape(away, (-1,))[ops.argmax(ops.abs(ops.reshape(away, (-1,))))] + 1.0
        return [
            Rule(
                ops.all(ops.abs(away) < _SUM_TOLERANCE),
                "`y` must hold rows that sum to 1. Received a row that sums to {}. For several "
                "labels per example, compile the model with 'binary_crossentropy'.",
                (furthest,),
            )
        ]
    right = ops.logical_or(ops.equal(labels, 0.0), ops.equal(labels, 1.0))
    return [
        Rule(
            ops.all(right),
            "`y` must hold 0 and 1 for a model with one output unit and no compiled loss. "
            "Received values from {} to {}. For regression, compile the model with its loss.",
            (ops.min(labels), ops.max(labels)),
        )
    ]


def _shown(value: Tensor) -> str:
    return f"{float(value):.10g}"
