import csv
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_modelsec.robustness import RobustnessMonitor
from keras_modelsec.robustness.attacks import FGSM, PGD, AttackResult, RandomNoise

LOSS = "sparse_categorical_crossentropy"


@pytest.fixture
def problem(blobs, linear_model):
    """A model that is right on clean images and wrong under a larger attack."""
    model = linear_model("softmax", scale=50)
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    return model, blobs.x, blobs.y


def fit(problem, callbacks, epochs=1):
    model, x, y = problem
    return model.fit(x, y, epochs=epochs, verbose=0, callbacks=callbacks).history


def test_figures_are_those_of_attacking_by_hand(problem):
    model, x, y = problem
    attack = FGSM(0.15)
    monitor = RobustnessMonitor(x, y, [attack, RandomNoise(0.01)])
    history = fit(problem, [monitor])
    clean = np.asarray(model(x)).argmax(1) == y
    robust = np.asarray(model(attack(model, x, y))).argmax(1) == y
    assert 0 < robust.sum() < len(y)
    assert history["clean_accuracy"] == [clean.mean()]
    assert history["robust_accuracy_fgsm_linf"] == [(clean & robust).mean()]
    assert history["robust_accuracy_random_noise_linf"] == [1.0]


class Helping(FGSM):
    """Gives back an input that is surely classified as its label."""

    def run(self, model, x, y, *, batch_size=256):
        predicted = np.asarray(model(x)).argmax(1)
        found = x[[int(np.flatnonzero(predicted == label)[0]) for label in y]]
        none = np.zeros(len(y), "bool")
        return AttackResult(
            self.name, found, none, none.astype("float32"), none.astype("int32"), none
        )


def test_example_wrong_before_and_right_after_the_attack_does_not_count(problem):
    model, x, y = problem
    wrong = y.copy()
    wrong[:10] = (wrong[:10] + 1) % 4
    results = RobustnessMonitor(x, wrong, Helping(0.1)).evaluate(model)
    assert results["clean"].correct == len(y) - 10
    assert results["helping_linf"].correct == len(y) - 10


def test_callbacks_after_it_see_the_figures(problem, tmp_path):
    _, x, y = problem
    callbacks = [
        RobustnessMonitor(x, y, PGD(0.3, steps=2)),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{robust_accuracy_pgd_linf:.2f}.keras"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.EarlyStopping("robust_accuracy_pgd_linf", mode="max", patience=1),
    ]
    history = fit(problem, callbacks, epochs=5)
    assert len(history["robust_accuracy_pgd_linf"]) == 2  # no better, so stopped
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == [
        "1-0.00.keras",
        "2-0.00.keras",
    ]
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["robust_accuracy_pgd_linf"]) for row in rows] == [0.0, 0.0]


def test_skipped_epochs_repeat_the_last_values(problem, monkeypatch):
    _, x, y = problem
    monitor = RobustnessMonitor(x, y, FGSM(0.05), every=3)
    evaluated = []
    evaluate = monitor.evaluate

    def spy(model, step=0):
        evaluated.append(step)
        return evaluate(model, step)

    monkeypatch.setattr(monitor, "evaluate", spy)
    history = fit(problem, [monitor], epochs=7)
    assert evaluated == [0, 2, 5]
    assert len(history["robust_accuracy_fgsm_linf"]) == 7


def test_later_epochs_trace_nothing_new(blobs):
    class Counting(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4, activation="softmax")
            self.calls = 0

        def call(self, x):
            self.calls += 1
            return self.dense(x)

    model = Counting()
    model.compile("sgd", LOSS)
    monitor = RobustnessMonitor(blobs.x, blobs.y, [PGD(0.1, steps=2)], batch_size=40)
    model.fit(blobs.x, blobs.y, epochs=1, verbose=0, callbacks=[monitor])
    calls = model.calls
    model.fit(blobs.x, blobs.y, epochs=4, initial_epoch=1, verbose=0, callbacks=[monitor])
    assert model.calls <= calls + 1


def test_results_say_what_they_rest_on(problem):
    model, x, y = problem
    monitor = RobustnessMonitor(x, y, PGD(0.05, steps=3, restarts=2))
    assert monitor.results == {}
    result = monitor.evaluate(model)["pgd_linf"]
    assert result is monitor.results["pgd_linf"]
    assert result.sample_size == 96
    assert result.settings["steps"] == 3
    assert result.settings["restarts"] == 2
    low, high = result.confidence_interval
    assert low <= result.accuracy <= high
    assert high - low > 0.01


@pytest.mark.parametrize("labels", ["numbers", "column", "one_hot", "smoothed"])
def test_label_forms_give_the_same_figures(blobs, linear_model, labels):
    forms = {
        "numbers": blobs.y,
        "column": blobs.y[:, None],
        "one_hot": keras.utils.to_categorical(blobs.y, 4),
        "smoothed": keras.utils.to_categorical(blobs.y, 4) * 0.8 + 0.05,
    }
    model = linear_model("softmax", scale=50)
    model.compile(loss=LOSS if labels in ("numbers", "column") else "categorical_crossentropy")
    results = RobustnessMonitor(blobs.x, forms[labels], FGSM(0.15)).evaluate(model)
    reference = linear_model(scale=50)
    expected = np.asarray(reference(FGSM(0.15)(reference, blobs.x, blobs.y))).argmax(1) == blobs.y
    assert results["fgsm_linf"].correct == expected.sum()


@pytest.mark.parametrize("from_logits", [False, True])
def test_binary_models_are_watched(blobs, from_logits):
    two = blobs.y < 2
    x, y = blobs.x[two], blobs.y[two]
    kernel = 50 * (blobs.kernel[:, 1] - blobs.kernel[:, 0])
    bias = 50 * (blobs.bias[1] - blobs.bias[0])
    activation = None if from_logits else "sigmoid"
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1, activation=activation)])
    model.set_weights([kernel[:, None], np.array([bias])])
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=from_logits))
    results = RobustnessMonitor(x, y, FGSM(0.4)).evaluate(model)
    assert results["clean"].accuracy == 1.0
    assert results["fgsm_linf"].accuracy == 0.0


def test_dict_inputs_are_watched():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    outputs = keras.layers.Dense(3)(keras.layers.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).random((12, 4)).astype("float32")
    y = np.asarray(model({"a": x, "b": x})).argmax(1)
    monitor = RobustnessMonitor({"a": x, "b": x}, y, FGSM(0.5))
    history = model.fit({"a": x, "b": x}, y, verbose=0, callbacks=[monitor]).history
    assert history["robust_accuracy_fgsm_linf"][0] < 1.0


def events(folder):
    found = {}
    for name in os.listdir(folder):
        for event in tf.compat.v1.train.summary_iterator(os.path.join(folder, name)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(value)
    return found


@pytest.mark.filterwarnings("ignore:.*tf_record_iterator")
def test_log_dir_gets_figures_predictions_and_images(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(12, activation="softmax"),
        ]
    )
    model.compile("sgd", LOSS)
    x = np.random.default_rng(0).random((10, 8, 8, 1)).astype("float32")
    y = np.random.default_rng(1).integers(0, 12, 10)
    monitor = RobustnessMonitor(x, y, FGSM(0.2), log_dir=tmp_path / "new" / "logs", max_images=5)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[monitor])
    found = events(tmp_path / "new" / "logs")
    assert len(found["robust_accuracy_fgsm_linf"]) == 2
    pictures = found["adversarial_examples/fgsm_linf"]
    texts = found["adversarial_predictions/fgsm_linf"]
    for tag, kind in ((pictures, "images"), (texts, "text")):  # TensorBoard hides mixed tags
        assert {v.metadata.plugin_data.plugin_name for v in tag} <= {kind, ""}
    picture = tf.io.decode_png(pictures[0].tensor.string_val[2]).numpy()
    assert picture.shape[2] == 3
    assert picture.shape[1] >= 5 * 72
    assert b"| 0 | " + str(y[0]).encode() in texts[0].tensor.string_val[0]


def test_inputs_that_are_no_images_write_figures_alone(problem, tmp_path):
    _, x, y = problem
    fit(problem, [RobustnessMonitor(x, y, FGSM(0.2), log_dir=tmp_path)])
    assert os.listdir(tmp_path)


def test_attacked_softmax_does_not_look_robust_in_the_log(blobs, linear_model):
    model = linear_model("softmax", scale=5000)
    model.compile("sgd", LOSS)
    results = RobustnessMonitor(blobs.x, blobs.y, FGSM(0.25)).evaluate(model)
    assert results["clean"].accuracy == 1.0
    assert results["fgsm_linf"].accuracy < 0.05


X, Y = np.zeros((4, 3), "float32"), np.zeros(4, "int64")


@pytest.mark.parametrize(
    ("x", "y", "attacks", "options", "error", "message"),
    [
        (X[:2], Y, FGSM(0.1), {}, ValueError, r"same number of examples.*2, 4"),
        (X + np.nan, Y, FGSM(0.1), {}, ValueError, r"finite numbers.*12 NaN"),
        (X + 2, Y, FGSM(0.1), {}, ValueError, r"inside `bounds`"),
        (X, X, FGSM(0.1, targeted=True), {}, ValueError, r"untargeted.*fgsm_linf"),
        (X, Y, [FGSM(0.1), FGSM(0.2)], {}, ValueError, r"names that differ.*fgsm_linf"),
        (X, Y, [FGSM(0.1, name="clean")], {}, ValueError, r"not 'clean'"),
        (X, Y, [], {}, ValueError, r"at least one attack"),
        (X, Y, ["pgd"], {}, TypeError, r"list of attacks.*'pgd'"),
        (X, Y, FGSM(0.1), {"every": 0}, ValueError, r"`every` must be an integer >= 1"),
        (X, Y + 0.5, FGSM(0.1), {}, ValueError, r"class numbers or one-hot rows"),
        (X, np.tile([1.0, 0, 1], (4, 1)), FGSM(0.1), {}, ValueError, r"row \[1\. 0\. 1\.\]"),
        (X, np.tile([0.9, 0, 0.8], (4, 1)), FGSM(0.1), {}, ValueError, r"row \[0\.9 0\.  0\.8\]"),
        (X, np.zeros((4, 3)), FGSM(0.1), {}, ValueError, r"row \[0\. 0\. 0\.\]"),
    ],
)
def test_bad_argument_is_refused_before_any_training(x, y, attacks, options, error, message):
    with pytest.raises(error, match=message):
        RobustnessMonitor(x, y, attacks, **options)


def test_log_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"`log_dir` must be a folder"):
        RobustnessMonitor(X, Y, FGSM(0.1), log_dir=tmp_path / "file")


def test_model_with_two_outputs_is_refused_before_training():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(2)(inputs)])
    model.compile("sgd", ["mse", "mse"])
    before = model.get_weights()
    monitor = RobustnessMonitor(X, Y, FGSM(0.1))
    with pytest.raises(ValueError, match=r"must have one output.*2 outputs"):
        model.fit(X, [np.zeros((4, 2))] * 2, verbose=0, callbacks=[monitor])
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
