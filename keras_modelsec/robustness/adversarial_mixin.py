"""A defence as an argument of `compile`: the hooks of the train step that ask it."""

from typing import Any

import keras

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.batch import Batch, Extra
from keras_modelsec._core.checks import check_integer
from keras_modelsec._core.train_step import TrainStepOwner
from keras_modelsec.robustness.adversarial_training import as_defense
from keras_modelsec.robustness.attacks.labels import check_label_form
from keras_modelsec.robustness.defense import Defense


class _Untracked:
    """Holds a defence's state where Keras, looking for a model's weights, does not find it."""

    def __init__(self, value: Any):
        self.value = value


class AdversarialMixin(TrainStepOwner):
    """Gives a `keras.Model` the compile argument `adversarial`.

    Listed before `keras.Model`, alone or with the mixins of other domains in any order. Without
    `adversarial=` the model trains exactly as `keras.Model` does. The argument is written into
    saved `.keras` files and is in force again after loading.

    What this does not stop: the training metrics describe the batches the model was trained on,
    which are adversarial ones; use `RobustnessMonitor` for clean and robust accuracy.

    Example:
    ```python
    class Net(ms.AdversarialMixin, keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(10)

        def call(self, x):
            return self.dense(x)

    model = Net()
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        adversarial=ms.AdversarialTraining(ms.attacks.PGD(epsilon=0.1, steps=7)),
    )
    ```
    """

    _adversarial: Defense | None = None
    _defense_state: "_Untracked"

    @property
    def adversarial(self) -> Defense | None:
        """The defence this model was compiled with, or None."""
        return self._adversarial

    def compile(self, *args: Any, adversarial: Any = None, **kwargs: Any) -> None:
        """Configures the model for training, as `keras.Model.compile` does.

        Args:
            *args: Passed to `keras.Model.compile`.
            adversarial: A `Defense`, such as `AdversarialTraining`, or an attack, which stands for
                `AdversarialTraining(attack)`, or None (default) for ordinary training.
            **kwargs: Passed to `keras.Model.compile`.

        Raises:
            TypeError: If `adversarial` is anything else.
            ValueError: If its `updates_per_batch` is no integer >= 1.
        """
        defense = None if adversarial is None else as_defense(adversarial)
        if defense is not None:
            check_integer("updates_per_batch", defense.updates_per_batch, minimum=1)
        model: Any = super()
        model.compile(*args, **kwargs)
        self._adversarial = defense
        if defense is not None:
            with backend.variable_scope(self):
                self._defense_state = _Untracked(defense.new_state(self))

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was called with, `adversarial` included."""
        model: Any = super()
        config = model.get_compile_config()
        if config and self._adversarial is not None:
            config["adversarial"] = keras.saving.serialize_keras_object(self._adversarial)
        return config

    @property
    def updates_per_batch(self) -> int:  # type: ignore[override]
        """As the defence, or another mixin, says; 1 without one."""
        defense = self._adversarial
        own = super().updates_per_batch
        return own if defense is None else max(own, defense.updates_per_batch)

    @property
    def wants_input_gradients(self) -> bool:  # type: ignore[override]
        """Whether the defence, or another mixin, wants them."""
        defense = self._adversarial
        wants = defense is not None and defense.wants_input_gradients
        return wants or super().wants_input_gradients

    def prepare_batch(self, batch: Batch) -> Batch:
        """Lets the defence prepare the batch.

        Raises:
            ValueError: If there are no labels to attack.
        """
        batch = super().prepare_batch(batch)
        if self._adversarial is None:
            return batch
        if batch.y is None:
            raise ValueError(
                "Adversarial training needs labels. Received: y=None. Give fit a y, or a dataset "
                "of (x, y) pairs; for an autoencoder, y=x."
            )
        check_label_form(self, batch.x, batch.y)
        internals.build_for_training(self, batch.x, batch.y, batch.sample_weight)
        return self._adversarial.prepare(self, batch, self._adversarial_state)

    def changes_loss(self) -> bool:
        """Whether the defence, or another class, changes the compiled loss."""
        return self._defends_by_loss() or super().changes_loss()

    def asked_by_hooks(self) -> list[Any]:
        """The defence, if there is one."""
        return super().asked_by_hooks() + ([] if self._adversarial is None else [self._adversarial])

    def name_of_hooks(self) -> str:
        """The defence and the class, for messages."""
        own = super().name_of_hooks()
        if self._adversarial is None:
            return own
        return f"the defence {type(self._adversarial).__name__} of {own}"

    def training_loss(self, batch: Batch, y_pred: Any) -> Any:
        """The defence's loss of each example, or the compiled one."""
        if self._adversarial is None or not self._defends_by_loss():
            return super().training_loss(batch, y_pred)
        return self._adversarial.loss(self, batch, y_pred, self._adversarial_state)

    def after_update(self, batch: Batch, extra: Extra) -> None:
        """Lets the defence keep what it wants of the update."""
        super().after_update(batch, extra)
        if self._adversarial is not None:
            self._adversarial.after_update(self, batch, extra, self._adversarial_state)

    @property
    def _adversarial_state(self) -> Any:
        return self._defense_state.value

    def _defends_by_loss(self) -> bool:
        return self._adversarial is not None and type(self._adversarial).loss is not Defense.loss
