"""Every named error has one home, and is the same class wherever it is met."""

import keras_modelsec as ms
from keras_modelsec import errors


def test_errors_have_one_address_but_for_the_flat_ones():
    for name in set(ms.__all__) & set(errors.__all__):
        assert getattr(ms, name) is getattr(errors, name)
    for namespace in (ms.integrity, ms.privacy, ms.watermark):
        assert not set(namespace.__all__) & set(errors.__all__)


def test_every_public_class_of_the_module_is_listed():
    own = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert own == set(errors.__all__)
    assert ms.errors is errors
