"""The optimizer that adds the noise, once per step, and remembers what was spent."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core.checks import check_integer, check_number
from keras_modelsec._core.serialization import register
from keras_modelsec.privacy.clipping import ClippedGradients
from keras_modelsec.privacy.errors import NotPrivateError
from keras_modelsec.privacy.ledger import Ledger, Run

Tensor = Any

_FIXED = ("l2_norm_clip", "noise_multiplier", "expected_batch_size", "micro_batches")

_BASE_VARIABLES = 2  # Keras's own, before the ledger's: the iteration and the learning rate


@register
class DPOptimizer(keras.optimizers.Optimizer):
    """Makes any Keras optimizer differentially private (DP-SGD, DP-Adam, ...).

    The model's private step clips each example's gradient to `l2_norm_clip` and sums them. This
    optimizer adds Gaussian noise of standard deviation `noise_multiplier * l2_norm_clip` to the
    sum, once per step, divides by the expected batch size and hands the result to the inner
    optimizer. The gradient of weight penalties (L2, watermark), which no example enters, is added
    after that.

    It works only on a model with `ms.DPMixin` (such as `ms.SecureModel`): gradients that did not
    come clipped from the private step are refused, so training never silently loses its privacy.

    Promises: for batches drawn as `ms.PrivacyBudget` is told, the released weights are
    (epsilon, delta)-differentially private at the level of examples. Does not promise: privacy of
    the metrics and logs of training data, of anything computed from the data before training (a
    vocabulary, a `Normalization.adapt`), or of hyperparameters chosen by looking at private
    results. The noise is float32 from a Philox generator seeded by the operating system, which is
    not a cryptographic generator; attacks on the floating-point representation of noise (Mironov
    2012) are not defended against.

    Args:
        inner_optimizer: A Keras optimizer, or its name.
        l2_norm_clip: Float > 0. Bound on the L2 norm of one example's gradient over all weights.
        noise_multiplier: Float >= 0. Noise standard deviation over `l2_norm_clip`; 0 gives clipped
            training without privacy (epsilon is infinite).
        expected_batch_size: Integer >= 1: the divisor of the sum, over all replicas. None takes the
            size of the first batch that is trained on. Give it when batches vary in size (Poisson
            sampling): dividing by the actual size would leak it.
        gradient_accumulation_steps: Integer >= 2: batches whose clipped sums are added up before
            noise is added once and the inner optimizer steps. None for every batch.
        seed: Integer for reproducible noise in tests, which then is no secret and gives no privacy.
            None takes the operating system's entropy. Never saved.
        name: Name of the optimizer.

    Raises:
        ValueError, TypeError: For arguments outside of these rules.

    Example:
    ```python
    model = ms.SecureModel(inputs, outputs)
    model.compile(
        optimizer=ms.DPOptimizer("adam", l2_norm_clip=1.0, noise_multiplier=1.1),
        loss="sparse_categorical_crossentropy",
    )
    model.fit(x, y, batch_size=256, callbacks=[ms.PrivacyBudget(delta=1e-5)])
    ```

    Reference: Abadi et al., arXiv:1607.00133.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        l2_norm_clip: float,
        noise_multiplier: float,
        *,
        expected_batch_size: int | None = None,
        gradient_accumulation_steps: int | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(learning_rate=0.0, name=name)
        self.l2_norm_clip = check_number("l2_norm_clip", l2_norm_clip, above=0)
        self.noise_multiplier = check_number("noise_multiplier", noise_multiplier, minimum=0)
        self.expected_batch_size = check_integer(
            "expected_batch_size", expected_batch_size, minimum=1, optional=True
        )
        # Not the base class's `gradient_accumulation_steps`, which would add noise to every batch.
        self.micro_batches = check_integer(
            "gradient_accumulation_steps", gradient_accumulation_steps, minimum=2, optional=True
        )
        seed = check_integer("seed", seed, minimum=0, optional=True)
        inner_optimizer = keras.optimizers.get(inner_optimizer)
        _check_inner(inner_optimizer)
        self.inner_optimizer = inner_optimizer
        self.has_fixed_seed = seed is not None
        self._seed = seed
        self._noise: backend.NoiseSource | None = None
        self._sums: list[keras.Variable] = []
        self.ledger = Ledger(self.add_variable)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the state of the inner optimizer, the noise source and the accumulators."""
        if self.built:
            return
        variables = list(variables)
        if self.micro_batches:
            self._sums = [
                self.add_variable_from_reference(v, name="clipped_sum") for v in variables
            ]
        self._noise = backend.NoiseSource(self._seed)
        self.inner_optimizer.build(variables)
        super().build(variables)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses a change to what a compiled step was traced with, and goes on using."""
        if name in _FIXED and name in self.__dict__:
            raise AttributeError(
                f"`{name}` of a DPOptimizer cannot be changed: the compiled step would go on with "
                f"the old value. Received: {name}={value!r}. Call `model.compile` with a new "
                "DPOptimizer, which keeps what was spent."
            )
        super().__setattr__(name, value)

    @property
    def variables(self) -> list[keras.Variable]:
        """The state, the inner optimizer's included."""
        return self._variables + self.inner_optimizer.variables

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's learning rate, so that schedules and callbacks reach it."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """How many times the inner optimizer stepped."""
        return self.inner_optimizer.iterations

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Adds noise to clipped sums and steps the inner optimizer.

        Args:
            grads: The `ClippedGradients` of the private step.
            trainable_variables: The weights they belong to.

        Raises:
            NotPrivateError: For any other gradients.
        """
        if not isinstance(grads, ClippedGradients) or grads.l2_norm_clip != self.l2_norm_clip:
            raise NotPrivateError(
                "DPOptimizer applies only gradients that were clipped per example by the private "
                f"step. Received: {type(grads).__name__}. Train with `fit` on a model that has "
                "ms.DPMixin, such as ms.SecureModel (ms.SecureModel.from_model(model) turns a "
                "functional or Sequential model into one); a plain keras.Model, a "
                "LossScaleOptimizer around this one, and custom loops do not clip."
            )
        variables = list(trainable_variables or self._trainable_variables)
        self.build(variables)
        present = [
            (total, penalty, variable)
            for total, penalty, variable in zip(grads.sums, grads.penalties, variables, strict=True)
            if total is not None
        ]
        self._record_batch_size(grads.batch_size)
        if self.micro_batches:
            self._accumulate(present)
        else:
            self._release(*zip(*present, strict=True))
        self._iterations.assign_add(1)

    def _record_batch_size(self, replica_batch_size: Tensor) -> None:
        """Fixes the divisor with the first batch, unless it was given."""
        examples = ops.cast(replica_batch_size * backend.replica_count(), "int64")
        divisor = examples
        if self.expected_batch_size is not None:
            divisor = ops.cast(self.expected_batch_size, "int64")
        self.ledger.record_batch(divisor, examples)

    def _accumulate(self, present: Sequence[tuple[Tensor, Tensor, keras.Variable]]) -> None:
        if backend.replica_count() > 1:
            raise NotPrivateError(
                "gradient_accumulation_steps does not work under a distribution strategy with "
                "several replicas: a conditional update cannot synchronise them (Keras's own "
                "accumulation has the same limit). Use larger batches instead."
            )
        stores = [self._sums[self._get_variable_index(v)] for _, _, v in present]
        for store, (total, _, _) in zip(stores, present, strict=True):
            store.assign_add(ops.cast(total, store.dtype))
        is_last = ops.equal((self._iterations + 1) % self.micro_batches, 0)

        def release() -> None:
            sums = [ops.cast(store, "float32") for store in stores]
            self._release(sums, [p for _, p, _ in present], [v for _, _, v in present])
            for store in stores:
                store.assign(ops.zeros_like(store))

        ops.cond(is_last, release, lambda: None)

    def _release(
        self,
        sums: Sequence[Tensor],
        penalties: Sequence[Tensor | None],
        variables: Sequence[keras.Variable],
    ) -> None:
        """One noisy release: noise, divisor, penalties, inner step, and a line in the ledger."""
        replicas = backend.replica_count()
        # The inner optimizer adds up what the replicas hand it, noise included.
        stddev = self.noise_multiplier * self.l2_norm_clip / replicas**0.5
        divisor = ops.cast(self.ledger.batch_size, "float32") * (self.micro_batches or 1)
        gradients = []
        for total, penalty, variable in zip(sums, penalties, variables, strict=True):
            if stddev > 0:
                if self._noise is None:
                    raise NotPrivateError("DPOptimizer must be built before it can add noise.")
                total = total + self._noise.normal(variable.shape, stddev)
            gradient = total / divisor
            if penalty is not None:
                gradient = gradient + ops.cast(penalty, "float32") / replicas
            gradients.append(ops.cast(gradient, variable.dtype))
        self.ledger.record_release(self.noise_multiplier, self.micro_batches or 1)
        self.inner_optimizer.apply(gradients, variables)

    def begin_run(self, steps: int | None = None) -> None:
        """Closes the previous `fit` in the ledger; each may start the data over.

        Args:
            steps: Batches in a pass over the data, or None if that is not known.
        """
        self.ledger.close_run(self.noise_multiplier, self.micro_batches or 1)
        half_done = self.micro_batches and int(np.asarray(self._iterations)) % self.micro_batches
        self.ledger.open_run(-1 if half_done else steps or 0)

    def runs(self, *, with_current: bool = False) -> list[Run]:
        """What was released so far; the current `fit` last, and also if empty on request."""
        return self.ledger.runs(
            self.noise_multiplier, self.micro_batches or 1, with_current=with_current
        )

    @property
    def release_count(self) -> int:
        """How many noisy steps this optimizer made."""
        return int(np.asarray(self.ledger.releases))

    @property
    def batch_size(self) -> float:
        """The expected batch size; before the first batch the last one in the ledger, or 1."""
        return self.ledger.nominal_batch_size()

    def inherit_spending(self, previous: "DPOptimizer") -> None:
        """Takes over what `previous` spent on the same weights."""
        if previous is not self:
            previous.begin_run()
            self.ledger.inherit(previous.ledger)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Lets the inner optimizer finish (moving averages)."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def load_own_variables(self, store: Any) -> None:
        """Restores the state, and with it what was spent, or raises.

        Keras only warns when an optimizer's state does not fit; the spent budget would be lost.
        State saved before the first step may not fit, since it had no slots for the weights yet.
        """
        if len(store.keys()) != len(self.variables):
            if self.ledger.is_unspent(store, first=_BASE_VARIABLES):
                return
            raise NotPrivateError(
                "The saved state of DPOptimizer must fit, since it holds what privacy was spent. "
                f"Received: {len(store.keys())} saved values for {len(self.variables)} variables."
            )
        super().load_own_variables(store)
        # What comes next may start the data over, and with another noise multiplier; how long its
        # passes are is not known, and the saved run's length may not be theirs.
        self.begin_run()

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; never the seed, which would reveal the noise."""
        return {
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "l2_norm_clip": self.l2_norm_clip,
            "noise_multiplier": self.noise_multiplier,
            "expected_batch_size": self.expected_batch_size,
            "gradient_accumulation_steps": self.micro_batches,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "DPOptimizer":
        """Builds the optimizer from `get_config()`."""
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(
            config.pop("inner_optimizer"), custom_objects=custom_objects
        )
        return cls(inner, **config)


def _check_inner(inner_optimizer: Any) -> None:
    if not isinstance(inner_optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`inner_optimizer` must be a Keras optimizer or its name. Received: "
            f"{inner_optimizer!r}."
        )
    if isinstance(inner_optimizer, DPOptimizer | keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`inner_optimizer` must not wrap another optimizer. Received: "
            f"{type(inner_optimizer).__name__}. DPOptimizer scales float16 losses by itself."
        )
    for option in ("gradient_accumulation_steps", "loss_scale_factor"):
        if getattr(inner_optimizer, option, None) is not None:
            raise ValueError(
                f"`{option}` must not be set on the inner optimizer, where it would act on every "
                f"noisy batch. Received: {option}={getattr(inner_optimizer, option)}. "
                + (
                    "Pass gradient_accumulation_steps to DPOptimizer instead."
                    if option.startswith("gradient")
                    else "Leave it out: DPOptimizer scales float16 losses by itself."
                )
            )
