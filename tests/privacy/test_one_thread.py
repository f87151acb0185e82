"""A model is trained privately by one thread at a time."""

import concurrent.futures

import keras
import pytest

from keras_modelsec.errors import NotPrivateError


class _TrainsInAnotherThread(keras.callbacks.Callback):
    def __init__(self, train):
        super().__init__()
        self._train = train

    def on_train_batch_end(self, batch, logs=None):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(self._train, self.model).result()


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_second_thread_is_refused_while_one_trains(private_model, tiny_data, method):
    """It counted the steps of the first as its own: as those of a pass over arrays, say."""
    model = private_model()
    callback = _TrainsInAnotherThread(lambda model: getattr(model, method)(*tiny_data))
    with pytest.raises(NotPrivateError, match="one thread at a time"):
        model.fit(*tiny_data, batch_size=6, verbose=0, callbacks=[callback])
    assert model.optimizer.release_count == 1


def test_threads_may_train_one_after_the_other_and_a_callback_in_its_own(private_model, tiny_data):
    class Trains(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.train_on_batch(*tiny_data)

    model = private_model()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(model.fit, *tiny_data, verbose=0, callbacks=[Trains()]).result()
    model.fit(*tiny_data, verbose=0)
    assert model.optimizer.release_count == 3


def test_other_models_train_in_other_threads(private_model, tiny_data):
    other = private_model()
    callback = _TrainsInAnotherThread(lambda _: other.train_on_batch(*tiny_data))
    private_model().fit(*tiny_data, verbose=0, callbacks=[callback])
    assert other.optimizer.release_count == 1
