import numpy as np
import pytest

from keras_modelsec.robustness.image_grid import are_images, draw_grid


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 8, 1), (3, 8, 8, 3)])
def test_grid_has_a_column_for_each_example_and_three_rows(shape):
    clean = np.zeros(shape, "float32")
    predictions = np.array([0, 1, 2]), np.array([0, 2, 10])
    grid = draw_grid(clean, clean + 1, predictions, np.array([0, 1, 2]), (0.0, 1.0))
    side, strip, gap = 72, 15 + 8, 4
    assert grid.shape == (3 * (side + strip + gap), 3 * (side + 2 * gap), 3)
    assert grid.dtype == np.uint8
    assert (grid[strip : strip + side, gap : gap + side] == 0).all()
    below = side + strip + gap
    assert (grid[below + strip : below + strip + side, gap : gap + side] == 255).all()


def test_prediction_is_green_when_right_and_red_when_wrong():
    clean = np.full((2, 8, 8), 0.5, "float32")
    predictions = np.array([7, 7]), np.array([7, 7])
    grid = draw_grid(clean, clean, predictions, np.array([7, 3]), (0.0, 1.0)).astype(int)
    first, second = grid[:23, :80], grid[:23, 80:]
    assert (first[..., 1] > first[..., 0]).any()
    assert not (first[..., 0] > first[..., 1]).any()
    assert (second[..., 0] > second[..., 1]).any()


def test_different_predictions_look_different():
    clean = np.zeros((1, 8, 8), "float32")
    drawn = {
        draw_grid(clean, clean, (np.array([n]), np.array([n])), np.array([n]), (0.0, 1.0)).tobytes()
        for n in range(20)
    }
    assert len(drawn) == 20


def test_only_images_are_drawn():
    assert are_images(np.zeros((2, 8, 8)))
    assert are_images(np.zeros((2, 8, 8, 3)))
    assert not are_images(np.zeros((2, 64)))
    assert not are_images(np.zeros((2, 8, 8, 2)))
