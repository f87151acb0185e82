"""Runs of a model beside its training that leave no trace in it: attacks, monitors, probes.

Owns that a `fit` gives the same weights, to the last bit, whether the model was run in between or
not. Randomness that a layer keeps where neither Keras nor this can see it (a `tf.Variable` of its
own, NumPy's generator) is not put back.
"""

import contextlib
import functools
import random
import weakref
from collections.abc import Iterator

import keras

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals

# Keras's seeds lie below this.
_SEEDS = 10**9
# Odd and far from simple fractions of _SEEDS, so that the streams of one model lie apart.
_STRIDE = 618_033_989

_seeds_drawn: weakref.WeakKeyDictionary[keras.Model, int] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def undisturbed(model: keras.Model) -> Iterator[None]:
    """While open, `model` may be run; afterwards it and all random streams are what they were.

    That is what the model keeps beside its trained weights: the seeds of dropout and augmentation,
    statistics, counters. Layers that draw without a seed of their own draw from another stream
    than Keras's global one; a function that is compiled meanwhile does so ever after.
    """
    with (
        internals.global_seeds_replaced(_own_global_seeds()),
        backend.own_eager_randomness(),
        backend.contents_put_back(model.non_trainable_variables),
    ):
        yield


@functools.cache
def _own_global_seeds() -> keras.random.SeedGenerator:
    # Never dropped: compiled functions refer to its variable without keeping it alive.
    return keras.random.SeedGenerator(_next_of_python())


def fresh_seed(model: keras.Model) -> int:
    """A seed that follows `keras.utils.set_random_seed`, another one each time for one model.

    Draws nothing from Python's generator, as Keras does, since `fit` shuffles with it.
    """
    drawn = _seeds_drawn.get(model, 0)
    _seeds_drawn[model] = drawn + 1
    return (_next_of_python() + drawn * _STRIDE) % _SEEDS


def _next_of_python() -> int:
    twin = random.Random()
    twin.setstate(random.getstate())
    return twin.randrange(_SEEDS)
