"""The only file that touches what Keras keeps private; a Keras upgrade that breaks us breaks here.

Each function says which attribute it reads and has a test of its own.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional
from keras.src.random import seed_generator
from keras.src.trainers.compile_utils import CompileLoss
from keras.src.utils.io_utils import print_msg


def is_functional(model: keras.Model) -> bool:
    """Whether `model` was built from inputs and outputs and runs that graph."""
    return isinstance(model, Functional) and type(model).call is Functional.call


def are_functional_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `Model(*args, **kwargs)` asks for the functional form (`inputs`, `outputs`)."""
    return (
        len(args) == 2
        or (len(args) == 1 and "outputs" in kwargs)
        or ("inputs" in kwargs and "outputs" in kwargs)
    )


def has_graph(model: keras.Model) -> bool:
    """Whether `graph_ends` says what the model returns: it is functional, or Sequential and built.

    A class that derives from these may have a `call` of its own.
    """
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call and model.built
    return is_functional(model)


def graph_ends(model: keras.Model) -> tuple[Any, Any]:
    """The symbolic inputs and outputs in the structure the user gave (`Function._inputs_struct`).

    For a functional or a built Sequential model.
    """
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model._inputs_struct, model._outputs_struct


def run_graph(model: keras.Model, inputs: Any, call: Any) -> Any:
    """Runs a functional model's graph with `call(operation, *args, **kwargs)` for each operation.

    As `keras.models.clone_model` does, which would also compile what it makes
    (`Function._run_through_graph`).
    """
    return model._run_through_graph(inputs, operation_fn=lambda op: op, call_fn=call)


def print_message(message: str) -> None:
    """Prints as Keras does: past the progress bar, or to the log (`io_utils.print_msg`)."""
    print_msg(message)


def flatten_layers(layer: keras.Layer, *, include_self: bool = True) -> list[keras.Layer]:
    """All layers below `layer`, nested models included, each once (`Layer._flatten_layers`)."""
    return list(layer._flatten_layers(include_self=include_self, recursive=True))


def direct_sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that `layer` holds itself (`Layer._flatten_layers`, one level)."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def direct_trainable_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The trainable weights `layer` owns itself, without its sublayers' (`_trainable_variables`).

    A variable may be listed there and be frozen (LoRA freezes the kernel), hence the filter.
    """
    if not layer.trainable:
        return []
    return [v for v in layer._trainable_variables if v.trainable]


def compute_loss(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """The total training loss, with or without a `training` argument (`Trainer._compute_loss`)."""
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def compiled_loss(model: keras.Model) -> Any:
    """What `compile(loss=...)` made, or None (`Trainer._compile_loss`)."""
    return model._compile_loss


def track_loss(model: keras.Model, loss: Any, x: Any) -> None:
    """Feeds the "loss" metric as `keras.Model.train_step` does (`Trainer._loss_tracker`)."""
    first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
    batch_size = keras.ops.shape(first)[0]
    model._loss_tracker.update_state(unscale_loss_for_distribution(loss), sample_weight=batch_size)


def unscale_loss_for_distribution(loss: Any) -> Any:
    """Undoes the division by the number of replicas that Keras's losses carry."""
    from keras_modelsec._core import backend

    replicas = backend.replica_count()
    return loss * keras.ops.cast(replicas, loss.dtype) if replicas > 1 else loss


def weight_penalties(model: keras.Model) -> list[Any]:
    """What regularizers add to the loss, scaled for distribution as Keras scales it."""
    from keras_modelsec._core import backend

    return [
        v.regularizer(v) / backend.replica_count()
        for v in model.trainable_variables
        if v.regularizer is not None
    ]


def added_losses(layer: keras.Layer) -> list[Any]:
    """What `layer.add_loss` recorded in the last call, sublayers apart (`Layer._losses`)."""
    return list(layer._losses)


def single_losses(model: keras.Model, y: Any, y_pred: Any) -> list[keras.losses.Loss]:
    """The loss objects of all outputs, built if need be (`CompileLoss._flat_losses`)."""
    compiled = compiled_loss(model)
    if not compiled.built:
        compiled.build(y, y_pred)
    return [entry.loss for entry in compiled._flat_losses]


def run_losses(
    model: keras.Model, y: Any, y_pred: Any, sample_weight: Any, replace: Callable[..., Any]
) -> Any:
    """The compiled loss with `replace(loss, metric)` in the place of each loss.

    `metric` is the one that reports this loss, or None; it is fed by whoever wants it fed. Matches
    targets, weights and outputs as Keras does, and adds up what the replaced losses return, loss
    weights included (`CompileLoss._flat_losses`, `CompileLoss.metrics`).
    """
    losses = single_losses(model, y, y_pred)
    compiled = compiled_loss(model)
    metrics = compiled.metrics or [None] * len(losses)
    entries = [
        entry._replace(loss=replace(entry.loss, metric))
        for entry, metric in zip(compiled._flat_losses, metrics, strict=True)
    ]
    return _with_losses(compiled, entries)(y, y_pred, sample_weight)


def sums_losses(model: keras.Model) -> bool:
    """Whether all losses are summed over the batch instead of averaged (`CompileLoss`)."""
    entries = getattr(compiled_loss(model), "_flat_losses", None) or []
    return bool(entries) and all(entry.loss.reduction == "sum" for entry in entries)


def with_added_losses(model: keras.Model, loss: Any) -> Any:
    """Adds `add_loss` and penalties as Keras does (`Trainer._aggregate_additional_loss`)."""
    added = [model._aggregate_additional_loss(loss) for loss in model.losses]
    return keras.ops.sum([loss, *added]) if added else loss


@contextlib.contextmanager
def without_loss_metrics(model: keras.Model) -> Iterator[None]:
    """While open, the compiled loss feeds no metric for each output (`CompileLoss._metrics`)."""
    compiled = compiled_loss(model)
    metrics = compiled._metrics
    compiled._metrics = [None] * len(metrics)
    try:
        yield
    finally:
        compiled._metrics = metrics


def metric_variables(model: keras.Model) -> list[keras.Variable]:
    """The variables of all metrics of a compiled model, the loss trackers included."""
    return [variable for metric in model.metrics for variable in metric.variables]


def has_own_metrics(model: keras.Model) -> bool:
    """Whether metrics are computed by code other than Keras's own.

    Overridden methods of the model, metric classes, metric functions (`MeanMetricWrapper._fn`).
    """
    names = ("compute_metrics", "get_metrics_result", "reset_metrics")
    own = [getattr(getattr(model, n), "__func__", 0) is not getattr(keras.Model, n) for n in names]
    if any(own) or type(model).metrics is not keras.Model.metrics:
        return True
    metrics = [inner for m in model.metrics for inner in (m, *getattr(m, "metrics", ()))]
    functions = [fn for m in metrics if (fn := getattr(m, "_fn", None)) is not None]
    modules = [getattr(code, "__module__", None) for code in (*map(type, metrics), *functions)]
    return not all(str(module).startswith("keras.") for module in modules)


def has_own_schedule(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether code that is not Keras's computes the learning rate of a step (`_learning_rate`)."""
    rate = optimizer._learning_rate
    is_computed = callable(rate) and not isinstance(rate, keras.Variable)
    return is_computed and not type(rate).__module__.startswith("keras.")


def has_mask(tensor: Any) -> bool:
    """Whether a Keras mask travels with the tensor (`_keras_mask`)."""
    return getattr(tensor, "_keras_mask", None) is not None


def carry_mask(source: Any, target: Any) -> Any:
    """Gives `target`, which is returned, the Keras mask of `source` (`_keras_mask`)."""
    if has_mask(source):
        target._keras_mask = source._keras_mask
    return target


def overrides_compute_loss(model: keras.Model) -> bool:
    """Whether the model's class computes its loss in a way of its own."""
    return type(model).compute_loss is not keras.Model.compute_loss


def call_for_training(model: keras.Model, x: Any) -> Any:
    """The training-mode forward pass (`Layer._call_has_training_arg`)."""
    return model(x, training=True) if model._call_has_training_arg else model(x)


def call_for_inference(model: keras.Model, x: Any) -> Any:
    """The inference-mode forward pass (`Layer._call_has_training_arg`)."""
    return model(x, training=False) if model._call_has_training_arg else model(x)


def build_for_training(model: keras.Model, x: Any, y: Any, sample_weight: Any) -> None:
    """Builds what `fit` would build in its first step (`Trainer._symbolic_build`).

    A hook that runs the model inside functions of its own needs model, loss and optimizer built,
    since variables cannot be made there. Does nothing if all is built.
    """
    from keras_modelsec._core import backend

    loss = model._compile_loss
    if not model.built or (loss is not None and not loss.built):
        # In a thread, because a function in whose trace variables are made is traced twice, and
        # making them outside of the trace in this one would still count.
        here = dict(global_state.GLOBAL_STATE_TRACKER.__dict__)

        def build() -> dict[str, Any]:
            global_state.GLOBAL_STATE_TRACKER.__dict__.update(here)
            model._symbolic_build(data_batch=(x, y, sample_weight))
            return dict(global_state.GLOBAL_STATE_TRACKER.__dict__)

        global_state.GLOBAL_STATE_TRACKER.__dict__.update(backend.run_eagerly_now(build))


def logits_of(output: Any) -> Any:
    """The pre-activation Keras remembers on what softmax and sigmoid return (`_keras_logits`).

    None where there is none; the memory is lost in any operation after the activation.
    """
    return getattr(output, "_keras_logits", None)


def loss_function(loss: Any) -> tuple[Any, dict[str, Any]]:
    """The function behind a Keras loss, and its arguments (`LossFunctionWrapper._fn_kwargs`).

    (None, {}) for a loss that wraps no function.
    """
    return getattr(loss, "fn", None), getattr(loss, "_fn_kwargs", {})


def compile_token(model: keras.Model) -> Any:
    """An object that is another one after each `compile` (`Trainer._compile_config`)."""
    return getattr(model, "_compile_config", None)


@dataclass(frozen=True)
class LossTerm:
    """One loss of a compiled model, with what it compares."""

    loss: keras.losses.Loss
    weight: float
    y_true: Any
    y_pred: Any
    name: str = "output"


class LossTerms:
    """Takes `compile(loss=...)` apart into its losses, without running or disturbing any.

    Keras's `CompileLoss` matches losses, labels and outputs of any structure, and feeds a metric
    for each loss. This runs a copy of it (`Trainer._compile_loss`, `CompileLoss._flat_losses`,
    `_metrics`) whose losses note what they are given and whose metrics are gone.

    Args:
        model: A model compiled with a loss.
    """

    def __init__(self, model: keras.Model):
        compiled = model._compile_loss
        if compiled.built:
            # Not copy.copy, which would go through Keras's pickling.
            self._compile_loss = object.__new__(CompileLoss)
            vars(self._compile_loss).update(vars(compiled))
        else:
            self._compile_loss = _BuiltWithoutRunning(
                compiled._user_loss,
                compiled._user_loss_weights,
                output_names=compiled.output_names,
            )

    def __call__(self, y: Any, y_pred: Any) -> list[LossTerm]:
        """The losses that compare `y` to `y_pred`, one entry for each."""
        terms: list[LossTerm] = []
        compile_loss = self._compile_loss
        if not compile_loss.built:
            compile_loss.call(y, y_pred)
            compile_loss._flat_losses = compile_loss.true_losses
        recorders = [
            entry._replace(loss=_recorder(entry, terms), loss_weights=None)
            for entry in compile_loss._flat_losses
        ]
        _with_losses(compile_loss, recorders).call(y, y_pred)
        return terms


def _with_losses(compiled: CompileLoss, entries: list[Any]) -> CompileLoss:
    """A copy of a built compiled loss with other losses and no metrics."""
    copy = object.__new__(CompileLoss)  # not copy.copy, which would go through Keras's pickling
    vars(copy).update(vars(compiled))
    copy._metrics = [None] * len(entries)
    copy._flat_losses = entries
    return copy


class _BuiltWithoutRunning(CompileLoss):
    """A `CompileLoss` whose first call matches losses to labels and runs none of them.

    Labels that are still to be checked would make TensorFlow raise an error of its own.
    """

    _flat_losses: list[Any]
    true_losses: list[Any]

    def build(self, y_true: Any, y_pred: Any) -> None:
        super().build(y_true, y_pred)
        self.true_losses = self._flat_losses
        self._flat_losses = [
            entry._replace(loss=_recorder(entry, []), loss_weights=None)
            for entry in self.true_losses
        ]


def _recorder(entry: Any, terms: list[LossTerm]) -> Any:
    weight = 1.0 if entry.loss_weights is None else float(entry.loss_weights)

    def record(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        terms.append(LossTerm(entry.loss, weight, y_true, y_pred, entry.name))
        return keras.ops.zeros(())

    return record


def is_unsafe_deserialization_enabled() -> bool:
    """Whether Keras would load pickled code here, whatever `safe_mode` says (`in_safe_mode`)."""
    from keras.src.saving import serialization_lib

    return serialization_lib.in_safe_mode() is False


def user_loss(model: keras.Model) -> Any:
    """The loss as it was given to `compile`, or None (`CompileLoss._user_loss`)."""
    compiled = compiled_loss(model)
    return None if compiled is None else compiled._user_loss


@contextlib.contextmanager
def global_seeds_replaced(generator: keras.random.SeedGenerator) -> Iterator[None]:
    """While open, what draws without a seed draws from `generator` (`global_seed_generator`)."""
    before = global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)
    global_state.set_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR, generator)
    try:
        yield
    finally:
        global_state.set_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR, before)


def set_initial_epoch(model: keras.Model, epoch: int) -> None:
    """Lets the `fit` that is beginning start at `epoch` (`Trainer._initial_epoch`)."""
    model._initial_epoch = epoch


def is_called_by_fit() -> bool:
    """Whether the caller's caller is `keras.Model.fit` itself (`Trainer.fit`, by its frame)."""
    frame = inspect.currentframe()
    caller = frame and frame.f_back and frame.f_back.f_back
    if caller is None:
        return False
    module = str(caller.f_globals.get("__name__", ""))
    return caller.f_code.co_name == "fit" and module.startswith("keras.")
