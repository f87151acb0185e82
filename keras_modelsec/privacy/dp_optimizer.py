"""The optimizer that adds the noise, once per step, and remembers what was spent."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core.checks import check_integer, check_number
from keras_modelsec._core.serialization import register
from keras_modelsec.errors import NotPrivateError
from keras_modelsec.privacy.clipped_sums import ClippedSums, without_saved_sums
from keras_modelsec.privacy.clipping import ClippedGradients, unseal
from keras_modelsec.privacy.data_source import (
    NOTHING_KNOWN,
    DataSource,
    check_batches_are_bounded,
)
from keras_modelsec.privacy.inner_optimizer import check_float32_holds, check_inner_optimizer
from keras_modelsec.privacy.ledger import EVERY_BATCH, ONE_PASS, SEVERAL, SPANNING, Ledger, Run

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
            noise is added once and the inner optimizer steps. None for every batch. What was
            summed and not yet released is never saved; loading a state drops it as well.
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
        check_float32_holds(l2_norm_clip, noise_multiplier)
        self.expected_batch_size = check_integer(
            "expected_batch_size", expected_batch_size, minimum=1, optional=True
        )
        # Not the base class's `gradient_accumulation_steps`, which would add noise to every batch.
        self.micro_batches = check_integer(
            "gradient_accumulation_steps", gradient_accumulation_steps, minimum=2, optional=True
        )
        seed = check_integer("seed", seed, minimum=0, optional=True)
        inner_optimizer = keras.optimizers.get(inner_optimizer)
        check_inner_optimizer(inner_optimizer, DPOptimizer)
        self.inner_optimizer = inner_optimizer
        self.has_fixed_seed = seed is not None
        self._seed = seed
        self._noise: backend.NoiseSource | None = None
        self._sums: ClippedSums | None = None
        # For DPMixin, which sees what Keras does not tell an optimizer about a file.
        self.adds_loaded_spending = True
        self.has_loaded_spending = False
        self.ledger = Ledger(self.add_variable, has_fixed_seed=seed is not None)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the state of the inner optimizer, the noise source and the clipped sums."""
        if self.built:
            return
        variables = list(variables)
        if self.micro_batches:
            self._sums = ClippedSums(variables, self.micro_batches)
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
        """The state, the inner optimizer's included; never sums that have no noise yet."""
        return self._variables + self.inner_optimizer.variables

    @property
    def secrets(self) -> list[Any]:
        """What no hook may read or write: sums without noise, and the source of noise."""
        sums = [] if self._sums is None else self._sums.secrets
        return sums if self._noise is None else [*sums, self._noise.state]

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
            grads: The `ClippedGradients` of the private step, as it returned them, once.
            trainable_variables: The weights they belong to.

        Raises:
            NotPrivateError: For any other gradients, before anything is changed.
        """
        if not isinstance(grads, ClippedGradients) or grads.l2_norm_clip != self.l2_norm_clip:
            raise NotPrivateError(
                "DPOptimizer applies only gradients that were clipped per example by the private "
                f"step. Received: {type(grads).__name__}. Train with `fit` on a model that has "
                "ms.DPMixin, such as ms.SecureModel (ms.SecureModel.from_model(model) turns a "
                "functional or Sequential model into one); a plain keras.Model, a "
                "LossScaleOptimizer around this one, and custom loops do not clip."
            )
        grads = unseal(grads, self)
        variables = list(trainable_variables or self._trainable_variables)
        self.build(variables)
        present = [
            (total, penalty, variable)
            for total, penalty, variable in zip(grads.sums, grads.penalties, variables, strict=True)
            if total is not None
        ]
        self._record_batch_size(grads.batch_size)
        if self._sums is not None:
            self._accumulate(self._sums, present)
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

    def _accumulate(
        self, sums: ClippedSums, present: Sequence[tuple[Tensor, Tensor, keras.Variable]]
    ) -> None:
        if backend.replica_count() > 1:
            raise NotPrivateError(
                "gradient_accumulation_steps does not work under a distribution strategy with "
                "several replicas: a conditional update cannot synchronise them (Keras's own "
                "accumulation has the same limit). Use larger batches instead."
            )
        totals, penalties, variables = zip(*present, strict=True)
        sums.add(
            totals,
            [self._get_variable_index(variable) for variable in variables],
            lambda added: self._release(added, penalties, variables),
        )

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
            # Rounded before replicas are added up, each would show more than their sum does.
            gradients.append(gradient if replicas > 1 else ops.cast(gradient, variable.dtype))
        # A step that got no batch fails in its trace's first operation, while what does not depend
        # on the batch may run: it must not count. And nothing is released before it has counted.
        self.ledger.record_release(self.noise_multiplier, self.micro_batches or 1, after=sums)
        counted = self.ledger.releases.value
        gradients = [backend.after(gradient, counted) for gradient in gradients]
        self.inner_optimizer.apply(gradients, variables)

    def begin_run(self) -> None:
        """Closes the run so far in the ledger; nothing is claimed of the data of the next one."""
        self.ledger.close_run(self.noise_multiplier, self.micro_batches or 1)
        spanning = SEVERAL if self.ledger.may_hold_several() else SPANNING
        self.ledger.open_run(spanning if self._is_within_release() else EVERY_BATCH)

    def begin_pass(self, source: DataSource = NOTHING_KNOWN) -> None:
        """Closes the run so far, since Keras starts the data over, and opens one for these data.

        Args:
            source: What is known of the data.

        Raises:
            NotPrivateError: If a batch may hold an example several times, and nothing bounds it.
        """
        coming = self.coming_run(source)
        self.begin_run()
        self.ledger.open_run(int(coming.pass_examples), coming.sampling_probability)

    def coming_run(self, source: DataSource) -> Run:
        """What a run is that begins now, with these data; nothing is released in it yet.

        Raises:
            NotPrivateError: If a batch may hold an example several times, and nothing bounds it.
        """
        size = self.ledger.told_dataset_size() if source.in_passes else 0
        is_spanning = self._is_within_release()
        if is_spanning and self.ledger.may_hold_several():
            raise NotPrivateError(
                "Batches that wait for their release must not hold an example more than once when "
                "the data start over. Received: gradient_accumulation_steps="
                f"{self.micro_batches}, and batches of data that repeat which were not yet "
                "released. Let an epoch have a multiple of it in steps, or compile again with a "
                "new DPOptimizer."
            )
        check_batches_are_bounded(source, size, is_spanning)
        pass_examples = size or (ONE_PASS if source.once else EVERY_BATCH)
        probability = self.ledger.told_sampling_probability()
        if is_spanning:
            # With batches from before the data started over, later ones are no one sample.
            pass_examples, probability = SPANNING, 0.0
        micro_batches = self.micro_batches or 1
        return Run(
            self.noise_multiplier,
            self.batch_size * micro_batches,
            0.0,
            1.0,
            float(micro_batches),
            float(pass_examples),
            probability,
        )

    def _is_within_release(self) -> bool:
        """Whether batches are accumulated whose release is to come."""
        return self._sums is not None and self._sums.are_pending

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

    @property
    def known_batch_size(self) -> int | None:
        """Examples per batch as given, or as recorded; None before the first batch."""
        return self.expected_batch_size or int(np.asarray(self.ledger.batch_size)) or None

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

        Keras only warns when an optimizer's state does not fit, or turns the error into a warning
        (`load_weights(skip_mismatch=True)`), when weights of the file are in place already. So what
        the file says was spent is added to the ledger before this raises.
        State saved before the first step may not fit, since it had no slots for the weights yet.
        Batches that were summed and not yet released are dropped.
        """
        self._forget_sums()
        self.begin_run()
        keys = [key for key in map(str, range(len(store.keys()))) if key in store.keys()]  # noqa: SIM118
        values = [store[key] for key in keys]
        values[_BASE_VARIABLES:] = self.ledger.upgrade(values[_BASE_VARIABLES:])
        own, weights = len(self._variables), self._trainable_variables
        if len(values) == len(self.variables) + len(weights):
            values = without_saved_sums(values, own, weights)
        self.has_loaded_spending = self.ledger.is_unspent(values[_BASE_VARIABLES:])
        if _shapes(values) == _shapes(self.variables):
            earlier = self.runs() if self.adds_loaded_spending else []
            for variable, value in zip(self.variables, values, strict=True):
                variable.assign(value)
            # What comes next may start the data over, and with another noise multiplier.
            self.begin_run()
            self.ledger.add(earlier)
            self.has_loaded_spending = True
        elif not self.has_loaded_spending:
            self.has_loaded_spending = self.ledger.add_saved(values[_BASE_VARIABLES:])
            raise NotPrivateError(
                "The saved state of DPOptimizer must fit, since it holds what privacy was spent. "
                f"Received: {len(store.keys())} saved values for {len(self.variables)} variables, "
                "or values of other shapes. Compile the model as it was when it was saved. What "
                "this state says was spent counts from now on, since the weights may be loaded."
            )

    def _forget_sums(self) -> None:
        if self._sums is not None:
            self._sums.forget()

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


def _shapes(values: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(np.shape(value)) for value in values]
