"""The one owner of `train_step`, and the hooks that mixins override.

Independent `train_step` overrides silently drop each other, and a mixin listed after `keras.Model`
is ignored without a word. So one class here overrides `train_step`, every mixin extends that class
and overrides a hook, and a class whose bases would bypass either is refused when it is defined.
"""

import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.batch import Batch, Extra
from keras_modelsec._core.checks import check_integer
from keras_modelsec._core.example_losses import example_losses, total_loss

OWNED = ("train_step", "run_update")  # which nobody else may have


class TrainStepOwner:
    """Splits `keras.Model.train_step` into hooks, without changing what it computes.

    A step is `begin_step(batch)`, then `updates_per_batch` times

    ```python
    batch = self.prepare_batch(given)                          # outside of the tape
    y_pred, gradients, extra = self.compute_gradients(batch)   # in it: self.training_loss(...)
    self.optimizer.apply(gradients)
    self.after_update(batch, extra)
    ```

    and then the metrics, of the last predictions and the labels that `fit` gave. With no hook
    overridden, the weights after `fit` equal those of `keras.Model` to the last bit.

    A hook is traced once and runs for every batch. It touches variables only through the model,
    its optimizer and the state that it declared (a defence: what `new_state` returned), never
    tensors or variables kept elsewhere, so that a backend may run the same hooks without side
    effects.

    Not for direct use: derive a mixin from it, call `super()` in each hook so that mixins compose,
    and list mixins before `keras.Model`.

    Attributes:
        updates_per_batch: How often a step prepares, differentiates and updates; int >= 1. Read
            when the step is traced. May be overridden by a number or a property.
        wants_input_gradients: Whether `after_update` is given the gradient of the inputs, from
            the same backward pass. May be overridden alike.
    """

    updates_per_batch: int = 1
    wants_input_gradients: bool = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_bypassed_hooks(cls)

    def begin_step(self, batch: Batch) -> None:
        """Hook: sees the batch as `fit` hands it over, before any other hook. Default: nothing."""

    def prepare_batch(self, batch: Batch) -> Batch:
        """Hook, outside of the tape: the batch to train on.

        Called for each update with the batch as `fit` gave it. The number of examples and their
        order must stay, since the metrics compare what comes of it with the labels of `fit`.
        Default: the batch itself.
        """
        return batch

    def training_loss(self, batch: Batch, y_pred: Any) -> Any:
        """Hook, inside of the tape: the loss of each example, sample weights included.

        What layers and weights add to a loss (`add_loss`, regularizers) is not part of it, and is
        added to its mean. Default: `example_losses(batch, y_pred)`; as long as no class and no
        defence changes that, the step takes Keras's own total instead.

        Args:
            batch: What `prepare_batch` returned.
            y_pred: What the model, called once in training mode, predicts of `batch.x`. It may be
                called again here, on `batch.aux`.

        Returns:
            A tensor (batch,), or a scalar for a loss in which examples meet, which cannot be
            trained with privately.
        """
        return self.example_losses(batch, y_pred)

    def after_update(self, batch: Batch, extra: Extra) -> None:
        """Hook, after the optimizer's update: moving averages, the state of a defence.

        Default: nothing.
        """

    def changes_loss(self) -> bool:
        """Whether `training_loss` is more than the compiled loss.

        True if any class overrides `training_loss`, unless it overrides this too and so speaks for
        itself.
        """
        return any(
            "training_loss" in vars(cls) and "changes_loss" not in vars(cls)
            for cls in before_owner(type(self), TrainStepOwner)
        )

    def asked_by_hooks(self) -> list[Any]:
        """Objects that fill the hooks without being classes of the model, such as a defence."""
        return []

    def name_of_hooks(self) -> str:
        """Whose hooks these are, for messages."""
        return f"class {type(self).__name__}"

    def example_losses(self, batch: Batch, y_pred: Any) -> Any:
        """What `compile(loss=...)` gives for each example, weighted: (batch,).

        For hooks and defences that add to it or take its place. The mean (for losses of
        reduction "sum", the sum) is the loss that Keras would report without penalties.

        Args:
            batch: Where the targets and sample weights are.
            y_pred: Predictions, of `batch.x` or of other inputs for the same targets.

        Raises:
            NotPerExampleError: A `ValueError`: if the loss is not made of one value an example.
        """
        model: Any = self
        return example_losses(model, batch.y, y_pred, batch.sample_weight)

    def compute_gradients(self, batch: Batch) -> tuple[Any, Any, Extra]:
        """Hook: forward pass, `training_loss` and gradients.

        Returns:
            The predictions, the gradients as the optimizer's `apply` takes them, one for each of
            `self.trainable_weights`, and what else the backward pass gave.
        """
        model: Any = self
        changes_loss = self.changes_loss()
        if changes_loss:
            internals.build_for_training(model, batch.x, batch.y, batch.sample_weight)

        def forward() -> tuple[Any, Any]:
            y_pred = internals.call_for_training(model, batch.x)
            if changes_loss:
                loss = total_loss(model, self.training_loss(batch, y_pred))
            else:
                loss = internals.compute_loss(model, batch.x, batch.y, y_pred, batch.sample_weight)
            internals.track_loss(model, loss, batch.x)
            if model.optimizer is not None:
                loss = model.optimizer.scale_loss(loss)
            return loss, y_pred

        inputs = _floating(batch.x) if self.wants_input_gradients else []
        y_pred, gradients = backend.value_and_gradients(
            forward, lambda: model.trainable_weights, inputs=inputs
        )
        own = len(gradients) - len(inputs)
        return y_pred, gradients[:own], Extra(_in_structure(batch.x, gradients[own:]))

    def make_train_function(self, force: bool = False) -> Any:
        """Compiles the step; what it requires of the data raises a ValueError where it fails."""
        model: Any = self
        before = model.train_function
        super().make_train_function(force=force)  # type: ignore[misc]
        if model.train_function is not before:
            model.train_function = backend.with_value_errors(model.train_function)
        return model.train_function

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model through this class's own `compile`.

        Keras skips an overridden `compile` on loading. A mixin that gives `compile` an argument
        adds it, serialised, to what `get_compile_config` returns, and it arrives there again.
        """
        model: Any = self
        model.compile(**keras.saving.deserialize_keras_object(config))
        if model.optimizer is not None and model.built:
            # The file's optimizer state is loaded next and needs variables to go into.
            model.optimizer.build(model.trainable_variables)

    def run_update(self, given: Batch, apply: Callable[[Any], None]) -> tuple[Batch, Any]:
        """One update: all hooks from `prepare_batch` to `after_update`, in their order.

        Not to be overridden. What looks into a step from outside runs this with an `apply` of its
        own, and so leaves no hook out.

        Args:
            given: The batch as `fit` gave it.
            apply: Called with the gradients.

        Returns:
            The batch that was trained on, and the predictions of it.
        """
        batch = self.prepare_batch(given)
        y_pred, gradients, extra = self.compute_gradients(batch)
        apply(gradients)
        self.after_update(batch, extra)
        return batch, y_pred

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of `fit`; override a hook instead of this."""
        model: Any = self
        given = Batch(*keras.utils.unpack_x_y_sample_weight(data))
        self.begin_step(given)
        for _ in range(check_integer("updates_per_batch", self.updates_per_batch, minimum=1)):
            batch, y_pred = self.run_update(given, lambda gradients: _apply(model, gradients))
        return model.compute_metrics(batch.x, given.y, y_pred, sample_weight=given.sample_weight)


def _apply(model: Any, gradients: Any) -> None:
    if model.trainable_weights:
        model.optimizer.apply(gradients, model.trainable_weights)
    else:
        warnings.warn("The model does not have any trainable weights.", stacklevel=5)


def _floating(x: Any) -> list[Any]:
    return [leaf for leaf in keras.tree.flatten(x) if _is_floating(leaf)]


def _is_floating(leaf: Any) -> bool:
    return leaf is not None and keras.backend.is_float_dtype(leaf.dtype)


def _in_structure(x: Any, gradients: list[Any]) -> Any:
    """The gradients where their inputs are in `x`, None elsewhere; None if there are none."""
    if not gradients:
        return None
    remaining = iter(gradients)
    return keras.tree.map_structure(lambda leaf: next(remaining) if _is_floating(leaf) else None, x)


def before_owner(cls: type, owner: type) -> tuple[type, ...]:
    """The classes of the method resolution order whose methods come before the owner's."""
    return cls.__mro__[: cls.__mro__.index(owner)]


def _refuse_bypassed_hooks(cls: type) -> None:
    mro = cls.__mro__
    owner = mro.index(TrainStepOwner)
    if keras.Model in mro and mro.index(keras.Model) < owner:
        mixins = [
            base.__name__
            for base in cls.__bases__
            if issubclass(base, TrainStepOwner) and not issubclass(base, keras.Model)
        ]
        raise TypeError(
            f"Mixins must be listed before keras.Model. Received: class {cls.__name__}"
            f"({', '.join(base.__name__ for base in cls.__bases__)}). With keras.Model first, "
            f"Python would use its train_step and ignore {' and '.join(mixins)} silently. "
            f"Write: class {cls.__name__}({', '.join(mixins)}, keras.Model)."
        )
    for base in before_owner(cls, TrainStepOwner):
        for owned in OWNED:
            if owned in vars(base):
                raise TypeError(
                    f"`{owned}` has one owner in keras_modelsec and must not be overridden. "
                    f"Received: {base.__name__}.{owned}. Override `prepare_batch`, "
                    "`training_loss`, `after_update` or `compute_metrics` instead, calling "
                    "`super()` in each."
                )
