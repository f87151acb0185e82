import os

import keras
import numpy as np
import pytest

from keras_modelsec._core import provenance
from keras_modelsec._core.monitor import Monitor


class Norm(Monitor):
    section = "norm"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.measured, self.last = [], {}

    def begin(self):
        self.last = {}
        if not self.model.trainable_weights:
            raise ValueError("nothing to measure")

    def measure(self, step):
        self.measured.append(step)
        self.last = {"norm": float(np.linalg.norm(self.model.get_weights()[0])) + step}
        if self._log is not None:
            self._log.write(step, scalars=self.scalars())

    def scalars(self):
        return self.last

    def facts(self):
        return self.last


def fit(monitor, epochs=5, layer=None):
    model = keras.Sequential([keras.Input((2,)), layer or keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(
        np.ones((4, 2)), np.ones((4, 1)), epochs=epochs, verbose=0, callbacks=[monitor]
    )
    return model, history.history


def test_measures_in_the_first_epoch_and_every_so_many_and_repeats_the_figures():
    monitor = Norm(3)
    model, history = fit(monitor)
    assert monitor.measured == [0, 2]
    found = history["norm"]
    assert len(found) == 5
    assert found[0] == found[1] != found[2] == found[3] == found[4]
    assert provenance.notes(model) == {"norm": {"norm": found[-1]}}


def test_each_fit_begins_anew():
    monitor = Norm(10)
    fit(monitor)
    fit(monitor, epochs=1)
    assert monitor.measured == [0, 0]


def test_model_that_cannot_be_measured_is_refused_before_training():
    with pytest.raises(ValueError, match="nothing to measure"):
        fit(Norm(1), layer=keras.layers.Flatten())


def test_tensorboard_has_a_file_of_each_fit_and_none_stays_open(tmp_path):
    monitor = Norm(1, log_dir=tmp_path / "new" / "logs")
    fit(monitor, epochs=2)
    (events,) = os.listdir(tmp_path / "new" / "logs")
    assert os.path.getsize(tmp_path / "new" / "logs" / events) > 100
    assert monitor._log is None


@pytest.mark.parametrize("every", [0, -1, 1.5, "2", True])
def test_how_often_must_be_a_whole_number_from_1(every):
    with pytest.raises((TypeError, ValueError), match="every"):
        Norm(every)
