"""What `compile(adversarial=...)` takes: an object that says what differs in the train step."""

from typing import Any

import keras

from keras_modelsec._core.batch import Batch, Extra


class Defense:
    """Base of defences: every method does what ordinary training does, override what differs.

    The model asks its defence in each update:

    1. `prepare`, outside of the gradient tape: adversarial inputs, a teacher's answers. They take
       the place of `batch.x`, or go into `batch.aux`.
    2. `loss`, inside of it: one value an example.
    3. `after_update`: moving averages, perturbations that are carried on.

    `updates_per_batch` times for each batch. The methods are traced once, and run for every batch:
    what they compute is tensors, made with `keras.ops`. They touch variables only through the
    model, its optimizer and `state`, which `new_state` made; nothing else is kept between steps.

    A defence works with a `DPOptimizer` if it updates once a batch, its loss is one value an
    example in which no other example has a part, and it keeps nothing of the data in its state;
    what breaks that is refused with the name of the defence.

    It is written into saved `.keras` files with the compile arguments and is in force after
    loading: give it a `get_config`, and register its class with
    `keras.saving.register_keras_serializable`. Its state reaches no file.

    Attributes:
        updates_per_batch: Optimizer updates on one batch, int >= 1, each preceded by `prepare`.
            Read when the step is traced.
        wants_input_gradients: Whether `after_update` is given the gradient of the loss with
            respect to `batch.x`, which the same backward pass gives nearly for free.

    Example:
    ```python
    from keras_modelsec.defenses import Defense

    @keras.saving.register_keras_serializable("my_package")
    class LogitPairing(Defense):
        def __init__(self, attack, strength=0.5):
            self.attack, self.strength = attack, strength

        def new_state(self, model):
            return self.attack.new_state(model)

        def prepare(self, model, batch, state):
            adversarial = self.attack.perturb(model, batch.x, batch.y, state)
            return batch.replace(aux={**batch.aux, "adversarial": adversarial})

        def loss(self, model, batch, y_pred, state):
            others = model(batch.aux["adversarial"], training=True)
            pairing = keras.ops.mean(keras.ops.square(y_pred - others), axis=-1)
            return model.example_losses(batch, y_pred) + self.strength * pairing

        def get_config(self):
            attack = keras.saving.serialize_keras_object(self.attack)
            return {"attack": attack, "strength": self.strength}

        @classmethod
        def from_config(cls, config):
            attack = keras.saving.deserialize_keras_object(config["attack"])
            return cls(attack, config["strength"])

    model.compile("adam", "sparse_categorical_crossentropy",
                  adversarial=LogitPairing(ms.attacks.PGD(epsilon=0.1, steps=7)))
    ```
    """

    updates_per_batch: int = 1
    wants_input_gradients: bool = False

    def new_state(self, model: keras.Model) -> Any:
        """Makes what one compiled model keeps between steps; called by each `compile`.

        The variables are made where the model keeps its own. One that is assigned to on several
        replicas needs an `aggregation`, as every `keras.Variable` does.

        Returns:
            Variables and seed generators, one or nested. Default: None.
        """
        return None

    def prepare(self, model: keras.Model, batch: Batch, state: Any) -> Batch:
        """The batch to train on, from the one that `fit` gave. Default: the batch itself.

        The examples must stay in number and order.

        Args:
            model: Built and compiled. A call of it here must be in inference mode if BatchNorm and
                dropout are to take no notice.
            batch: With targets; `batch.y` is never None.
            state: From `new_state`.
        """
        return batch

    def loss(self, model: keras.Model, batch: Batch, y_pred: Any, state: Any) -> Any:
        """The loss of each example. Default: that of `compile(loss=...)`.

        Weight penalties and what layers add are not part of it; they are added to its mean.

        Args:
            model: May be called again here, in training mode for a gradient as of `y_pred`.
            batch: From `prepare`. `batch.sample_weight` has no part in what is returned here but
                by `example_losses`: a row of weight 0 can have a loss that needs no label.
            y_pred: What the model predicts of `batch.x` in training mode.
            state: From `new_state`.

        Returns:
            A tensor (batch,), or a scalar if examples meet in it.
        """
        secured: Any = model
        return secured.example_losses(batch, y_pred)

    def after_update(self, model: keras.Model, batch: Batch, extra: Extra, state: Any) -> None:
        """Called after each update of the weights. Default: nothing.

        Args:
            model: With its new weights.
            batch: From `prepare`.
            extra: What the backward pass gave besides; see `wants_input_gradients`.
            state: From `new_state`, to be assigned to.
        """

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Defense":
        """Builds it from what `get_config` gave."""
        return cls(**config)
