import pytest

from keras_modelsec.robustness import RobustnessResult
from keras_modelsec.robustness.robustness_result import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        # Newcombe, 1998, Two-sided confidence intervals for the single proportion, table I.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_interval_equals_published_values(successes, trials, expected):
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=6e-5)


def test_interval_stays_inside_zero_and_one():
    assert wilson_interval(20, 20)[1] == 1.0
    assert wilson_interval(0, 1)[0] == 0.0


def test_result_gives_its_accuracy():
    result = RobustnessResult("pgd_linf", 15, 20, {"steps": 7})
    assert result.accuracy == 0.75
    assert result.confidence_interval[0] < 0.75 < result.confidence_interval[1]
