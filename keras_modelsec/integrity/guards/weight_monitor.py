"""What `IntegrityGuard` knows of a model's weights, and what it does when they are not right.

Owns the comparison, the watch for who writes to trained weights between two training steps, and the
three answers to a mismatch; when to compare is the callback's. Which variables may change fails
closed: one that is not known to change must be constant.
"""

import datetime
import fnmatch
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import ml_dtypes  # noqa: F401  (teaches numpy the names of bfloat16 and float8)
import numpy as np

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.errors import TamperedWeightsError
from keras_modelsec.integrity.contents.tensor_layout import model_tensors
from keras_modelsec.integrity.guards.activation_guard import ActivationGuard
from keras_modelsec.integrity.guards.weight_reference import Reference
from keras_modelsec.integrity.guards.weight_scanner import Constant, WeightScanner


class Change(NamedTuple):
    """A weight that was written to, and what it held at the end of the step."""

    name: str
    variable: keras.Variable
    before: Any


class GapWatch:
    """Holds on to the contents of variables, without copying them, and compares.

    As long as a content is held, every assignment goes to other memory, so comparing addresses is
    enough to see that there was none. Before the next step the contents must be let go, or that
    step would copy each weight. Bits that flip in the memory itself change both and are not seen.
    """

    def __init__(self) -> None:
        self._held: list[tuple[str, keras.Variable, list[Any]]] = []

    @property
    def is_armed(self) -> bool:
        """Whether contents are held."""
        return bool(self._held)

    def arm(self, variables: Mapping[str, keras.Variable]) -> None:
        """Takes hold of what the variables are now."""
        self._held = [(n, v, backend.variable_contents(v)) for n, v in variables.items()]

    def release(self) -> None:
        """Lets go, for a step to change the variables."""
        self._held = []

    def changes(self) -> list[Change]:
        """What was written to, with other values, since `arm`."""
        found = []
        for name, variable, before in self._held:
            now = backend.variable_contents(variable)
            pairs = list(zip(before, now, strict=True))
            if not all(_is_same(old, new) for old, new in pairs):
                found.append(Change(name, variable, before[0]))
        return found


def _is_same(before: Any, now: Any) -> bool:
    if backend.is_same_memory(before, now):
        return True
    left, right = (np.frombuffer(backend.memory_of(tensor), np.uint8) for tensor in (before, now))
    return np.array_equal(left, right)


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
            weights += map(id, optimizer_variables(model).values())
        new: set[str] = set()
        if not weights or weights != self._weights:
            new = self._find_roles(model, fitting)
            self._weights = weights
        if check or new:
            self._compare(set(self.scanner.constants) if check else new)

    def _find_roles(self, model: keras.Model, fitting: bool) -> set[str]:
        """Returns the names of constants that wait for their first comparison."""
        named = named_weights(model)
        free = free_variables(model, self._changing)
        trained = trained_variables(model) if fitting else set()
        constant = {n: v for n, v in named.items() if id(v) not in free | trained}
        self._trained = {n: v for n, v in named.items() if id(v) in trained - free}
        self._reference.check_names(constant, all_names(model))
        self._reference.forget(self._trained)
        if fitting and self._watch_optimizer:
            self._trained |= optimizer_variables(model)
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


def named_weights(model: keras.Model) -> dict[str, keras.Variable]:
    """The weights by the paths they have in a .keras file; no seeds, metrics, optimizer state."""
    weights = {id(variable) for variable in model.weights}
    return {path: v for path, v in model_tensors(model) if id(v) in weights}


def all_names(model: keras.Model) -> set[str]:
    """The paths of all that the model would write into a .keras file."""
    return {path for path, _ in model_tensors(model)}


def optimizer_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """The optimizer's variables but the learning rate, which schedules set between steps."""
    optimizer = model.optimizer
    if optimizer is None:
        return {}
    rate = optimizer.learning_rate
    return {f"optimizer/{v.path}": v for v in optimizer.variables if v is not rate}


def free_variables(model: keras.Model, changing: Iterable["str | keras.Layer"]) -> set[int]:
    """The `id` of variables that may change in any mode, at any time.

    Args:
        model: The model.
        changing: Layers, and patterns of paths, that the user knows to change.
    """
    found = {id(v) for layer in _layers(model) for v in _changed_by_calls(layer)}
    patterns = [item for item in changing if isinstance(item, str)]
    for layer in (item for item in changing if isinstance(item, keras.Layer)):
        found |= {id(v) for v in layer.variables}
    for path, variable in named_weights(model).items():
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
            found.add(id(variable))
    return found


def trained_variables(model: keras.Model) -> set[int]:
    """The `id` of variables that a step of `fit` changes, and nothing between two steps."""
    found = {id(v) for v in model.trainable_variables}
    return found | {id(v) for layer in _layers(model) for v in _changed_by_training(layer)}


def _layers(model: keras.Model) -> list[keras.Layer]:
    return internals.flatten_layers(model)


def _changed_by_calls(layer: Any) -> Iterator[keras.Variable]:
    if isinstance(layer, ActivationGuard):
        yield from layer.variables
    elif isinstance(layer, keras.layers.RNN) and layer.stateful:
        yield from (s for s in keras.tree.flatten(layer.states) if isinstance(s, keras.Variable))


def _changed_by_training(layer: Any) -> Iterator[keras.Variable]:
    if isinstance(layer, keras.layers.SpectralNormalization):
        yield from layer.variables  # it rewrites the kernel of the layer inside, frozen or not
    elif isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and layer.built:
        yield from (layer.moving_mean, layer.moving_variance)
