"""What all attacks have in common: a name, a threat, and how they are run on arrays."""

import re
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend, checks
from keras_modelsec._core.undisturbed import fresh_seed
from keras_modelsec.robustness.attacks.attack_result import AttackResult
from keras_modelsec.robustness.attacks.running import AttackRunner
from keras_modelsec.robustness.attacks.target import Found, Target
from keras_modelsec.robustness.attacks.threat import Threat, as_threat

Tensor = Any

# What other libraries call the same.
_OTHER_NAMES = {
    "eps": "epsilon",
    "eps_step": "step_size",
    "eps_iter": "step_size",
    "alpha": "step_size",
    "nb_iter": "steps",
    "max_iter": "steps",
    "iterations": "steps",
    "ord": "norm",
    "clip_min": "bounds",
    "clip_max": "bounds",
    "clip_values": "bounds",
    "num_random_init": "restarts",
}


@dataclass(frozen=True)
class AttackState:
    """What an attack keeps between steps of one compiled function."""

    epsilon: Any
    seeds: "ReplicaSeeds"


class ReplicaSeeds(keras.random.SeedGenerator):
    """A seed generator whose replicas, though in the same state, give different seeds."""

    # A large odd number keeps the streams of neighbouring seeds and replicas apart.
    _STRIDE = 0x3C6EF372

    def next(self, ordered: bool = True) -> Tensor:
        """The next seed of this replica."""
        seed = super().next(ordered)
        offset = ops.multiply(ops.cast(backend.replica_index(), seed.dtype), self._STRIDE)
        return seed + ops.stack([offset, ops.zeros_like(offset)])


class Attack(ABC):
    """Looks for a small change of each input that makes the model fail.

    Not for direct use. A new attack derives from the family it belongs to:

    - `GradientAttack` climbs the loss inside a ball; the only kind that a model can train with.
    - `MinimumNormAttack` looks for the smallest change that fools the model.
    - `QueryAttack` asks the model for its outputs, and has no gradient.
    - `AttackSequence` tries several, each on what is left.

    The model runs in inference mode, is left as it was (seeds, statistics), and every example is
    attacked for itself. The loss is taken on logits where they can be recovered, so that a
    saturated softmax does not hide the gradient (see `objective`).

    What this does not show: that no stronger attack exists. An accuracy under attack is an upper
    bound of the robust accuracy. Of a model with several losses, the weighted sum is followed: one
    output may take over and hide how weak another is, so attack each output in a model of its own
    (`keras.Model(inputs, output)`). A gradient that points the wrong way, or is missing for some of
    the input's features only (a part that is rounded, a `stop_gradient`), is not detected.

    Args:
        epsilon: Radius of the ball in input units, float >= 0. May be changed later
            (`attack.epsilon = 0.2`), also while a model trains, without compiling anything again.
        norm: "linf" (default) or "l2". For several inputs, the norm of all of them together.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        threat: A `Threat` in place of these three, which can say more.
        name: Identifier for log keys such as `robust_accuracy_<name>`. Default: class and norm,
            e.g. "pgd_linf".
        seed: Integer that makes each call outside of training give the same result, if the model
            itself does, and starts the stream of a training run. Default None: new random numbers
            each time.
    """

    # The norms it is defined for.
    norms: tuple[str, ...] = ("linf", "l2")
    # Whether a gradient that vanishes, or is masked, keeps it from attacking.
    follows_gradient = False
    # Whether it needs a radius.
    needs_epsilon = True

    def __new__(cls, *args: Any, **kwargs: Any) -> "Attack":  # noqa: D102  (see the class)
        for name in kwargs.keys() & _OTHER_NAMES.keys():
            raise TypeError(
                f"`{name}` is called `{_OTHER_NAMES[name]}` here. Received: {name}="
                f"{kwargs[name]!r}."
            )
        return super().__new__(cls)

    def __init__(
        self,
        epsilon: float | None = None,
        *,
        norm: str | None = None,
        bounds: Any = "unit",
        threat: Threat | None = None,
        name: str | None = None,
        seed: int | None = None,
    ):
        self._epsilon_variables: list[weakref.ref[Any]] = []
        self._runner = AttackRunner(self)
        self._threat = self._checked(as_threat(threat, epsilon, norm, bounds))
        self.seed = checks.check_integer("seed", seed, minimum=0, optional=True)
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        default_name = f"{words}_{self.norm}"
        self.name = checks.check_identifier("name", default_name if name is None else name)

    def _checked(self, threat: Threat) -> Threat:
        checks.check_choice("norm", threat.norm, self.norms)
        if threat.epsilon is None and self.needs_epsilon:
            checks.check_number("epsilon", None, minimum=0.0)
        return threat

    @property
    def threat(self) -> Threat:
        """What the attacker may change."""
        return self._threat

    @property
    def norm(self) -> str:
        """The norm that measures changes."""
        return self._threat.norm

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest valid input value."""
        return self._threat.bounds

    @property
    def epsilon(self) -> float | None:
        """The radius of the ball, in input units."""
        return self._threat.epsilon

    @epsilon.setter
    def epsilon(self, value: float | None) -> None:
        self._threat = self._checked(self._threat.with_epsilon(value))
        for reference in self._epsilon_variables:
            variable = reference()
            if variable is not None:
                variable.assign(_as_radius(value))

    def __call__(self, model: keras.Model, x: Any, y: Any, *, batch_size: int = 256) -> Any:
        """Attacks `model` outside of training; what `run` returns, the examples alone.

        Warns:
            GradientVanishedWarning: If the attack had nothing to follow for some examples.
            MaskedModelWarning: If the scores behind a saturating output were not found.
            SeveralOutputsWarning: If the model has several outputs, of which one sum is followed.
        """
        result = self.run(model, x, y, batch_size=batch_size)
        result.warn(stacklevel=3)
        return result.x

    def run(self, model: keras.Model, x: Any, y: Any, *, batch_size: int = 256) -> AttackResult:
        """Attacks `model` outside of training and says what the result rests on.

        The whole attack is one compiled function, kept for the next call with the same model and
        dropped when the model is compiled anew or goes away.

        Args:
            model: A built model. It need not be compiled; then `y` must hold class numbers or
                one-hot rows.
            x: Array, or list, tuple or dict of arrays, with values inside `bounds`. Integer arrays
                are passed on unchanged.
            y: The true labels as `fit` takes them, or the classes to reach if `targeted`.
            batch_size: How many examples are attacked together, int >= 1. Default 256.

        Returns:
            Adversarial examples, and for each whether it fools the model, how far it is from the
            original, what it cost, and whether the attack had nothing to follow.

        Raises:
            TypeError: If `model` is no Keras model, or no input is floating-point.
            ValueError: If lengths differ, `x` has NaN or leaves `bounds`, or labels do not fit.
        """
        return self._runner.run(model, x, y, batch_size=batch_size)

    @abstractmethod
    def find(self, target: Target, state: AttackState) -> Found:
        """Hook: the attack of one batch, as part of a compiled function."""

    def has_reached(self, score: Any) -> Tensor:
        """(batch,) bool: whether the model says what the attack wants it to say."""
        return score.fooled

    def new_state(self, model: keras.Model) -> AttackState:
        """Makes the variables that a function compiled for `model` reads: radius and seeds."""
        epsilon = keras.Variable(
            _as_radius(self.epsilon), trainable=False, dtype="float32", name=f"{self.name}_epsilon"
        )
        self._epsilon_variables = [r for r in self._epsilon_variables if r() is not None]
        self._epsilon_variables.append(weakref.ref(epsilon))
        seed = fresh_seed(model) if self.seed is None else self.seed
        return AttackState(epsilon, ReplicaSeeds(seed))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        threat = self._threat
        if threat.is_plain:
            config = {"epsilon": threat.epsilon, "norm": threat.norm, "bounds": threat.bounds}
        else:
            config = {"threat": keras.saving.serialize_keras_object(threat)}
        return {**config, "name": self.name, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Attack":
        """Builds the attack from what `get_config` gave."""
        if config.get("threat") is not None:
            threat = keras.saving.deserialize_keras_object(config["threat"])
            config = {**config, "threat": threat}
        return cls(**config)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles carry the settings, not the compiled functions.
        return type(self).from_config, (self.get_config(),)

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({settings})"


def _as_radius(epsilon: float | None) -> float:
    return float("inf") if epsilon is None else epsilon
