"""The probe: what couples the examples of a batch is refused, what does not is not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_modelsec as ms
from keras_modelsec._core.batch import Batch
from keras_modelsec.errors import UnsupportedModelError

layers = keras.layers
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(8, 6)).astype("float32")
TOKENS = GENERATOR.integers(0, 5, (8, 6)).astype("int32")
Y = np.array([0, 1, 2, 0, 1, 2, 0, 1])


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _compile(model, loss=None, **options):
    optimizer = ms.DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=1.0)
    model.compile(optimizer, loss or _cross_entropy(), **options)
    return model


def _fit(model, x=X, y=Y, **options):
    model.fit(x, y, batch_size=4, verbose=0, **options)


def _functional(*hidden, out=3, dtype="float32"):
    inputs = keras.Input((6,), dtype=dtype)
    x = inputs
    for layer in hidden:
        x = layer(x)
    return ms.SecureModel(inputs, layers.Dense(out)(x))


class Apply(layers.Layer):
    """Applies a function of a batch in training."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    def call(self, x, training=False):
        return self.function(x) if training else x


def _fake_quantised(x):
    step = ops.max(ops.abs(x)) / 7.0
    return x + ops.stop_gradient(ops.round(x / step) * step - x)


def _ranked(x):
    order = ops.argsort(ops.argsort(x[:, :1], axis=0), axis=0)
    return x * ops.cast(order, x.dtype) / 32.0


def _above_threshold(x):
    return x - ops.where(ops.max(ops.abs(x)) > 5.0, ops.stop_gradient(ops.mean(x, axis=0)), 0.0)


VALUE_COUPLINGS = {
    "centred": lambda x: x - ops.stop_gradient(ops.mean(x, axis=0, keepdims=True)),
    "scaled": lambda x: x / ops.stop_gradient(ops.max(ops.abs(x))),
    "fake_quantised": _fake_quantised,
    "ranked": _ranked,
    "beyond_a_threshold": _above_threshold,
    "compared_with_the_first": lambda x: ops.where(x > x[:1], x, 0.5 * x),
    "weakly": lambda x: x + 1e-6 * x[-1:],
    "shuffled": lambda x: 0.5 * x + 0.5 * tf.random.shuffle(x),
    "in_a_branch": lambda x: ops.cond(
        ops.max(x) > 0, lambda: x - ops.stop_gradient(ops.mean(x, axis=0)), lambda: x
    ),
}


@pytest.mark.parametrize("name", VALUE_COUPLINGS)
def test_layer_that_lets_examples_meet_in_values_is_refused(name):
    with pytest.raises(UnsupportedModelError, match=r"independently.*after the inputs"):
        _fit(_compile(_functional(Apply(VALUE_COUPLINGS[name]))))


@tf.custom_gradient
def _normed_gradient(x):
    return tf.identity(x), lambda dy: dy * 30.0 / (tf.norm(dy) + 1e-12)


@tf.custom_gradient
def _clipped_gradient(x):
    return tf.identity(x), lambda dy: tf.clip_by_norm(dy, 0.05)


@tf.custom_gradient
def _mixed_gradient(x):
    return tf.identity(x), lambda dy: dy + tf.reduce_mean(dy, 0, keepdims=True)


@pytest.mark.parametrize("function", [_normed_gradient, _clipped_gradient, _mixed_gradient])
def test_gradient_in_which_examples_meet_is_refused(function):
    model = _functional(layers.Dense(4, name="before"), Apply(function))
    with pytest.raises(UnsupportedModelError, match="something after layer 'before'"):
        _fit(_compile(model))


class Hooked(ms.SecureModel):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)


class Mixup(Hooked):
    def prepare_batch(self, batch):
        batch = super().prepare_batch(batch)
        return batch.replace(x=0.5 * batch.x + 0.5 * ops.flip(batch.x, axis=0))


class CentredBefore(Hooked):
    def prepare_batch(self, batch):
        return super().prepare_batch(batch.replace(x=batch.x - ops.mean(batch.x, axis=0)))


class CentredInGradients(Hooked):
    def compute_gradients(self, batch):
        return super().compute_gradients(batch.replace(x=batch.x - ops.mean(batch.x, axis=0)))


class SmoothedInGradients(Hooked):
    def compute_gradients(self, batch):
        return super().compute_gradients(batch.replace(y=ops.flip(batch.y, axis=0)))


@pytest.mark.parametrize("build", [Mixup, CentredBefore, CentredInGradients, SmoothedInGradients])
def test_hook_that_mixes_examples_is_refused(build):
    with pytest.raises(UnsupportedModelError, match="a hook before the forward pass"):
        _fit(_compile(build()))


def test_hook_that_leaves_the_private_gradients_out_is_refused():
    class Own(Hooked):
        def compute_gradients(self, batch):
            return self(batch.x), [None, None], None

    model = _compile(Own())
    model(X)
    with pytest.raises(ms.errors.NotPrivateError):
        _fit(model)


@pytest.mark.parametrize(
    "function",
    [
        lambda ids: ops.cast(ids, "float32") - ops.mean(ops.cast(ids, "float32"), axis=0),
        lambda ids: ops.cast(ids, "float32") / (1.0 + ops.cast(ops.max(ids), "float32")),
    ],
    ids=["centred", "scaled_by_the_largest"],
)
def test_integer_inputs_that_meet_are_refused(function):
    model = _functional(layers.Lambda(function), dtype="int32")
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _fit(_compile(model), x=TOKENS)


def test_tokens_that_meet_in_an_embedding_of_few_words_are_refused():
    class Replaced(layers.Layer):
        def call(self, ids):
            return ops.where(ids == ids[:1], 0, ids)

    inputs = keras.Input((6,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(5, 2)(Replaced()(inputs)))
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _fit(_compile(ms.SecureModel(inputs, layers.Dense(3)(x))), x=TOKENS)


def _standardised(y, z):
    y = (y - ops.mean(y, axis=0)) / (ops.std(y, axis=0) + 1e-3)
    return ops.mean(ops.square(y - z), axis=-1)


def _balanced(y, z):
    share = ops.mean(ops.cast(y, "float32"))
    weight = y / (share + 1e-3) + (1 - y) / (1 - share + 1e-3)
    return ops.mean(weight * ops.binary_crossentropy(y, z, from_logits=True), axis=-1)


def _hardest(y, z):
    values = keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True)
    return values * ops.cast(values >= ops.top_k(values, 2)[0][-1], values.dtype)


def _in_batch_softmax(y, z):
    query, key = z[:, :2], z[:, 2:]
    return keras.losses.sparse_categorical_crossentropy(
        ops.arange(ops.shape(query)[0]), ops.matmul(query, ops.transpose(key)), from_logits=True
    )


def _contrastive(y, z):
    z = ops.normalize(z, axis=-1)
    same = ops.cast(ops.equal(ops.reshape(y, (-1, 1)), ops.reshape(y, (1, -1))), z.dtype)
    return -ops.sum(same * ops.log_softmax(ops.matmul(z, ops.transpose(z)), axis=-1), axis=-1)


def _only_for_many_positives(y, z):
    values = ops.mean(ops.square(y - z), axis=-1)
    return values / ops.where(ops.mean(y) > 0.6, ops.mean(y), 1.0)


COLUMN = GENERATOR.normal(size=(8, 1)).astype("float32")
BINARY = (np.arange(8) % 2).astype("float32")[:, None]
LOSS_COUPLINGS = {
    "standardised": (_standardised, COLUMN, 1),
    "balanced": (_balanced, BINARY, 1),
    "hardest": (_hardest, Y, 3),
    "in_batch_softmax": (_in_batch_softmax, Y, 4),
    "contrastive": (_contrastive, Y, 4),
    "for_certain_labels": (_only_for_many_positives, BINARY, 1),
}


@pytest.mark.parametrize("name", LOSS_COUPLINGS)
def test_loss_in_which_examples_meet_is_refused(name):
    loss, y, out = LOSS_COUPLINGS[name]
    with pytest.raises(UnsupportedModelError, match="by the loss"):
        _fit(_compile(_functional(out=out), loss=loss), y=y)


def test_circle_loss_is_refused_because_examples_meet_in_it():
    with pytest.raises(UnsupportedModelError, match="compares every example with every other"):
        _fit(_compile(_functional(out=4), loss=keras.losses.Circle()))


def test_weights_of_examples_that_are_shared_out_over_the_batch_are_refused():
    class Shares(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return ops.mean(ops.square(y_pred - ops.cast(y_true, "float32")), axis=-1)

        def __call__(self, y_true, y_pred, sample_weight=None):
            values = self.call(y_true, y_pred)
            return ops.sum(values * sample_weight) / ops.sum(sample_weight)

    model = _compile(_functional(out=1), loss=Shares())
    with pytest.raises(UnsupportedModelError, match="by the loss"):
        _fit(model, y=COLUMN, sample_weight=np.ones(8, "float32"))


class Frozen(layers.Layer):
    """A batch normalisation of one's own, off while frozen."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x, training=False):
        if training and self.trainable:
            x = x - ops.stop_gradient(ops.mean(x, axis=0))
        return x * self.gain


@pytest.mark.parametrize("compiles_again", [True, False])
def test_model_that_is_changed_is_probed_again(compiles_again):
    layer = Frozen()
    model = _functional(layer)
    layer.trainable = False
    _fit(_compile(model))
    layer.trainable = True
    if compiles_again:
        _compile(model)
    else:
        model.train_function = None
    with pytest.raises(UnsupportedModelError, match="independently"):
        _fit(model)


def test_each_compile_is_probed():
    function = {"mix": lambda x: x}
    model = _functional(Apply(lambda x: function["mix"](x)))
    _fit(_compile(model))
    function["mix"] = VALUE_COUPLINGS["centred"]
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _fit(_compile(model))


class RunningMean(layers.Layer):
    def __init__(self, make, **options):
        super().__init__(**options)
        self.mean = make()

    def call(self, x, training=False):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x, axis=0))
        return x


class WritesOnly(RunningMean):
    def call(self, x, training=False):
        self.mean.assign(ops.mean(x, axis=0))
        return x


class Late(layers.Layer):
    """Keeps something of the data from a later step on."""

    def __init__(self, step, **options):
        super().__init__(**options)
        self.step = step

    def build(self, shape):
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.mean = self.add_weight(shape=(6,), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        self.mean.assign(ops.where(self.seen >= self.step, ops.mean(x, axis=0), self.mean))
        self.seen.assign_add(1.0)
        return x


@pytest.mark.parametrize(
    "build",
    [
        lambda: RunningMean(lambda: tf.Variable(tf.zeros(6), trainable=False)),
        lambda: RunningMean(lambda: keras.Variable(np.zeros(6, "float32"), trainable=False)),
        lambda: WritesOnly(lambda: tf.Variable(tf.zeros(6), trainable=False)),
        lambda: Late(1),
        lambda: Late(50),
    ],
    ids=["tf_variable", "keras_variable", "written_only", "second_step", "fiftieth_step"],
)
def test_variable_that_keeps_something_of_the_data_is_refused(build):
    with pytest.raises(UnsupportedModelError, match="updates from the examples"):
        _fit(_compile(_functional(build())))


def test_coupling_that_begins_when_a_variable_is_switched_is_refused():
    class Switched(layers.Layer):
        def build(self, shape):
            self.on = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            return x - ops.where(self.on > 0, ops.stop_gradient(ops.mean(x, axis=0)), 0.0)

    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _fit(_compile(_functional(Switched())))


def test_data_handed_to_python_are_refused():
    seen = []

    def keep(x):
        return tf.ensure_shape(tf.py_function(lambda v: seen.append(v) or v, [x], x.dtype), x.shape)

    with pytest.raises(UnsupportedModelError, match="PyFunc"):
        _fit(_compile(_functional(Apply(keep))))


def test_data_kept_in_a_table_are_refused():
    table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -1, -2)

    def keep(x):
        table.insert(ops.arange(6, dtype="int64"), ops.cast(ops.round(x[0]), "int64"))
        return x

    with pytest.raises(UnsupportedModelError, match="LookupTableInsert"):
        _fit(_compile(_functional(Apply(keep))))


def test_coupling_hidden_from_eager_execution_is_refused():
    centred = VALUE_COUPLINGS["centred"]
    layer = Apply(lambda x: x if tf.executing_eagerly() else centred(x))
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _fit(_compile(_functional(layer)))


def test_lengths_that_are_not_known_are_probed_or_refused():
    inputs = keras.Input((None, 2))
    x = layers.GlobalAveragePooling1D()(Apply(VALUE_COUPLINGS["centred"])(inputs))
    model = _compile(ms.SecureModel(inputs, layers.Dense(3)(x)))
    data = tf.data.Dataset.from_generator(
        lambda: iter([(np.zeros((4, 3, 2), "float32"), Y[:4])]),
        output_signature=(tf.TensorSpec((None, None, 2)), tf.TensorSpec((None,), tf.int64)),
    )
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        model.fit(data, verbose=0, shuffle=False)


def test_model_that_no_made_up_example_suits_is_refused():
    class Demands(layers.Layer):
        def call(self, x):
            tf.debugging.assert_less(x, -1000.0)
            return x

    with pytest.raises(UnsupportedModelError, match="made-up examples"):
        _fit(_compile(_functional(Demands())))


# --- what must not be refused ---


def _augmented():
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomTranslation(0.2, 0.2)(layers.RandomFlip()(inputs))
    x = layers.RandomContrast(0.2)(layers.RandomRotation(0.1)(x))
    return ms.SecureModel(inputs, layers.Dense(3)(layers.Flatten()(x)))


def _attending(policy=None):
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 2, dropout=0.2)(x, x))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling1D()(x))
    return ms.SecureModel(inputs, layers.Dense(3, dtype="float32")(x))


def _noisy():
    return _functional(
        layers.GaussianNoise(0.5),
        layers.Dropout(0.5),
        layers.GaussianDropout(0.2),
        layers.Dense(4, activation="relu"),
        Apply(lambda x: x + tf.random.normal(ops.shape(x))),
    )


def _masked():
    inputs = keras.Input((6, 2))
    x = layers.LSTM(3)(layers.Masking()(inputs))
    return ms.SecureModel(inputs, layers.Dense(3)(x))


def _rescaled():
    return _functional(layers.Rescaling(1.0 / 255), layers.Dense(4), layers.UnitNormalization())


def _own_words():
    inputs = keras.Input((6,), dtype="int32")
    return ms.SecureModel(inputs, layers.Dense(3)(layers.CategoryEncoding(5, "multi_hot")(inputs)))


IMAGES = GENERATOR.uniform(0, 1, (8, 8, 8, 3)).astype("float32")
SEQUENCES = GENERATOR.normal(size=(8, 6, 2)).astype("float32")
INDEPENDENT = {
    "augmented": (_augmented, IMAGES),
    "attending": (_attending, TOKENS),
    "noisy": (_noisy, X),
    "masked": (_masked, SEQUENCES),
    "rescaled_pixels": (_rescaled, (255 * X).astype("float32")),
    "constant_zero": (_rescaled, 0 * X),
    "spectral_normalization": (
        lambda: _functional(layers.Dense(4), Apply(ops.tanh), layers.Rescaling(1e4)),
        X,
    ),
    "few_tokens": (_own_words, TOKENS),
}


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_examples_that_do_not_meet_train(name):
    build, x = INDEPENDENT[name]
    _fit(_compile(build()), x=x)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_low_precision_trains(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        _fit(
            _compile(_functional(layers.Dense(4), layers.LayerNormalization(), layers.Dropout(0.5)))
        )
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("clean_ratio", [0.0, 0.5])
def test_adversarial_training_is_not_taken_for_a_coupling(clean_ratio):
    attack = ms.attacks.PGD(0.1, steps=2, bounds=(0, 1))
    adversarial = ms.AdversarialTraining(attack, clean_ratio=clean_ratio, warmup_steps=1)
    x = np.clip(X, 0, 1)
    _fit(_compile(_functional(layers.Dense(4)), adversarial=adversarial), x=x)


def test_batch_of_one_example_is_probed_with_several():
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _fit(_compile(_functional(Apply(VALUE_COUPLINGS["centred"]))), x=X[:1], y=Y[:1])
    _fit(_compile(_functional(layers.Dense(4))), x=X[:1], y=Y[:1])


def test_step_by_step_execution_is_probed_too():
    _fit(_compile(_functional(layers.Dropout(0.5)), run_eagerly=True))
    model = _compile(_functional(Apply(VALUE_COUPLINGS["centred"])), run_eagerly=True)
    with pytest.raises(UnsupportedModelError, match="after the inputs"):
        _fit(model)


def test_step_that_only_runs_eagerly_is_refused_by_name():
    class NumPy(layers.Layer):
        def call(self, x):
            return x * float(x.numpy().max() > -9)

    class Net(ms.DPMixin, keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.dense = NumPy(), layers.Dense(3)

        def call(self, x):
            return self.dense(self.hidden(x))

    model = _compile(Net(), run_eagerly=True)
    model.test_on_batch(X, Y)  # builds model and loss
    with pytest.raises(UnsupportedModelError, match="that TensorFlow can trace"):
        _fit(model)


def test_probe_leaves_variables_seeds_and_metrics_alone():
    def outputs():
        inputs = keras.Input((6,))
        x = layers.Dropout(0.5, seed=3)(inputs)
        return ms.SecureModel(inputs, [layers.Dense(3, name="a")(x), layers.Dense(3, name="b")(x)])

    losses = {"a": _cross_entropy(), "b": _cross_entropy()}
    model = _compile(outputs(), loss=losses)
    model.fit(X, {"a": Y, "b": Y}, batch_size=8, verbose=0)
    seeds = [np.asarray(v) for v in model.variables if "seed" in v.path]
    reference = outputs()
    reference.compile("sgd", losses)
    reference.fit(X, {"a": Y, "b": Y}, batch_size=8, verbose=0)
    expected = [np.asarray(v) for v in reference.variables if "seed" in v.path]
    np.testing.assert_array_equal(seeds, expected)


def test_lstm_whose_output_is_its_state_equals_per_example_loop(per_example_loop):
    inputs = keras.Input((6, 2))
    output, state, carry = layers.LSTM(3, return_state=True)(inputs)
    x = layers.Concatenate()([output, state, carry])
    model = ms.SecureModel(inputs, layers.Dense(3)(x))
    _compile(model)
    loop = per_example_loop(model, SEQUENCES[:4], Y[:4])
    compiled = tf.function(
        lambda x, y: ms.privacy.clipping.clipped_gradients(model, Batch(x, y), 1e6)[1].sums
    )
    sums = compiled(tf.constant(SEQUENCES[:4]), tf.constant(Y[:4]))
    for expected, actual in zip(loop.clipped_sum(1e6), sums, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    _fit(model, x=SEQUENCES)
