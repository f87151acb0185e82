"""The callback that compares live weights with what they must be, while the model runs."""

import datetime
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_modelsec._core import checks
from keras_modelsec._signing.trust import Threshold, TrustedKeys
from keras_modelsec.errors import TamperedWeightsError
from keras_modelsec.integrity.guards.activation_guard import guards_of
from keras_modelsec.integrity.guards.weight_monitor import WeightMonitor, check_policy
from keras_modelsec.integrity.guards.weight_reference import Reference, SeenWeights, SignedWeights
from keras_modelsec.integrity.guards.weight_scanner import Pace


class IntegrityGuard(keras.callbacks.Callback):
    """Compares the live weights with the signed ones while `fit`, `evaluate` and `predict` run.

    During `evaluate` and `predict` all weights must be constant. During `fit` the frozen ones must
    be, and all other constants (quantized kernels, `Normalization` statistics); weights that are
    trained, and `BatchNormalization` statistics, may change only inside of a step: whoever writes
    to them between the end of one and the beginning of the next is found.

    Constant weights are compared by SHA-256, 256 KiB at a time, in a share of the running time that
    `overhead` sets, and once in full at the beginning and at the end. At the default 1 % and some
    1.3 GB/s of hashing, a round takes 8 s of running time for each 100 MB of weights: that long a
    change can last before it is found. `every_steps` or `every_seconds` set a faster pace, at its
    price. Reading is not copying: a model on the CPU needs no memory more.

    Put it last in the list of callbacks, so that what the others do to the weights at the end of a
    batch comes before its look. If one writes to trained weights at other times (`SwapEMAWeights`
    does), pass `watch_training=False`.

    What it cannot do: it runs inside the process, and who controls the process can change the
    guard. A change that is undone before it is looked at is not seen; nor is one inside a training
    step, or a bit that flips in memory in a weight that is being trained. Calls that take no
    callbacks (`model(x)`, `predict_on_batch`) are covered only if `check` is called. It does not
    look at code, at the graph, or at layers' Python attributes.

    Args:
        reference: Path of a signed .keras or .weights.h5 file with its statement
            (`NAME.modelsec.json`) beside it: live weights must be the signed ones. Default None:
            each weight is trusted as it is when the guard first sees it, until `reset`.
        trusted_keys: As in `ms.verify`; needed with a path, refused without.
        expected_name: As in `ms.verify`: the name the reference must have been signed under.
            Default None: any.
        threshold: As in `ms.verify`: how many of `trusted_keys` must have signed, or "all".
            Default 1.
        on_mismatch: "raise" (default): a `TamperedWeightsError`. "restore": the weight is set to
            the signed value (read from the signed file again and compared with its digest), or to
            a copy made at the beginning with `reference=None` (which takes memory for all constant
            weights); with a warning. A callable is called with the `TamperedWeightsError`, and the
            run goes on; it may raise.
        overhead: The share of running time for comparing, 0 <= overhead < 1. No step pays more
            than twice this share, or one leaf (0.2 ms). Default 0.01.
        every_steps: Compare all weights at least once in that many steps, whatever it costs, int
            >= 1. Default None.
        every_seconds: The same in seconds of running time, > 0. Default None.
        check_ends: Whether to compare all weights when a run begins and ends. False saves the time
            where `predict` is called often and shortly; rounds then go on from call to call, and
            the first call still reads all weights. Default True.
        changing: Layers, or patterns of paths ("layers/counter/vars/*"), whose variables may change
            at any time: layers of your own that update their state when called. What Keras's own
            layers update is known.
        watch_training: Whether to watch trained weights between the steps of `fit`. Done as often
            as `overhead` allows, and between epochs always. Default True.
        watch_optimizer: Whether to watch the optimizer's variables in the same way, its learning
            rate excepted. Default False.

    Attributes:
        checks: How many times all constant weights have been compared.
        gaps: How many times trained weights have been compared across a gap between steps.
        violations: How many times a weight was found changed.
        last_full_check: When the last full comparison ended, a `datetime` in UTC, or None.

    `logs` get `integrity_checks` (`checks` + `gaps`) and `integrity_violations` at the end of each
    epoch, and `activation_violations` if the model has `ActivationGuard` layers.

    Raises:
        TamperedWeightsError: From `fit`, `evaluate` or `predict`; it names the tensors. A
            TamperedModelError, thus a SignatureError.
        SignatureError: When the guard is made, if the statement is missing or not trusted.
        ValueError: If an argument is out of range.

    Example:
    ```python
    guard = ms.IntegrityGuard("model.keras", "owner.pub")
    model.predict(x, callbacks=[guard], verbose=0)
    print(guard.checks, guard.last_full_check)
    ```
    """

    def __init__(
        self,
        reference: "str | os.PathLike[str] | None" = None,
        trusted_keys: "TrustedKeys | None" = None,
        *,
        expected_name: str | None = None,
        threshold: Threshold = 1,
        on_mismatch: str | Callable[[TamperedWeightsError], Any] = "raise",
        overhead: float = 0.01,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        check_ends: bool = True,
        changing: Iterable["str | keras.Layer"] = (),
        watch_training: bool = True,
        watch_optimizer: bool = False,
    ):
        super().__init__()
        on_mismatch = check_policy(on_mismatch)
        self.check_ends = checks.check_boolean("check_ends", check_ends)
        self.watch_training = checks.check_boolean("watch_training", watch_training)
        self._pace = Pace(
            checks.check_number("overhead", overhead, minimum=0, below=1),
            checks.check_integer("every_steps", every_steps, minimum=1, optional=True),
            checks.check_number("every_seconds", every_seconds, above=0, optional=True),
        )
        self._monitor = WeightMonitor(
            _make_reference(
                reference, trusted_keys, expected_name, threshold, on_mismatch == "restore"
            ),
            on_mismatch,
            _check_changing(changing),
            watch_optimizer=checks.check_boolean("watch_optimizer", watch_optimizer),
        )
        self._fitting = False
        self._last_batch = -1

    @property
    def checks(self) -> int:
        """How many times all constant weights have been compared."""
        return self._monitor.checks

    @property
    def gaps(self) -> int:
        """How many times trained weights have been compared across a gap between steps."""
        return self._monitor.gaps

    @property
    def violations(self) -> int:
        """How many times a weight was found changed."""
        return self._monitor.violations

    @property
    def last_full_check(self) -> datetime.datetime | None:
        """When the last full comparison ended, in UTC, or None."""
        return self._monitor.last_full_check

    def check(self, model: keras.Model | None = None) -> None:
        """Compares all weights now; outside of `fit`, and for calls that take no callbacks.

        Args:
            model: The model, built. Default: the one the guard ran with.

        Raises:
            TamperedWeightsError: Unless `on_mismatch` says otherwise.
            ValueError: If there is no model, or it is not built.
        """
        if model is not None:
            self.set_model(model)
        if self.model is None or not self.model.built:
            raise ValueError(
                "`model` must be a built model. Received: "
                f"{'none' if self.model is None else repr(self.model.name)}."
            )
        self._monitor.prepare(self.model, fitting=self._fitting, check=True)

    def reset(self) -> None:
        """With `reference=None`, trusts the weights as they are when next seen."""
        self._monitor.forget()

    def set_model(self, model: keras.Model) -> None:
        """Called by Keras when a run begins; another model is another beginning."""
        if model is not self._model:
            self._monitor.forget()
        if self._fitting:  # a `fit` that was broken off
            self._monitor.forget_roles()
        self._fitting = False
        self._monitor.close_gap()
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares what must stay constant during training."""
        self._fitting = True
        self._monitor.forget_roles()
        self._begin()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares all weights; as the validation of a `fit`, sees that it changes none."""
        if not self._fitting:
            self._begin()
        elif self.watch_training and self._monitor.is_prepared:
            self._monitor.open_gap()

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares all weights."""
        if not self._fitting:
            self._begin()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks who wrote to trained weights since the last step."""
        self._pace.spent_on_gap(self._monitor.compare_gap())
        self._monitor.close_gap()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares some leaves, and remembers what the trained weights are now."""
        self._step(batch)
        monitor, shared = self._monitor, self._monitor.scanner.nbytes > 0
        is_last = batch + 1 == (self.params or {}).get("steps")
        is_paid = self._pace.allows_gap(monitor.gap_seconds, shared=shared)
        if self.watch_training and (is_paid or is_last):
            self._pace.spent_on_gap(monitor.open_gap())
        self._pace.end_step(time.perf_counter())

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares some leaves."""
        self._step(batch)
        self._pace.end_step(time.perf_counter())

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares some leaves."""
        self._step(batch)
        self._pace.end_step(time.perf_counter())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks who wrote to trained weights, and adds the counts to `logs`."""
        self._monitor.compare_gap()
        if self.watch_training and self._monitor.is_prepared:
            self._monitor.open_gap()
        if logs is not None:
            logs["integrity_checks"] = self.checks + self.gaps
            logs["integrity_violations"] = self.violations
            guards = guards_of(self.model)
            if guards:
                logs["activation_violations"] = sum(g.report().violations for g in guards)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Compares what must have stayed constant."""
        self._monitor.close_gap()  # Keras has written averaged weights by now, if asked to
        self._end()
        self._monitor.forget_roles()
        self._fitting = False

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Compares all weights, unless a `fit` goes on."""
        if not self._fitting:
            self._end()

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Compares all weights, unless a `fit` goes on."""
        if not self._fitting:
            self._end()

    def _begin(self) -> None:
        self._pace.pause()
        self._last_batch = -1
        if self.model.built:
            self._monitor.prepare(self.model, fitting=self._fitting, check=self.check_ends)

    def _end(self) -> None:
        if self.model.built and self.check_ends:
            self._monitor.prepare(self.model, fitting=self._fitting, check=True)

    def _step(self, batch: int) -> None:
        """What is done after each step: as many leaves as its share pays for."""
        monitor = self._monitor
        if self._last_batch < 0:  # the first step builds what is not built yet
            monitor.prepare(self.model, fitting=self._fitting)
        begin = time.perf_counter()
        self._pace.begin_step(begin)
        steps = batch - self._last_batch if batch > self._last_batch else batch + 1
        self._last_batch = batch
        scanner, checks_before = monitor.scanner, monitor.checks
        shared = self._fitting and self.watch_training
        allowed = self._pace.for_leaves(steps, scanner.nbytes, scanner.leaf_seconds, shared=shared)
        nbytes = monitor.compare_some(*allowed)
        if monitor.checks > checks_before:  # variables may have been replaced by others
            monitor.prepare(self.model, fitting=self._fitting)
        self._pace.spent_on_leaves(time.perf_counter() - begin, nbytes)


def _make_reference(
    path: Any,
    trusted_keys: Any,
    expected_name: str | None,
    threshold: Threshold,
    keeps_values: bool,
) -> Reference:
    if (path is None) != (trusted_keys is None):
        raise ValueError(
            "`trusted_keys` must be given with the path of a signed model as `reference`, and only "
            f"then. Received: reference={path!r}, trusted_keys "
            f"{'missing' if trusted_keys is None else 'given'}."
        )
    if path is not None:
        return SignedWeights(path, trusted_keys, expected_name, threshold)
    if expected_name is not None or threshold != 1:
        raise ValueError(
            "`expected_name` and `threshold` must be given with the path of a signed model as "
            "`reference`, and only then. Received: reference=None."
        )
    return SeenWeights(keeps_values)


def _check_changing(value: Any) -> tuple[Any, ...]:
    items = () if isinstance(value, str) else tuple(value)
    if isinstance(value, str) or not all(isinstance(i, str | keras.Layer) for i in items):
        raise TypeError(
            "`changing` must be a list of layers, or of patterns of paths as strings. "
            f"Received: changing={value!r}."
        )
    return items
