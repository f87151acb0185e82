"""Several attacks in a row, each on what the ones before left standing."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_modelsec._core.serialization import register
from keras_modelsec.robustness.attacks import inputs
from keras_modelsec.robustness.attacks.attack import Attack, AttackState
from keras_modelsec.robustness.attacks.attack_result import AttackResult
from keras_modelsec.robustness.attacks.target import Found, Target


@register
class AttackSequence(Attack):
    """The worst case over several attacks: what any of them fools is fooled.

    Each attack is run on the examples that none before it fooled, so cheap ones come first. What is
    left at the end withstood all of them.

    Args:
        attacks: Attacks inside one threat, in the order to try them; none of them targeted.
        name: Identifier for log keys. Default "attack_sequence_linf" or "attack_sequence_l2".

    Raises:
        TypeError: If `attacks` holds anything but attacks.
        ValueError: If it holds none, or they differ in their threat, or one is targeted.

    Example:
    ```python
    worst = ms.attacks.AttackSequence(
        [ms.attacks.PGD(0.1, steps=40), ms.attacks.Square(0.1, queries=1000)]
    )
    result = worst.run(model, x_test, y_test)
    ```
    """

    needs_epsilon = False

    def __init__(self, attacks: Any, *, name: str | None = None):
        self.attacks = _check_attacks(attacks)
        super().__init__(threat=self.attacks[0].threat, name=name)
        self.follows_gradient = any(attack.follows_gradient for attack in self.attacks)

    @property
    def epsilon(self) -> float | None:
        """The radius of the ball, of all attacks."""
        return self._threat.epsilon

    @epsilon.setter
    def epsilon(self, value: float | None) -> None:
        for attack in self.attacks:
            attack.epsilon = value
        self._threat = self.attacks[0].threat

    def run(self, model: keras.Model, x: Any, y: Any, *, batch_size: int = 256) -> AttackResult:
        """Runs one attack after the other; see `Attack.run`.

        `still` and `masked` of the result say that no attack that was tried on an example had
        anything to follow; `queries` is the sum of all.
        """
        x, y = inputs.as_arrays("x", x), inputs.as_arrays("y", y)
        worst = self.attacks[0].run(model, x, y, batch_size=batch_size)
        for attack in self.attacks[1:]:
            left = np.flatnonzero(~worst.fooled)
            if not len(left):
                break
            result = attack.run(model, _some(x, left), _some(y, left), batch_size=batch_size)
            worst = _merged(worst, result, left)
        return dataclasses.replace(worst, name=self.name)

    def find(self, target: Target, state: AttackState) -> Found:
        """Not a thing of one batch: see `run`.

        Raises:
            TypeError: Always.
        """
        raise TypeError("An AttackSequence is run on arrays. Call its `run`.")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        attacks = [keras.saving.serialize_keras_object(attack) for attack in self.attacks]
        return {"attacks": attacks, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AttackSequence":
        """Builds it from what `get_config` gave."""
        attacks = [keras.saving.deserialize_keras_object(each) for each in config["attacks"]]
        return cls(**{**config, "attacks": attacks})


def _some(arrays: Any, places: np.ndarray) -> Any:
    return keras.tree.map_structure(lambda leaf: leaf[places], arrays)


def _merged(worst: AttackResult, later: AttackResult, left: np.ndarray) -> AttackResult:
    """The result so far, with what a later attack found for the examples that were left."""
    changed = {
        name: getattr(worst, name).copy() for name in ("fooled", "distance", "queries", "still")
    }
    for name in ("fooled", "distance"):
        changed[name][left] = getattr(later, name)
    changed["queries"][left] += later.queries
    changed["still"][left] &= later.still

    def put(whole: np.ndarray, part: np.ndarray) -> np.ndarray:
        whole = whole.copy()
        whole[left] = part
        return whole

    return dataclasses.replace(
        worst,
        x=keras.tree.map_structure(put, worst.x, later.x),
        masked=worst.masked and later.masked,
        followed=worst.followed or later.followed,
        **changed,
    )


def _check_attacks(attacks: Any) -> list[Attack]:
    if not isinstance(attacks, (list, tuple)) or not all(isinstance(a, Attack) for a in attacks):
        raise TypeError(
            "`attacks` must be a list of attacks from keras_modelsec.attacks. Received: "
            f"attacks={attacks!r}."
        )
    if not attacks:
        raise ValueError("`attacks` must hold at least one attack. Received: none.")
    for attack in attacks:
        if attack.threat != attacks[0].threat:
            raise ValueError(
                "`attacks` must share one threat, or there is no ball that the worst case is of. "
                f"Received: {attacks[0].threat!r} and {attack.threat!r}."
            )
        if getattr(attack, "targeted", False):
            raise ValueError(
                f"`attacks` must be untargeted. Received: {attack.name!r} with targeted=True."
            )
    return list(attacks)
