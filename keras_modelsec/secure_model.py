"""The composition root: one model class that carries the mixins of every domain."""

from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.serialization import register
from keras_modelsec.privacy.dp_mixin import DPMixin
from keras_modelsec.robustness.adversarial_mixin import AdversarialMixin


@register
class SecureModel(AdversarialMixin, DPMixin, keras.Model):
    """A `keras.Model` whose `fit` can train adversarially and privately.

    Built and used as `keras.Model` is: `SecureModel(inputs, outputs)`, or a subclass with `call`.
    Compiled with an ordinary optimizer and no `adversarial=`, it trains exactly as `keras.Model`
    does, to the last bit.

    Example:
    ```python
    inputs = keras.Input((784,))
    outputs = keras.layers.Dense(10)(inputs)
    model = ms.SecureModel(inputs, outputs)
    model.compile(
        optimizer=ms.DPOptimizer("adam", l2_norm_clip=1.0, noise_multiplier=1.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        adversarial=ms.AdversarialTraining(ms.attacks.PGD(epsilon=0.1, steps=7)),
    )
    ```
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: D102  (see the class)
        # Keras would make the functional form by rewriting the bases of the class it was called on
        # and of those above it, after which none could be subclassed with a `call` of its own.
        if internals.are_functional_arguments(args, kwargs):
            cls = _functional(cls)
        return super().__new__(cls, *args, **kwargs)

    @classmethod
    def from_model(cls, model: keras.Model) -> "SecureModel":
        """Secures a model that exists; layers and weights are shared with it, not copied.

        Args:
            model: A functional or built Sequential model, loaded from a file or not. What it was
                compiled with is not taken over: call `compile` on the result.

        Returns:
            A `SecureModel` with the same inputs, outputs, name and weights.

        Raises:
            TypeError: If `model` is no Keras model, or a subclassed one, whose `call` cannot be
                rebuilt from outside.
            ValueError: If `model` is not built, so that its inputs are not known.
        """
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}.")
        if isinstance(model, keras.Sequential) and not model.built:
            raise ValueError(
                f"`model` must be built. Received: Sequential {model.name!r} without an input "
                "shape. Start it with keras.Input(shape), or call model.build(input_shape) first."
            )
        if not isinstance(model, keras.Sequential) and not internals.is_functional(model):
            raise TypeError(
                "`model` must be functional or Sequential. Received: "
                f"{type(model).__name__}, a subclassed model. Add the mixins to its class: "
                f"class {type(model).__name__}(ms.AdversarialMixin, ms.DPMixin, keras.Model)."
            )
        inputs, outputs = internals.graph_ends(model)
        return SecureModel(inputs, outputs, name=model.name)


@register
class SecureFunctional(SecureModel, internals.Functional):
    """What `SecureModel(inputs, outputs)` makes; not for direct use."""


def _functional(cls: Any) -> Any:
    """The functional form of a class: of a subclass itself, as Keras does, and never of ours."""
    if cls is SecureModel:
        return SecureFunctional
    if issubclass(cls, SecureModel) and not issubclass(cls, SecureFunctional):
        cls.__bases__ = tuple(_functional(base) for base in cls.__bases__)
    return cls
