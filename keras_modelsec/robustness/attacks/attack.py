"""The attack family: one loop, which norms and subclasses fill in."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend, checks
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.robustness.attacks import inputs
from keras_modelsec.robustness.attacks.norms import get_norm
from keras_modelsec.robustness.attacks.objective import Objective, Score
from keras_modelsec.robustness.attacks.running import AttackRunner

Tensor = Any
Tensors = list[Any]


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


class Attack:
    """Looks for a small change of each input that makes the model fail.

    Starting from the input or a random point near it, takes `steps` steps of `step_size` along the
    gradient of the model's loss, projected back into the ball of radius `epsilon` and into
    `bounds` after each. The model runs in inference mode and every example is attacked for itself.
    The loss is taken on logits where they can be recovered, so that a saturated softmax does not
    hide the gradient (see `objective`).

    Not for direct use; see `RandomNoise`, `FGSM` and `PGD`. A new attack subclasses this one.

    What this does not show: that no stronger attack exists. An accuracy under attack is an upper
    bound of the robust accuracy; more steps and `restarts` tighten it.

    Args:
        epsilon: Radius of the ball in input units, float >= 0. May be changed later
            (`attack.epsilon = 0.2`), also while a model trains, without compiling anything again.
        norm: "linf" (default) or "l2". For several inputs, the norm of all of them together.
        steps: Number of gradient steps, int >= 0.
        step_size: Length of a step in `norm`, float > 0. Default: what the subclass says.
        random_start: Whether to start from a uniform random point of the ball.
        restarts: How often to start anew, int >= 1; each example keeps the run in which it was
            misclassified, or else the one of highest loss. Default 1.
        targeted: Whether `y` holds the classes to reach instead of the true ones. Default False.
        bounds: Lowest and highest valid input value. Default (0, 1). None for no bounds.
        name: Identifier for log keys such as `robust_accuracy_<name>`. Default: class and norm,
            e.g. "pgd_linf".
        seed: Integer that makes each call outside of training give the same result, and starts
            the stream of a training run. Default None: new random numbers each time.
    """

    def __init__(
        self,
        epsilon: float,
        *,
        norm: str = "linf",
        steps: int,
        step_size: float | None = None,
        random_start: bool,
        restarts: int = 1,
        targeted: bool = False,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        name: str | None = None,
        seed: int | None = None,
    ):
        self._epsilon_variables: list[weakref.ref[Any]] = []
        self._runner = AttackRunner(self)
        self.epsilon = epsilon
        self.norm = get_norm(norm).name
        self.steps = checks.check_integer("steps", steps, minimum=0)
        self.step_size = checks.check_number("step_size", step_size, above=0.0, optional=True)
        self.random_start = checks.check_boolean("random_start", random_start)
        self.restarts = checks.check_integer("restarts", restarts, minimum=1)
        self.targeted = checks.check_boolean("targeted", targeted)
        self.bounds = _check_bounds(bounds)
        self.seed = checks.check_integer("seed", seed, minimum=0, optional=True)
        default_name = f"{self._short_name()}_{self.norm}"
        self.name = checks.check_identifier("name", default_name if name is None else name)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                "`restarts` must be 1 without a random start, or every run would be the same. "
                f"Received: restarts={restarts}, random_start=False. Set random_start=True."
            )

    @classmethod
    def _short_name(cls) -> str:
        return cls.__name__.lower()

    @property
    def epsilon(self) -> float:
        """The radius of the ball, in input units."""
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._epsilon = checks.check_number("epsilon", value, minimum=0.0)
        for reference in self._epsilon_variables:
            variable = reference()
            if variable is not None:
                variable.assign(self._epsilon)

    def default_step_size(self, epsilon: Any) -> Any:
        """Hook: the step size for a radius, a number or a tensor, when none was given."""
        return epsilon

    def __call__(self, model: keras.Model, x: Any, y: Any, *, batch_size: int = 256) -> Any:
        """Attacks `model` outside of training.

        The whole loop is one compiled function, kept for the next call with the same model and
        dropped when the model is compiled anew or goes away.

        Args:
            model: A built model. It need not be compiled; then `y` must hold class numbers or
                one-hot rows.
            x: Array, or list, tuple or dict of arrays, with values inside `bounds`. Integer arrays
                are passed on unchanged.
            y: The true labels as `fit` takes them, or the classes to reach if `targeted`.
            batch_size: How many examples are attacked together, int >= 1. Default 256.

        Returns:
            Adversarial examples, NumPy arrays in the structure of `x`.

        Raises:
            TypeError: If `model` is no Keras model, or no input is floating-point.
            ValueError: If lengths differ, `x` has NaN or leaves `bounds`, or labels do not fit.

        Warns:
            GradientVanishedWarning: If an example did not move because its gradient was zero.
        """
        return self._runner.run(model, x, y, batch_size=batch_size)

    def new_state(self) -> AttackState:
        """Makes the variables that a compiled function reads: the radius and the random seeds."""
        epsilon = keras.Variable(
            self.epsilon, trainable=False, dtype="float32", name=f"{self.name}_epsilon"
        )
        self._epsilon_variables = [r for r in self._epsilon_variables if r() is not None]
        self._epsilon_variables.append(weakref.ref(epsilon))
        return AttackState(epsilon, ReplicaSeeds(self.seed))

    def perturb(self, model: keras.Model, x: Any, y: Any, state: AttackState) -> Any:
        """The attack as part of a compiled training step: tensors in, tensors out.

        Args:
            model: The model, compiled with the loss to attack.
            x: Nested tensors. Values outside of `bounds` are not moved further outside.
            y: Labels in the structure `fit` takes.
            state: From `new_state`.

        Returns:
            The perturbed inputs in the structure of `x`, without gradient.
        """
        return self.search(model, Objective(model), x, y, state)

    def require_inside_bounds(self, x: Any) -> Any:
        """Passes `x` on, unless it holds NaN or values out of bounds (unchecked under XLA).

        Raises:
            InvalidArgumentError: When the step runs, eager or compiled, before any update.
        """
        low, high = self.bounds or (-float("inf"), float("inf"))

        def require(leaf: Tensor) -> Tensor:
            if not inputs.is_floating(leaf):
                return leaf
            smallest, largest = ops.min(leaf), ops.max(leaf)
            inside = ops.logical_and(
                smallest >= low - inputs.BOUNDS_TOLERANCE,
                largest <= high + inputs.BOUNDS_TOLERANCE,
            )
            return backend.require(
                ops.logical_and(inside, ops.all(ops.isfinite(leaf))),
                f"Training inputs must be finite and lie inside `bounds`={self.bounds} of the "
                f"attack {self.name!r}. Rescale the data, or give the attack its bounds. "
                "Received values from, to:",
                smallest,
                largest,
                passing=leaf,
            )

        return keras.tree.map_structure(require, x)

    def search(
        self, model: keras.Model, objective: Objective, x: Any, y: Any, state: AttackState
    ) -> Any:
        """The attack on tensors: finds the floating inputs, runs the loop, puts them back."""
        leaves = keras.tree.flatten(x)
        attacked = inputs.floating_indices(leaves)
        origin = [ops.stop_gradient(leaves[index]) for index in attacked]

        def score(points: Tensors) -> Score:
            replaced = list(leaves)
            for index, point in zip(attacked, points, strict=True):
                replaced[index] = point
            outputs = internals.call_for_inference(model, keras.tree.pack_sequence_as(x, replaced))
            return objective(y, outputs)

        found = self._best_of_restarts(score, origin, state)
        for index, point in zip(attacked, found, strict=True):
            leaves[index] = ops.stop_gradient(point)
        return keras.tree.pack_sequence_as(x, leaves)

    def _best_of_restarts(
        self, score: Callable[[Tensors], Score], origin: Tensors, state: AttackState
    ) -> Tensors:
        if self.restarts == 1:
            return self._one_run(score, origin, state)
        batch = ops.shape(origin[0])[0]

        def restart(best: tuple[Tensors, Tensor, Tensor]) -> tuple[Tensors, Tensor, Tensor]:
            points, value, success = best
            new_points = self._one_run(score, origin, state)
            outcome = score(new_points)
            new_value = self._sign * outcome.loss
            new_success = ops.not_equal(outcome.fooled, self.targeted)
            better = ops.logical_or(
                ops.logical_and(new_success, ops.logical_not(success)),
                ops.logical_and(ops.equal(new_success, success), new_value > value),
            )
            kept = [
                ops.where(_per_example(better, new), new, old)
                for new, old in zip(new_points, points, strict=True)
            ]
            value = ops.where(better, new_value, value)
            return kept, value, ops.logical_or(success, new_success)

        start = (origin, ops.full((batch,), -float("inf")), ops.zeros((batch,), dtype="bool"))
        return backend.repeat(restart, start, self.restarts)[0]

    def _one_run(
        self, score: Callable[[Tensors], Score], origin: Tensors, state: AttackState
    ) -> Tensors:
        norm = get_norm(self.norm)
        epsilon = ops.convert_to_tensor(state.epsilon)
        size = self.default_step_size(epsilon) if self.step_size is None else self.step_size
        low, high = self.bounds or (-float("inf"), float("inf"))
        # A value outside of the bounds is not pulled in: that would change clean data.
        limits = [(ops.minimum(x, low), ops.maximum(x, high)) for x in origin]

        def into_bounds(deltas: Tensors) -> Tensors:
            return [
                ops.clip(x + delta, *ends)
                for x, delta, ends in zip(origin, deltas, limits, strict=True)
            ]

        def step(points: Tensors) -> Tensors:
            # Summed, not averaged: in float16 a mean pushes gradients below the smallest number.
            gradients = backend.input_gradients(lambda p: ops.sum(score(p).loss), points)
            finite = [ops.where(ops.isfinite(g), g, ops.zeros_like(g)) for g in gradients]
            moves = norm.direction(finite)
            deltas = [
                point + ops.cast(self._sign * size, point.dtype) * move - x
                for point, move, x in zip(points, moves, origin, strict=True)
            ]
            return into_bounds(norm.project(deltas, epsilon))

        start = origin
        if self.random_start:
            start = into_bounds(norm.random_start(origin, epsilon, state.seeds))
        return backend.repeat(step, start, self.steps)

    @property
    def _sign(self) -> float:
        return -1.0 if self.targeted else 1.0

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "epsilon": self.epsilon,
            "norm": self.norm,
            "steps": self.steps,
            "step_size": self.step_size,
            "random_start": self.random_start,
            "restarts": self.restarts,
            "targeted": self.targeted,
            "bounds": self.bounds,
            "name": self.name,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Attack":
        """Builds the attack from what `get_config` gave."""
        return cls(**config)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles carry the settings, not the compiled functions.
        return type(self).from_config, (self.get_config(),)

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({settings})"


def _check_bounds(bounds: Any) -> tuple[float, float] | None:
    if bounds is None:
        return None
    try:
        low, high = bounds
    except (TypeError, ValueError):
        low, high = None, None
    if not all(isinstance(end, (int, float)) for end in (low, high)) or not low < high:
        raise ValueError(
            "`bounds` must be a pair (lowest, highest) of numbers, or None. "
            f"Received: bounds={bounds!r}. For images scaled to [0, 1] use bounds=(0, 1)."
        )
    return float(low), float(high)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    return ops.reshape(values, [-1] + [1] * (len(like.shape) - 1))
