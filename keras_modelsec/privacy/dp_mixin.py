"""The mixin that makes a model's train step private when it has a `DPOptimizer`."""

import weakref
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.train_step import TrainStepOwner
from keras_modelsec.privacy.capture import find_units
from keras_modelsec.privacy.clipping import clipped_gradients
from keras_modelsec.privacy.dp_optimizer import DPOptimizer
from keras_modelsec.privacy.errors import NotPrivateError
from keras_modelsec.privacy.independence import check_examples_are_independent
from keras_modelsec.privacy.layer_rules.rule import floating_leaves
from keras_modelsec.privacy.model_checks import check_model

# Kept while the model is compiled without privacy in between, to evaluate it for instance.
_LAST_PRIVATE: "weakref.WeakKeyDictionary[keras.Model, DPOptimizer]" = weakref.WeakKeyDictionary()


class DPMixin(TrainStepOwner):
    """Trains privately with a `DPOptimizer`, and exactly as `keras.Model` with any other.

    List it before `keras.Model`: `class Net(ms.DPMixin, keras.Model)`.

    The model must treat the examples of a batch independently and keep its weights in layers; what
    breaks that (BatchNormalization, activity regularizers, weights tied across layers, a custom
    `compute_loss`) is refused with the name of the layer and what to use instead.

    Works with functional, Sequential and subclassed models, dict and list inputs, several outputs,
    sample and class weights, mixed precision, `jit_compile`, `steps_per_execution`, and
    MirroredStrategy. Accumulation goes to `DPOptimizer(gradient_accumulation_steps=...)`.
    """

    def compile(self, optimizer: Any = "rmsprop", *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`; a model that cannot be trained privately is refused here.

        Compiling again with another `DPOptimizer` keeps what was spent: it was spent on the
        weights. So does compiling without one in between.
        """
        model: Any = self
        if not isinstance(optimizer, str):
            optimizer = keras.optimizers.get(optimizer)
        previous = _LAST_PRIVATE.get(model)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and isinstance(
            optimizer.inner_optimizer, DPOptimizer
        ):
            raise NotPrivateError(
                "A DPOptimizer must not be wrapped: a LossScaleOptimizer skips steps depending on "
                "the data. Pass the DPOptimizer itself, which scales float16 losses by itself."
            )
        if isinstance(optimizer, DPOptimizer):
            kwargs["auto_scale_loss"] = False
            if model.built:
                check_model(model)
                find_units(model)
        super().compile(optimizer, *args, **kwargs)  # type: ignore[misc]
        if isinstance(optimizer, DPOptimizer) and internals.compiled_loss(model) is None:
            raise NotPrivateError(
                "A model trained privately must take its loss from `compile(loss=...)`, whose "
                "value for each example is clipped. Received: loss=None."
            )
        if isinstance(optimizer, DPOptimizer) and previous is not None:
            optimizer.inherit_spending(previous)
        if isinstance(optimizer, DPOptimizer):
            _LAST_PRIVATE[model] = optimizer

    def make_train_function(self, force: bool = False) -> Any:
        """Called by Keras as each `fit` begins, which may start the data over."""
        optimizer = getattr(self, "optimizer", None)
        if isinstance(optimizer, DPOptimizer):
            history = getattr(self, "history", None)
            optimizer.begin_run((getattr(history, "params", None) or {}).get("steps"))
        return super().make_train_function(force)  # type: ignore[misc]

    def compute_gradients(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
        """Clipped per-example sums for a `DPOptimizer`, else the gradients as they are."""
        model: Any = self
        optimizer = model.optimizer
        if not isinstance(optimizer, DPOptimizer):
            return super().compute_gradients(x, y, sample_weight)
        internals.build_for_training(model, x, y, sample_weight)
        x = _require_finite(x)
        check_examples_are_independent(model, x)
        return clipped_gradients(model, x, y, sample_weight, optimizer.l2_norm_clip)


def _require_finite(x: Any) -> Any:
    """Passes `x` on, unless it holds NaN or infinity: a mistake in the data, not an example.

    The private step itself would count such an example as zero and train on with a loss of NaN.
    Under XLA nothing is checked.
    """

    def require(leaf: Any) -> Any:
        if not floating_leaves(leaf):
            return leaf
        return backend.require(
            ops.all(ops.isfinite(leaf)),
            "Training inputs must be finite. Received: NaN or infinity in a batch of shape",
            ops.shape(leaf),
            passing=leaf,
        )

    return keras.tree.map_structure(require, x)
