"""What each family of attacks owns, shown by one attack of it."""

import keras
import numpy as np
import pytest

from keras_modelsec.robustness import RobustnessMonitor
from keras_modelsec.robustness.attacks import FGSM, PGD, AttackSequence, DeepFool, Square


def smallest_change(blobs, x, y, norm):
    """Of a linear model, by the formula: to the nearest of all boundaries, without bounds."""
    logits = x @ blobs.kernel + blobs.bias
    lengths = []
    for k in range(blobs.classes):
        gaps = logits[np.arange(len(y)), y] - logits[:, k]
        slopes = blobs.kernel[:, y].T - blobs.kernel[:, k]
        size = np.linalg.norm(slopes, axis=1) if norm == "l2" else np.abs(slopes).sum(1)
        lengths.append(np.where(y == k, np.inf, gaps / np.where(y == k, 1.0, size)))
    return np.min(lengths, axis=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deep_fool_finds_the_smallest_change_of_a_linear_model(norm, blobs, linear_model):
    x, y = blobs.x[:24], blobs.y[:24]
    result = DeepFool(norm=norm, bounds=None, steps=3).run(linear_model(), x, y)
    assert result.fooled.all()
    # Lengthened by the overshoot of 0.02, and by the little that leads across the boundary.
    np.testing.assert_allclose(
        result.distance, 1.02 * smallest_change(blobs, x, y, norm), rtol=0.02
    )


def test_change_longer_than_the_radius_is_measured_and_not_made(blobs, linear_model):
    model, x, y = linear_model(), blobs.x[:24], blobs.y[:24]
    lengths = DeepFool(norm="l2", steps=3).run(model, x, y).distance
    radius = float(np.median(lengths))
    result = DeepFool(radius, norm="l2", steps=3).run(model, x, y)
    np.testing.assert_array_equal(result.distance, lengths)
    np.testing.assert_array_equal(result.fooled, lengths <= radius)
    np.testing.assert_array_equal(result.x[~result.fooled], x[~result.fooled])


def test_square_needs_no_gradient_and_asks_no_more_than_it_may(blobs, linear_model):
    """What follows a gradient stands still where there is none, what asks does not."""
    logits = linear_model()
    inputs = keras.Input((64,))
    model = keras.Model(inputs, logits(keras.ops.stop_gradient(inputs)))
    x, y = blobs.x[:24], blobs.y[:24]
    result = Square(0.3, queries=300, seed=0).run(model, x, y)
    assert result.fooled.mean() > 0.9
    assert result.queries.min() < result.queries.max() <= 300
    assert PGD(0.3, steps=3).run(model, x, y).still.all()
    assert not result.still.any()
    assert Square(0.3, queries=1).run(model, x, y).queries.max() == 1


def test_sequence_is_the_worst_case_and_drops_what_is_fooled(blobs, linear_model, monkeypatch):
    model, x, y = linear_model(), blobs.x, blobs.y
    first, second = FGSM(0.14), Square(0.14, queries=12, seed=0)  # about half fall to the first
    alone = first.run(model, x, y)
    sizes = []
    run = Square.run

    def counted(self, model, x, y, **options):
        sizes.append(len(x))
        return run(self, model, x, y, **options)

    monkeypatch.setattr(Square, "run", counted)
    result = AttackSequence([first, second]).run(model, x, y)
    assert 0 < alone.fooled.sum() < len(x)
    assert sizes == [int((~alone.fooled).sum())]
    assert (result.fooled >= alone.fooled).all()
    np.testing.assert_array_equal(result.x[alone.fooled], alone.x[alone.fooled])
    assert (result.queries[~alone.fooled] > 1).all()
    assert (result.queries[alone.fooled] == 1).all()


def test_sequence_of_different_threats_is_refused():
    with pytest.raises(ValueError, match="must share one threat"):
        AttackSequence([FGSM(0.1), FGSM(0.2)])
    with pytest.raises(ValueError, match="must be untargeted"):
        AttackSequence([FGSM(0.1, targeted=True)])
    with pytest.raises(TypeError, match="must be a list of attacks"):
        AttackSequence(FGSM(0.1))
    with pytest.raises(ValueError, match="at least one"):
        AttackSequence([])


def test_radius_of_a_sequence_is_that_of_all():
    sequence = AttackSequence([FGSM(0.1), PGD(0.1)])
    sequence.epsilon = 0.3
    assert [attack.epsilon for attack in sequence.attacks] == [0.3, 0.3]
    assert sequence.epsilon == 0.3


def test_monitor_takes_attacks_of_every_family(blobs, linear_model):
    model = linear_model()
    attacks = [
        DeepFool(0.3, norm="l2", steps=2),
        AttackSequence([FGSM(0.05), Square(0.05, queries=3)]),
    ]
    monitor = RobustnessMonitor(blobs.x[:24], blobs.y[:24], attacks)
    results = monitor.evaluate(model)
    for attack in attacks:
        fooled = attack.run(model, blobs.x[:24], blobs.y[:24]).fooled
        assert abs(results[attack.name].accuracy - (1 - fooled.mean())) < 0.2
    assert results["deep_fool_l2"].settings["steps"] == 2


def test_attacks_on_classes_refuse_a_model_without_them(blobs):
    inputs = keras.Input((64,))
    model = keras.Model(inputs, [keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs)])
    labels = [blobs.y[:4], blobs.y[:4]]
    for attack in (DeepFool(0.1, steps=2), Square(0.1, queries=3)):
        with pytest.raises(ValueError, match="must predict one class for each example"):
            attack.run(model, blobs.x[:4], labels)
