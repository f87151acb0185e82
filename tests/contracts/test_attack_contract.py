"""What every attack must do. A new attack joins by one line in `ATTACKS`."""

import copy
import pickle

import keras
import numpy as np
import pytest

import keras_modelsec as ms
from keras_modelsec.robustness.adversarial_mixin import AdversarialMixin

ATTACKS = {
    "random_noise_linf": lambda **kw: ms.attacks.RandomNoise(0.2, **kw),
    "random_noise_l2": lambda **kw: ms.attacks.RandomNoise(0.5, norm="l2", restarts=2, **kw),
    "fgsm_linf": lambda **kw: ms.attacks.FGSM(0.2, **kw),
    "fgsm_l2": lambda **kw: ms.attacks.FGSM(0.5, norm="l2", random_start=True, **kw),
    "pgd_linf": lambda **kw: ms.attacks.PGD(0.2, steps=3, restarts=2, **kw),
    "pgd_l2": lambda **kw: ms.attacks.PGD(0.5, norm="l2", steps=3, **kw),
    "deep_fool_linf": lambda **kw: ms.attacks.DeepFool(0.5, steps=12, **kw),
    "deep_fool_l2": lambda **kw: ms.attacks.DeepFool(1.0, norm="l2", steps=12, **kw),
    "square_linf": lambda **kw: ms.attacks.Square(0.3, queries=6, **kw),
    "attack_sequence_linf": lambda name=None, **kw: ms.attacks.AttackSequence(
        [ms.attacks.FGSM(0.2, **kw), ms.attacks.Square(0.2, queries=4, **kw)], name=name
    ),
}
# An example that these find fooled already stays as it is.
LEAVES_FOOLED = ("deep_fool", "square")

X = np.random.default_rng(0).random((10, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 10)


class Net(AdversarialMixin, keras.Model):
    pass


@pytest.fixture(params=ATTACKS)
def name(request):
    return request.param


@pytest.fixture
def make(name):
    return ATTACKS[name]


@pytest.fixture
def trains(make):
    return isinstance(make(), ms.attacks.GradientAttack)


@pytest.fixture
def takes_a_threat(make):
    if isinstance(make(), ms.attacks.AttackSequence):
        pytest.skip("an AttackSequence takes what its attacks have")


@pytest.fixture
def model():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(hidden))


def size(attack, changed, original):
    delta = (np.asarray(changed) - np.asarray(original)).reshape(len(original), -1)
    return np.abs(delta).max(1) if attack.norm == "linf" else np.sqrt((delta**2).sum(1))


def test_default_name_is_an_identifier_of_class_and_norm(make, name):
    assert make().name == name
    assert name.isidentifier()


def test_config_round_trip_keeps_every_setting(make):
    attack = make(seed=3, bounds=(-1, 2), name="mine")
    config = keras.saving.serialize_keras_object(attack)
    assert config["registered_name"] == f"keras_modelsec>{type(attack).__name__}"
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is type(attack)
    assert restored.get_config() == attack.get_config()
    assert "'seed': 3" in repr(restored.get_config())


def test_copies_and_pickles_carry_the_settings_and_no_compiled_function(make, model):
    attack = make(seed=3)
    attack(model, X, Y)
    for twin in (copy.deepcopy(attack), pickle.loads(pickle.dumps(attack))):
        assert type(twin) is type(attack)
        assert twin.get_config() == attack.get_config()


def test_stays_in_the_ball_and_in_the_bounds(make, model):
    attack = make()
    found = attack(model, X, Y)
    assert found.shape == X.shape
    assert found.dtype == X.dtype
    assert (size(attack, found, X) <= attack.epsilon + 1e-6).all()
    assert size(attack, found, X).max() > 0
    assert found.min() >= 0
    assert found.max() <= 1


def test_radius_zero_changes_nothing(make, model):
    attack = make()
    attack.epsilon = 0
    np.testing.assert_allclose(attack(model, X, Y), X, atol=1e-7)


def test_same_seed_gives_the_same_result_at_each_call(make, model):
    attack = make(seed=5)
    first = attack(model, X, Y)
    np.testing.assert_array_equal(attack(model, X, Y), first)
    np.testing.assert_array_equal(make(seed=5)(model, X, Y), first)


def test_without_a_seed_random_starts_are_fresh(make, model):
    attack = make()
    same = np.array_equal(attack(model, X, Y), attack(model, X, Y))
    draws = getattr(attack, "random_start", not isinstance(attack, ms.attacks.DeepFool))
    assert same is not draws


def test_result_says_what_a_look_at_the_examples_says(make, model):
    attack = make(seed=2)
    result = attack.run(model, X, Y, batch_size=4)
    predicted = np.asarray(model(result.x)).argmax(1)
    np.testing.assert_array_equal(result.fooled, predicted != Y)
    inside = result.distance <= attack.epsilon + 1e-5
    near = np.where(inside, result.distance, 0.0)  # longer changes are found and not made
    np.testing.assert_allclose(size(attack, result.x, X), near, atol=1e-5)
    assert result.queries.shape == result.still.shape == (10,)
    assert (result.queries >= 0).all()
    assert not result.masked


def test_threat_limits_features_and_says_what_counts_as_one(make, takes_a_threat, model):
    plain = make(seed=2)
    mask, scale = np.array([1, 1, 0, 0]), np.array([1.0, 0.5, 1.0, 1.0])
    threat = ms.attacks.Threat(plain.norm, plain.epsilon, mask=mask, scale=scale)
    own = {"epsilon", "norm", "bounds"}
    config = {key: value for key, value in plain.get_config().items() if key not in own}
    attack = type(plain)(**config, threat=threat)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(attack))
    assert twin.threat == threat
    found = twin(model, X, Y)
    np.testing.assert_array_equal(found[:, 2:], X[:, 2:])
    assert (size(attack, found / scale, X / scale) <= attack.epsilon + 1e-5).all()
    # Two features may be too few for what changes only those examples that it can fool.
    assert (found != X).any() or isinstance(attack, ms.attacks.DeepFool)


def test_batch_size_does_not_matter_to_what_is_guaranteed(make, model):
    attack = make()
    found = attack(model, X, Y, batch_size=4)
    assert found.shape == X.shape
    assert (size(attack, found, X) <= attack.epsilon + 1e-6).all()
    changed = size(attack, found, X) > 0
    assert changed.any() if attack.name.startswith(LEAVES_FOOLED) else changed.all()


def test_dict_inputs_share_one_ball_and_integers_stay(make):
    image, number = keras.Input((4,), name="image"), keras.Input((1,), name="number", dtype="int32")
    other = keras.Input((2,), name="other")
    embedded = keras.layers.Flatten()(keras.layers.Embedding(5, 2)(number))
    joined = keras.layers.Concatenate()([image, other, embedded])
    inputs = {"image": image, "number": number, "other": other}
    model = keras.Model(inputs, keras.layers.Dense(3)(joined))
    x = {"image": X, "other": X[:, :2].copy(), "number": np.arange(10)[:, None] % 5}
    attack = make()
    found = attack(model, x, Y)
    assert found.keys() == x.keys()
    np.testing.assert_array_equal(found["number"], x["number"])
    together = np.concatenate([found["image"], found["other"]], axis=1)
    original = np.concatenate([x["image"], x["other"]], axis=1)
    assert (size(attack, together, original) <= attack.epsilon + 1e-6).all()
    changed = np.abs(found["other"] - x["other"]).max(axis=1) > 0
    assert changed.any() if attack.name.startswith(LEAVES_FOOLED) else changed.all()


@pytest.mark.parametrize("structure", [list, tuple])
def test_list_and_tuple_inputs_keep_their_structure(make, structure):
    inputs = structure([keras.Input((4,)), keras.Input((4,))])
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Add()(list(inputs))))
    found = make()(model, structure([X, X]), Y)
    assert type(found) is structure
    assert [leaf.shape for leaf in found] == [X.shape, X.shape]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l7"}, r"`norm` must be one of 'linf', 'l2'.*'l7'"),
        ({"name": "not a name"}, r"`name` must be a Python identifier.*'not a name'"),
        ({"bounds": (1, 0)}, r"`bounds` must be a pair.*\(1, 0\)"),
        ({"bounds": 3}, r"`bounds` must be a pair.*3"),
        ({"norm": np.inf}, r"`norm` must be one of.*inf.*Write norm='linf'"),
        ({"norm": "L2"}, r"`norm` must be one of.*Write norm='l2'"),
        ({"seed": -1}, r"`seed` must be an integer >= 0.*-1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_argument_is_refused_with_rule_and_value(make, takes_a_threat, arguments, message):
    cls = type(make())
    with pytest.raises(ValueError, match=message):
        cls(0.1, **arguments)


def test_name_of_another_library_is_answered_with_ours(make):
    with pytest.raises(TypeError, match=r"`eps` is called `epsilon` here.*0\.1"):
        type(make())(eps=0.1)


def test_restarts_are_counted_from_one(make, trains):
    if trains:
        with pytest.raises(ValueError, match=r"`restarts` must be an integer >= 1.*0"):
            type(make())(0.1, restarts=0)


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_bad_radius_is_refused(make, epsilon):
    attack = make()
    if not isinstance(attack, ms.attacks.AttackSequence):
        with pytest.raises(ValueError, match="`epsilon` must be a finite number >= 0"):
            type(attack)(epsilon)
    with pytest.raises(ValueError, match="`epsilon` must be a finite number >= 0"):
        attack.epsilon = epsilon


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (X * np.nan, Y, ValueError, r"`x` must hold finite numbers.*40 NaN"),
        (X * 255, Y, ValueError, r"`x` must lie inside `bounds`=\(0.0, 1.0\).*Rescale"),
        (X[:3], Y, ValueError, r"same number of examples.*3, 10"),
        (X[:0], Y[:0], ValueError, r"same number of examples, at least one"),
        (X, Y + 7, ValueError, r"class numbers from 0 to 2.*to 9"),
        ((X * 255).astype("uint8"), Y, TypeError, r"floating-point input.*uint8.*float32"),
        ([[0.1] * 4], [1], TypeError, r"must hold arrays.*float"),
    ],
    ids=["nan", "bounds", "lengths", "empty", "labels", "integers", "numbers"],
)
def test_bad_data_is_refused_before_any_work(make, model, x, y, error, message):
    with pytest.raises(error, match=message):
        make()(model, x, y)


def test_anything_but_a_model_is_refused(make):
    with pytest.raises(TypeError, match=r"`model` must be a keras\.Model.*function"):
        make()(lambda x: x, X, Y)


def test_trains_in_fit_and_survives_saving_or_is_refused(make, trains, tmp_path):
    inputs = keras.Input((4,))
    model = Net(inputs, keras.layers.Dense(3, activation="softmax")(inputs))
    if not trains:
        with pytest.raises(TypeError, match="`attack` must be a gradient attack"):
            ms.AdversarialTraining(make())
        return
    model.compile("sgd", "sparse_categorical_crossentropy", adversarial=make())
    model.fit(X, Y, batch_size=4, verbose=0)
    assert np.isfinite(model.get_weights()[0]).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Net": Net})
    assert loaded.adversarial.attack.get_config() == make().get_config()
    loaded.fit(X, Y, verbose=0)
