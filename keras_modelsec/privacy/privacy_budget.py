"""The callback that reports epsilon and stops training before the budget is exceeded."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core import provenance
from keras_modelsec._core.checks import check_choice, check_integer, check_number
from keras_modelsec.errors import NotPrivateError, PrivacyBudgetExceeded
from keras_modelsec.privacy import accounting
from keras_modelsec.privacy.data_source import NOTHING_KNOWN
from keras_modelsec.privacy.dp_optimizer import DPOptimizer
from keras_modelsec.privacy.ledger import EVERY_BATCH, SEVERAL, SPANNING, Run

__all__ = ["PrivacyBudget", "PrivacyBudgetExceeded"]

_UNKNOWN_HORIZON = 2**20  # releases to plan for where Keras does not know the length of an epoch


class PrivacyBudget(keras.callbacks.Callback):
    """Puts `privacy_epsilon` into the logs, and ends training before the budget is exceeded.

    The figure covers all that was released by this model with a `DPOptimizer`: the optimizer saves
    and restores its count, and compiling the model again keeps it. It follows the weights through
    `.keras` and `.weights.h5` files, but not into another model (`SecureModel.from_model(trained)`,
    trained layers under a new head), nor through a legacy `.h5` file or `tf.train.Checkpoint`: what
    they cost before must be added to it. Loading an earlier file takes the spending back to what
    those weights cost; what was looked at since must be added, too.

    Each step is charged as it was made, and nothing that is said or done later makes it cheaper.
    How often its batches can hold one example is taken from the data, and from what this callback
    says while they are used; `statement()` repeats it:

    - Arrays, a `keras.utils.PyDataset` with a length, and a `tf.data.Dataset` that neither repeats
      nor joins: each example is in one batch at most until Keras starts the data over, in any
      order. Every start is counted, whatever `steps_per_epoch` says. Nothing is claimed from the
      shuffling.
    - `dataset_size`, for data that repeat inside of an epoch (`dataset.repeat()`, an endless
      generator): your word that of any so many examples in a row, counted from the first, none
      comes twice. A batch across two passes counts as holding it twice.
    - Neither: every batch counts as holding the example. Data that repeat before they are batched
      are refused without `dataset_size`. So counts, too, each `train_on_batch`, and each step that
      you run without `fit`.
    - `sampling_probability`: your word that batches are Poisson samples, whose amplification gives
      the small figures usually quoted. It is a guarantee only if each batch really was drawn so; a
      shuffled epoch was not. It holds for the `fit` that this callback is given to.

    Of several of these callbacks in one `fit`, what one does not claim none does. Not seen, and
    yours to avoid: an example that is in the data more than once, a `map`, `flat_map` or
    `interleave` that copies examples within a batch, a `PyDataset` or generator that draws with
    replacement. What callbacks train by themselves is counted, but not foreseen: it may exceed
    `max_epsilon`. Where `steps_per_epoch`
    is less than the data has, training may stop up to a pass early.

    Args:
        delta: Float in (0, 1); below one over the number of examples, or the guarantee is empty.
        max_epsilon: Float > 0, or None to report only. Training stops before the step, or with
            `steps_per_execution` the execution, that would exceed it.
        sampling_probability: Float in (0, 1]: the chance of an example to be in a batch. With
            `gradient_accumulation_steps`, in any of the batches of a step, which must be parts of
            one sample: of batches drawn one by one, two can hold the example, and epsilon is wrong.
        dataset_size: Integer >= 1: examples in a pass over the data, if they repeat in an epoch.
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
        self._plan_is_for: Any = None
        self._affordable = 0

    @property
    def epsilon(self) -> float:
        """What has been spent so far, at `delta`."""
        return self._epsilon_of(self._optimizer().runs())

    def statement(self) -> str:
        """The guarantee in words: the figure, what it covers, and what it assumes."""
        optimizer = self._optimizer()
        runs = optimizer.runs()
        noise = " and ".join(f"{n:g}" for n in sorted({run.noise_multiplier for run in runs}))
        parts = [
            f"({self.epsilon:.4g}, {self.delta:g})-differential privacy per example, for "
            f"{_releases(runs)} noisy steps (noise multiplier {noise or optimizer.noise_multiplier}"
            f", clipping norm {optimizer.l2_norm_clip:g}).",
        ]
        sampled = [run for run in runs if run.sampling_probability]
        passed = [run for run in runs if not run.sampling_probability]
        if sampled:
            parts.append(self._about_sampled(sampled, runs))
        if passed or not runs:
            parts.append(_about_passed(passed))
        if optimizer.has_fixed_seed or any(run.fixed_seed for run in runs):
            parts.append("The noise came from a fixed seed: NOT private to whoever knows it.")
        return " ".join(parts)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the optimizer, and plans how many steps fit."""
        optimizer = self._optimizer()
        self._check_accumulation(optimizer)
        optimizer.ledger.tell(self.sampling_probability, self.dataset_size)
        self._plan_is_for = None
        self._coming_run()  # refuses what it must, before the first step
        if self._is_next_too_much(starts_over=True):
            raise PrivacyBudgetExceeded(
                f"Training must stay within `max_epsilon`. Received: max_epsilon="
                f"{self.max_epsilon:g} at delta={self.delta:g}, of which {self.epsilon:.4g} is "
                f"spent; the next {self._execution()} step(s) would exceed it. Use more noise, a "
                "larger budget, or fewer `steps_per_execution`; with `dataset_size` and data that "
                "do not say how large their batches are, ms.DPOptimizer(expected_batch_size=...)."
            )
        provenance.note(self.model, "privacy", self._facts)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops if the next execution would exceed the budget."""
        if self._is_next_too_much(starts_over=False):
            self._stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds `privacy_epsilon` to the logs; stops if another pass would exceed the budget."""
        if logs is not None:
            logs["privacy_epsilon"] = self.epsilon
        is_last = self.model.stop_training or epoch + 1 >= (self.params.get("epochs") or 0)
        if not is_last and self._is_next_too_much(starts_over=True):
            self._stop()

    def _stop(self) -> None:
        self.model.stop_training = True
        if self.verbose:
            internals.print_message(
                f"\nPrivacyBudget: training stops at epsilon {self.epsilon:.4g}; the next step "
                f"would exceed max_epsilon={self.max_epsilon:g}."
            )

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
        settle = getattr(self.model, "settle_spending", None)
        if settle is not None:
            settle()
        return optimizer

    def _epsilon_of(self, runs: Sequence[Run]) -> float:
        return accounting.epsilon(runs, self.delta, self.accountant)

    def _about_sampled(self, sampled: Sequence[Run], runs: Sequence[Run]) -> str:
        probabilities = " and ".join(
            f"{p:.4g}" for p in sorted({run.sampling_probability for run in sampled})
        )
        without = self._epsilon_of([run._replace(sampling_probability=0.0) for run in runs])
        accumulated = any(run.micro_batches > 1 for run in sampled)
        parts = "that batches accumulated for a step are parts of one sample, "
        neighbours = (
            "differ by one added or removed example"
            if len(sampled) == len(runs)
            else "differ by blanking out one example"
        )
        return (
            f"By {self.accountant.upper()} accounting. Assumes Poisson sampling with probability "
            f"{probabilities} in {_releases(sampled)} of the steps, {parts if accumulated else ''}"
            "which fit's shuffled epochs "
            f"are not; without amplification by sampling epsilon would be {without:.4g}. "
            f"Neighbouring data sets {neighbours}."
        )

    def _is_too_much_sampled(self, before: Sequence[Run], current: Run, releases: int) -> bool:
        """As `_is_next_too_much`, of Poisson samples.

        How many fit is planned, since to compose them takes too long before each step; planned anew
        when anything but their number has changed.
        """
        kind = (current.noise_multiplier, current.sampling_probability)
        same = [r for r in before if (r.noise_multiplier, r.sampling_probability) == kind]
        others = tuple(run for run in before if run not in same)
        made = _releases([*same, current])
        if self._plan_is_for != (kind, others):
            epochs, steps = self.params.get("epochs"), self.params.get("steps")
            wanted = epochs * steps + 1 if epochs and steps else _UNKNOWN_HORIZON
            self._plan_is_for = (kind, others)
            self._affordable = accounting.affordable_releases(
                others,
                current,
                self.delta,
                self.max_epsilon or math.inf,
                wanted=made + wanted,
                accountant=self.accountant,
            )
        return made + releases > self._affordable

    def _coming_run(self) -> Run:
        source = getattr(self.model, "fit_source", NOTHING_KNOWN)  # a plain model will be refused
        return self._optimizer().coming_run(source)

    def _execution(self) -> int:
        return int(self.model.steps_per_execution)

    def _is_next_too_much(self, *, starts_over: bool) -> bool:
        """Whether an execution could release more than what is affordable.

        Args:
            starts_over: Whether it may be the first of a pass over the data.
        """
        if self.max_epsilon is None:
            return False
        optimizer = self._optimizer()
        *before, current = optimizer.runs(with_current=True)
        if starts_over:
            before, current = [*before, current], self._coming_run()
        releases = math.ceil(self._execution() / (optimizer.micro_batches or 1))
        if current.sampling_probability:
            return self._is_too_much_sampled(before, current, releases)
        # What the data say goes before what batches were earlier, or are expected to be.
        size = getattr(self.model, "fit_batch_size", None) or optimizer.known_batch_size
        after = current.after(releases, size)
        return self._epsilon_of([*before, after]) > self.max_epsilon

    def _check_accumulation(self, optimizer: DPOptimizer) -> None:
        """An example must not enter one release twice, which it could across an epoch's end."""
        steps, micro_batches = self.params.get("steps"), optimizer.micro_batches
        if steps and micro_batches and steps % micro_batches:
            raise NotPrivateError(
                "The steps of an epoch must be a multiple of `gradient_accumulation_steps`, or one "
                "step would add up an example from two epochs and twice its influence. Received: "
                f"{steps} steps, gradient_accumulation_steps={micro_batches}."
            )


def _releases(runs: Sequence[Run]) -> int:
    return round(sum(run.releases * run.runs for run in runs))


def _about_passed(runs: Sequence[Run]) -> str:
    """What is assumed of the releases for which no sampling was said."""
    unknown = _releases(
        [run for run in runs if run.pass_examples in (EVERY_BATCH, SPANNING, SEVERAL)]
    )
    sizes = sorted({int(run.pass_examples) for run in runs if run.pass_examples > 0})
    parts = [
        "Assumes that each example is in at most one batch of a pass over the data, in any order; "
        "no amplification by sampling is claimed.",
        *(
            f"Assumes that of {size} examples in a row, from the first on, none comes twice."
            for size in sizes
        ),
    ]
    if unknown:
        parts.append(
            f"How often the data of {unknown} steps hold an example is not known, so each batch of "
            "theirs is taken to hold it once; give `dataset_size` for a smaller figure."
        )
    parts.append("Neighbouring data sets differ by blanking out one example.")
    return " ".join(parts)
