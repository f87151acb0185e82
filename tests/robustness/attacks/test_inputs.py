import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec.robustness.attacks import inputs


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array(["cat", "dog"]), "ndarray of <U3"),
        (np.array([object(), object()]), "ndarray of object"),
        (tf.data.Dataset.from_tensor_slices([1.0]), "Dataset"),
        ([1, 2, 3], "int"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_with_the_remedy(values, found):
    with pytest.raises(TypeError, match=rf"`y` must hold arrays of numbers.*{found}.*numpy\."):
        inputs.as_arrays("y", values)


def test_floating_arrays_get_the_default_precision_and_integers_stay():
    x, n = inputs.as_arrays("x", [np.zeros((2, 3)), np.zeros(2, "uint8")])
    assert (x.dtype, n.dtype) == (np.float32, np.uint8)
