"""The one owner of `train_step`, and the hooks that mixins override.

Independent `train_step` overrides silently drop each other, and a mixin listed after `keras.Model`
is ignored without a word. So one class here overrides `train_step`, every mixin extends that class
and overrides a hook, and a class whose bases would bypass either is refused when it is defined.
"""

import warnings
from typing import Any

import keras

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals


class TrainStepOwner:
    """Splits `keras.Model.train_step` into hooks, without changing what it computes.

    Order of a step: `prepare_inputs`, then `compute_gradients` (forward pass, loss, gradients),
    then the optimizer, then `compute_metrics`. With no hook overridden, the weights after `fit`
    equal those of `keras.Model` to the last bit.

    Not for direct use: derive a mixin from it, call `super()` in each hook so that mixins compose,
    and list mixins before `keras.Model`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_bypassed_hooks(cls)

    def prepare_inputs(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """Hook: the inputs the step trains on, in the structure of `x`. Default: `x` itself."""
        return x

    def compute_gradients(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
        """Hook: forward pass, loss and gradients.

        Returns:
            The predictions, and the gradients as the optimizer's `apply` takes them, one for each
            of `self.trainable_weights`.
        """
        model: Any = self

        def forward() -> tuple[Any, Any]:
            y_pred = internals.call_for_training(model, x)
            loss = internals.compute_loss(model, x, y, y_pred, sample_weight)
            internals.track_loss(model, loss, x)
            if model.optimizer is not None:
                loss = model.optimizer.scale_loss(loss)
            return loss, y_pred

        return backend.value_and_gradients(forward, lambda: model.trainable_weights)

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

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of `fit`; override a hook instead of this."""
        model: Any = self
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = self.prepare_inputs(x, y, sample_weight)
        y_pred, gradients = self.compute_gradients(x, y, sample_weight)
        if model.trainable_weights:
            model.optimizer.apply(gradients, model.trainable_weights)
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


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
    for base in mro[:owner]:
        if "train_step" in vars(base):
            raise TypeError(
                "`train_step` has one owner in keras_modelsec and must not be overridden. "
                f"Received: {base.__name__}.train_step. Override `prepare_inputs`, "
                "`compute_gradients` or `compute_metrics` instead, calling `super()` in each."
            )
