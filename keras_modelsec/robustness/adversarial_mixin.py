"""Adversarial training as an argument of `compile`: the hooks of the train step it fills."""

from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.train_step import TrainStepOwner
from keras_modelsec.robustness.adversarial_training import AdversarialTraining, as_training


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

    _adversarial: AdversarialTraining | None = None
    _adversarial_state: Any = None

    @property
    def adversarial(self) -> AdversarialTraining | None:
        """The adversarial training this model was compiled with, or None."""
        return self._adversarial

    def compile(self, *args: Any, adversarial: Any = None, **kwargs: Any) -> None:
        """Configures the model for training, as `keras.Model.compile` does.

        Args:
            *args: Passed to `keras.Model.compile`.
            adversarial: An `AdversarialTraining`, or an attack, which stands for
                `AdversarialTraining(attack)`, or None (default) for ordinary training.
            **kwargs: Passed to `keras.Model.compile`.

        Raises:
            TypeError: If `adversarial` is anything else.
        """
        training = None if adversarial is None else as_training(adversarial)
        model: Any = super()
        model.compile(*args, **kwargs)
        self._adversarial = training
        self._adversarial_state = None if training is None else training.new_state(self)

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was called with, `adversarial` included."""
        model: Any = super()
        config = model.get_compile_config()
        if config and self._adversarial is not None:
            config["adversarial"] = keras.saving.serialize_keras_object(self._adversarial)
        return config

    def prepare_inputs(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """Replaces inputs by adversarial ones, according to what the model was compiled with.

        Raises:
            ValueError: If there are no labels to attack.
        """
        x = super().prepare_inputs(x, y, sample_weight)
        if self._adversarial is None:
            return x
        if y is None:
            raise ValueError(
                "Adversarial training needs labels. Received: y=None. Give fit a y, or a dataset "
                "of (x, y) pairs; for an autoencoder, y=x."
            )
        internals.build_for_training(self, x, y, sample_weight)
        return self._adversarial.perturb(self, x, y, self._adversarial_state)
