"""The callback that reports epsilon and stops training before the budget is exceeded."""

import math
from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core import provenance
from keras_modelsec._core.checks import check_choice, check_integer, check_number
from keras_modelsec.privacy import accounting
from keras_modelsec.privacy.dp_optimizer import DPOptimizer
from keras_modelsec.privacy.errors import NotPrivateError, PrivacyBudgetExceeded

__all__ = ["PrivacyBudget", "PrivacyBudgetExceeded"]

_UNKNOWN_HORIZON = 2**20  # releases to plan for where Keras does not know the length of an epoch


class PrivacyBudget(keras.callbacks.Callback):
    """Puts `privacy_epsilon` into the logs, and ends training before the budget is exceeded.

    The figure covers all that was released by this model with a `DPOptimizer`: the optimizer saves
    and restores its count, and compiling the model again keeps it. It does not follow the weights
    into another model (`SecureModel.from_model(trained)`, trained layers under a new head, a file
    loaded with `compile=False`): what they cost before must be added to it.

    Which sampling the figure assumes is the caller's to say, and `statement()` repeats it:

    - Neither `sampling_probability` nor `dataset_size`: each example enters one batch per epoch, as
      under `fit`. Valid for any order of the data; nothing is claimed from the shuffling. A data
      set that repeats within an epoch (`dataset.repeat(n)`, an endless generator) breaks this
      assumption, and a callback cannot see it: give `dataset_size`.
    - `dataset_size`: the same for such data, and where Keras does not know how many steps an epoch
      has.
    - `sampling_probability`: Poisson sampling, whose amplification gives the small figures usually
      quoted. It is a guarantee only if each batch really was drawn so; a shuffled epoch was not.

    Args:
        delta: Float in (0, 1); below one over the number of examples, or the guarantee is empty.
        max_epsilon: Float > 0, or None to report only. Training stops before the step, or with
            `steps_per_execution` the execution, that would exceed it.
        sampling_probability: Float in (0, 1]: the chance of an example to be in a batch (in all
            batches accumulated for one step, if there are several).
        dataset_size: Integer >= 1: examples in a pass over the data.
        accountant: "pld" (tight) or "rdp", for Poisson sampling; passes are composed exactly.
        verbose: 0 is silent, 1 says when and why training stops.

    Raises:
        NotPrivateError: At the start of training, if the model has no `DPOptimizer`.
        PrivacyBudgetExceeded: At the start of training, if not even one step fits.

    Example:
    ```python
    budget = ms.PrivacyBudget(delta=1e-5, max_epsilon=8.0)
    model.fit(x, y, epochs=10, callbacks=[budget])
    print(budget.statement())
    ```

    Reference: Doroshenko et al., "Connect the Dots", arXiv:2207.04380 (PLD); Mironov,
    arXiv:1702.07476 (RDP).
    """

    def __init__(
        self,
        delta: float,
        max_epsilon: float | None = None,
        sampling_probability: float | None = None,
        dataset_size: int | None = None,
        *,
        accountant: str = "pld",
        verbose: int = 1,
    ):
        super().__init__()
        self.delta = check_number("delta", delta, above=0, below=1)
        self.max_epsilon = check_number("max_epsilon", max_epsilon, above=0, optional=True)
        self.sampling_probability = check_number(
            "sampling_probability", sampling_probability, above=0, maximum=1, optional=True
        )
        self.dataset_size = check_integer("dataset_size", dataset_size, minimum=1, optional=True)
        if sampling_probability is not None and dataset_size is not None:
            raise ValueError(
                "Give `sampling_probability` (Poisson sampling) or `dataset_size` (passes over the "
                f"data), not both. Received: sampling_probability={sampling_probability}, "
                f"dataset_size={dataset_size}."
            )
        self.accountant = check_choice("accountant", accountant, accounting.ACCOUNTANTS)
        self.verbose = verbose
        self._last_release = 0
        self._batch_size_at_plan = 0.0

    @property
    def epsilon(self) -> float:
        """What has been spent so far, at `delta`."""
        return self._epsilon_of(self._sampling())

    def statement(self) -> str:
        """The guarantee in words: the figure, what it covers, and what it assumes."""
        optimizer = self._optimizer()
        sampling = self._sampling()
        releases = int(sum(run.releases * run.runs for run in optimizer.runs()))
        parts = [
            f"({self.epsilon:.4g}, {self.delta:g})-differential privacy per example, for "
            f"{releases} noisy steps (noise multiplier {optimizer.noise_multiplier:g}, clipping "
            f"norm {optimizer.l2_norm_clip:g})."
        ]
        if isinstance(sampling, accounting.PoissonSampling):
            without = self._epsilon_of(self._passes())
            parts.append(
                f"By {self.accountant.upper()} accounting. Assumes Poisson sampling with "
                f"probability {sampling.probability:.4g}, which fit's shuffled epochs are not; "
                f"without amplification by sampling epsilon would be {without:.4g}. "
                "Neighbouring data sets differ by one added or removed example."
            )
        elif not all(sampling.is_known(run) for run in optimizer.runs(with_current=True)):
            parts.append(
                "The length of some epochs is not known, so every step of theirs is taken to hold "
                "the example; give `dataset_size` for a smaller figure."
            )
        else:
            parts.append(
                "Assumes that each example is in at most one batch per epoch, in any order (of "
                "data that repeat within an epoch, `dataset_size` tells); no amplification by "
                "sampling is claimed. Neighbouring data sets differ by blanking out one example."
            )
        if optimizer.has_fixed_seed:
            parts.append("The noise came from a fixed seed: NOT private to whoever knows it.")
        return " ".join(parts)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the optimizer, and plans how many steps fit."""
        optimizer = self._optimizer()
        self._check_accumulation(optimizer)
        if self.sampling_probability is not None:
            optimizer.ledger.assume_sampling(self.sampling_probability)
        self._plan()
        if self._is_next_too_much():
            raise PrivacyBudgetExceeded(
                f"Training must stay within `max_epsilon`. Received: max_epsilon="
                f"{self.max_epsilon:g} at delta={self.delta:g}, of which {self.epsilon:.4g} is "
                f"spent; the next {self._execution()} step(s) would exceed it. Use more noise, a "
                "larger budget, or fewer `steps_per_execution`."
            )
        self._batch_size_at_plan = optimizer.batch_size
        provenance.note(self.model, "privacy", self._facts)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops if the next execution would exceed the budget."""
        if self.max_epsilon is None:
            return
        if self._batch_size_at_plan != self._optimizer().batch_size:
            self._plan()
            self._batch_size_at_plan = self._optimizer().batch_size
        if self._is_next_too_much():
            self.model.stop_training = True
            if self.verbose:
                internals.print_message(
                    f"\nPrivacyBudget: training stops at epsilon {self.epsilon:.4g}; the next step "
                    f"would exceed max_epsilon={self.max_epsilon:g}."
                )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds `privacy_epsilon` to the logs."""
        if logs is not None:
            logs["privacy_epsilon"] = self.epsilon

    def _facts(self) -> dict[str, Any]:
        """What a signed checkpoint states of its privacy."""
        return {"epsilon": self.epsilon, "delta": self.delta, "statement": self.statement()}

    def _optimizer(self) -> DPOptimizer:
        optimizer = getattr(self.model, "optimizer", None)
        if not isinstance(optimizer, DPOptimizer):
            raise NotPrivateError(
                "PrivacyBudget needs a model compiled with ms.DPOptimizer. Received: optimizer="
                f"{type(optimizer).__name__}, whose training has no privacy to account for."
            )
        return optimizer

    def _sampling(self) -> accounting.Sampling:
        if self.sampling_probability is None:
            return self._passes()
        optimizer = self._optimizer()
        return accounting.PoissonSampling(
            self.sampling_probability, optimizer.batch_size * (optimizer.micro_batches or 1)
        )

    def _passes(self) -> accounting.Passes:
        # How long passes were stands in each run: another `fit` may have had other data.
        return accounting.Passes(None, self._optimizer().batch_size, self.dataset_size)

    def _epsilon_of(self, sampling: accounting.Sampling) -> float:
        runs = tuple(self._optimizer().runs())
        return accounting.epsilon(runs, sampling, self.delta, self.accountant)

    def _plan(self) -> None:
        """How many releases the optimizer may have made in all when this training ends."""
        if self.max_epsilon is None:
            return
        optimizer = self._optimizer()
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        micro_batches = optimizer.micro_batches or 1
        wanted = epochs * steps // micro_batches + 1 if epochs and steps else _UNKNOWN_HORIZON
        *earlier, current = optimizer.runs(with_current=True)
        self._last_release = (
            optimizer.release_count
            - int(current.releases)
            + accounting.affordable_releases(
                tuple(earlier),
                current,
                self._sampling(),
                self.delta,
                self.max_epsilon,
                wanted=max(wanted, int(current.releases)),
                accountant=self.accountant,
            )
        )

    def _execution(self) -> int:
        return int(self.model.steps_per_execution)

    def _is_next_too_much(self) -> bool:
        """Whether an execution could release more than what is affordable."""
        if self.max_epsilon is None:
            return False
        optimizer = self._optimizer()
        releases = math.ceil(self._execution() / (optimizer.micro_batches or 1))
        return optimizer.release_count + releases > self._last_release

    def _check_accumulation(self, optimizer: DPOptimizer) -> None:
        """An example must not enter one release twice, which it could across an epoch's end."""
        steps, micro_batches = self.params.get("steps"), optimizer.micro_batches
        if self.sampling_probability is None and steps and micro_batches and steps % micro_batches:
            raise NotPrivateError(
                "The steps of an epoch must be a multiple of `gradient_accumulation_steps`, or one "
                "step would add up an example from two epochs and twice its influence. Received: "
                f"{steps} steps, gradient_accumulation_steps={micro_batches}."
            )
