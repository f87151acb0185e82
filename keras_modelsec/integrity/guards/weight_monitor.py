"""What `IntegrityGuard` knows of a model's weights, and what it does when they are not right.

Owns the comparison and the three answers to a mismatch; when to compare is the callback's.
"""

import datetime
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes  # noqa: F401  (teaches numpy the names of bfloat16 and float8)
import numpy as np

from keras_modelsec.integrity.errors import TamperedWeightsError
from keras_modelsec.integrity.guards import weight_roles
from keras_modelsec.integrity.guards.gap_watch import Change, GapWatch
from keras_modelsec.integrity.guards.weight_reference import Reference
from keras_modelsec.integrity.guards.weight_scanner import Constant, WeightScanner


class WeightMonitor:
    """Compares a model's weights with a reference, all at once or piece by piece.

    Args:
        reference: Where trusted digests and values come from.
        on_mismatch: "raise", "restore", or a callable.
        changing: As in `IntegrityGuard`.
        watch_optimizer: As in `IntegrityGuard`.
    """

    def __init__(
        self, reference: Reference, on_mismatch: Any, changing: Any, *, watch_optimizer: bool
    ):
        self.checks = self.gaps = self.violations = 0
        self.gap_seconds = 0.0  # what watching one gap costs
        self._opening = 0.0
        self.last_full_check: datetime.datetime | None = None
        self.scanner = WeightScanner({})
        self._reference = reference
        self._on_mismatch = on_mismatch
        self._changing = changing
        self._watch_optimizer = watch_optimizer
        self._gap = GapWatch()
        self._trained: dict[str, keras.Variable] = {}
        self._weights: list[int] = []

    @property
    def is_prepared(self) -> bool:
        """Whether it is known which weights must be constant."""
        return bool(self._weights)

    def forget(self) -> None:
        """Forgets the model; signed digests stay."""
        self._reference.forget()
        self.scanner = WeightScanner({})
        self._weights = []

    def forget_roles(self) -> None:
        """Which weights must be constant is found out again, as when training begins or ends."""
        self._weights = []

    def prepare(self, model: keras.Model, *, fitting: bool, check: bool = False) -> None:
        """Finds out which weights must be constant, and compares those that are new.

        Args:
            model: A built model.
            fitting: Whether it is being trained.
            check: Whether to compare also those that are known.
        """
        weights = [id(v) for v in model.weights]
        if fitting and self._watch_optimizer:
            weights += map(id, weight_roles.optimizer_variables(model).values())
        new: set[str] = set()
        if not weights or weights != self._weights:
            new = self._find_roles(model, fitting)
            self._weights = weights
        if check or new:
            self._compare(set(self.scanner.constants) if check else new)

    def _find_roles(self, model: keras.Model, fitting: bool) -> set[str]:
        """Returns the names of constants that wait for their first comparison."""
        named = weight_roles.named_weights(model)
        free = weight_roles.free(model, self._changing)
        trained = weight_roles.trained(model) if fitting else set()
        constant = {n: v for n, v in named.items() if id(v) not in free | trained}
        self._trained = {n: v for n, v in named.items() if id(v) in trained - free}
        self._reference.check_names(constant, weight_roles.all_names(model))
        self._reference.forget(self._trained)
        if fitting and self._watch_optimizer:
            self._trained |= weight_roles.optimizer_variables(model)
        constants, waiting, old = {}, set(), self.scanner.constants
        for name, variable in constant.items():
            if name in old and old[name].variable is variable:
                constants[name] = old[name]
                continue
            leaves, is_compared = self._reference.expected(name, variable)
            constants[name] = Constant(name, variable, leaves)
            waiting |= set() if is_compared else {name}
        if constants != old:
            self.scanner = WeightScanner(constants)
        return waiting

    def compare_all(self) -> None:
        """Compares every constant weight now."""
        self._compare(set(self.scanner.constants))

    def _compare(self, names: set[str]) -> None:
        self._answer(self.scanner.scan_all(names))
        if names >= set(self.scanner.constants):
            self.count_full_check()

    def compare_some(self, seconds: float, nbytes: float) -> int:
        """Goes on where it stopped, as `WeightScanner.scan`; returns the bytes compared."""
        rounds = self.scanner.rounds
        changed, done = self.scanner.scan(seconds, nbytes)
        self._answer(changed)
        if self.scanner.rounds > rounds:
            self.count_full_check()
        return done

    def count_full_check(self) -> None:
        """Notes that all constant weights have been compared."""
        self.checks += 1
        self.last_full_check = datetime.datetime.now(datetime.UTC)

    def open_gap(self) -> float:
        """A training step has ended: from now on nobody may write to trained weights.

        Returns:
            The seconds it took.
        """
        if self._gap.is_armed:
            return 0.0
        begin = time.perf_counter()
        self._gap.arm(self._trained)
        self._opening = time.perf_counter() - begin
        return self._opening

    def compare_gap(self) -> float:
        """Sees who wrote to trained weights since `open_gap`; returns the seconds it took."""
        if not self._gap.is_armed:
            return 0.0
        begin = time.perf_counter()
        changes = {change.name: change for change in self._gap.changes()}
        self.gaps += 1
        if changes:
            self._gap.release()
            self._answer(set(changes), changes)
        spent = time.perf_counter() - begin
        self.gap_seconds = self._opening + spent
        return spent

    def close_gap(self) -> None:
        """A training step begins."""
        self._gap.release()

    def _answer(self, changed: set[str], gap: dict[str, Change] | None = None) -> None:
        if not changed:
            return
        names = sorted(changed)
        self.violations += len(names)
        error = _mismatch(names, between_steps=gap is not None)
        if self._on_mismatch == "raise":
            raise error
        if callable(self._on_mismatch):
            self._on_mismatch(error)
            return
        for name in names:
            if gap is not None:
                gap[name].variable.assign(gap[name].before)
            else:
                self._restore(name)
        warnings.warn(f"{error} Restored.", RuntimeWarning, stacklevel=2)

    def _restore(self, name: str) -> None:
        variable = self.scanner.constants[name].variable
        array = np.frombuffer(self._reference.value(name), np.dtype(variable.dtype))
        variable.assign(array.reshape(tuple(variable.shape)))
        if self.scanner.scan_all([name]):
            raise TamperedWeightsError(
                "A weight must keep the value it was restored to. It did not: something writes to "
                "it all the time, or the memory is faulty. Stop using the model.",
                tensors=[name],
            )


def _mismatch(names: list[str], *, between_steps: bool) -> TamperedWeightsError:
    message = (
        "Weights in training must change in training steps only, and were written to between two. "
        "If another callback does so, pass watch_training=False to IntegrityGuard."
        if between_steps
        else "Live weights must be what was signed, or what they were when IntegrityGuard first "
        "saw them. Stop using the model, and load a verified one. If a layer of yours changes "
        "them by design, name it in `changing`; if you did, call IntegrityGuard.reset()."
    )
    return TamperedWeightsError(message, tensors=names)


def check_policy(value: Callable[[TamperedWeightsError], Any] | str) -> Any:
    """Returns `on_mismatch`, which must be "raise", "restore" or callable."""
    if callable(value) or value in ("raise", "restore"):
        return value
    raise ValueError(
        f"`on_mismatch` must be 'raise', 'restore' or a callable. Received: on_mismatch={value!r}."
    )
