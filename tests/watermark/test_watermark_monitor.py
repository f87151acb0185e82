import csv

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.errors import WatermarkError, WatermarkKeyError

_LOSS = "sparse_categorical_crossentropy"


def _fit(model, digits, *callbacks, epochs=2):
    x, y = digits[0].reshape(-1, 64)[:256], digits[1][:256]
    return model.fit(x, y, epochs=epochs, verbose=0, callbacks=list(callbacks)).history


def test_publishes_what_verification_reads(build_mlp, digits, key):
    model = build_mlp(ms.WatermarkRegularizer(key))
    monitor = ms.WatermarkMonitor(key)
    history = _fit(model, digits, monitor, epochs=3)
    report = ms.verify_watermark(model, key)
    assert monitor.report == report
    assert history["watermark_z"][-1] == report.z
    assert history["watermark_log10_p"][-1] == report.log10_p
    assert history["watermark_z"][0] < history["watermark_z"][-1]


def test_skipped_epochs_repeat_the_last_figures_for_later_callbacks(
    build_mlp, digits, key, tmp_path
):
    model = build_mlp(ms.WatermarkRegularizer(key))
    log = tmp_path / "log.csv"
    stop = keras.callbacks.EarlyStopping(monitor="watermark_z", mode="max", patience=9)
    callbacks = [ms.WatermarkMonitor(key, every=2), keras.callbacks.CSVLogger(str(log)), stop]
    z = _fit(model, digits, *callbacks, epochs=4)["watermark_z"]
    assert z[2] == z[1]
    assert len(set(z)) == 3
    with log.open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_unmarked_model_is_refused_before_the_first_step(build_mlp, digits, key):
    model = build_mlp()
    before = model.get_weights()
    with pytest.raises(WatermarkError, match=r"Call ms.attach_watermark"):
        _fit(model, digits, ms.WatermarkMonitor(key))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_marked_weights_without_a_regularizer_may_be_watched(build_mlp, digits, key):
    source, model = build_mlp(compiled=False), build_mlp()
    ms.attach_watermark(source, key)
    model.set_weights(source.get_weights())
    assert _fit(model, digits, ms.WatermarkMonitor(key))["watermark_log10_p"][-1] < -30


def test_frozen_kernels_that_no_penalty_reaches_are_refused(build_mlp, digits, key):
    model = build_mlp(ms.WatermarkRegularizer(key), compiled=False)
    for layer in model.layers[:3]:
        layer.trainable = False
    model.compile("adam", _LOSS)
    with pytest.raises(WatermarkError, match="do not freeze them"):
        _fit(model, digits, ms.WatermarkMonitor(key))
    ms.attach_watermark(model, key, layers=model.layers[:3])  # frozen, but there to be watched
    assert _fit(model, digits, ms.WatermarkMonitor(key))["watermark_log10_p"][-1] < -30


def test_report_is_of_the_averages_that_keras_leaves_in_the_model(build_mlp, digits, key):
    model = build_mlp(ms.WatermarkRegularizer(key), compiled=False)
    model.compile(keras.optimizers.Adam(3e-3, use_ema=True), _LOSS)
    monitor = ms.WatermarkMonitor(key)
    _fit(model, digits, monitor)
    assert monitor.report == ms.verify_watermark(model, key)


def test_inert_regularizer_is_refused(build_mlp, digits, key):
    model = keras.models.clone_model(build_mlp(ms.WatermarkRegularizer(key), compiled=False))
    model.compile("adam", "mse")
    with pytest.raises(WatermarkError, match=r"inert.*restore_key"):
        _fit(model, digits, ms.WatermarkMonitor(key))


def test_another_key_is_refused(build_mlp, digits, key, other_key):
    model = build_mlp(ms.WatermarkRegularizer(key))
    with pytest.raises(WatermarkError, match="needs the key that the model is marked with"):
        _fit(model, digits, ms.WatermarkMonitor(other_key))


def test_index_that_verification_does_not_try_is_refused(build_mlp, digits, key):
    model = build_mlp(ms.WatermarkRegularizer(key, index=1))  # (64, 32) is there once
    with pytest.raises(WatermarkError, match=r"`index` must be below .* 1 for \(64, 32\)"):
        _fit(model, digits, ms.WatermarkMonitor(key))


def test_bad_arguments_are_refused(key):
    with pytest.raises(WatermarkKeyError, match="is needed"):
        ms.WatermarkMonitor(None)
    with pytest.raises(ValueError, match="`every` must be an integer >= 1"):
        ms.WatermarkMonitor(key, every=0)


def test_monitor_shows_no_key(key):
    monitor = ms.WatermarkMonitor(key)
    assert key.hex() not in repr(vars(monitor))
    assert repr(key) not in repr(vars(monitor))
