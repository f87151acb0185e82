"""Argument checks with one voice: the rule, the value received, and the remedy.

Owns nothing but the wording. Each function returns the checked value, so that a constructor can
write `self.steps = check_integer("steps", steps, minimum=1)`.
"""

import math
import numbers
import operator
import re
from collections.abc import Iterable
from typing import Any

# Bytes, or 32 hexadecimal digits and more: what a key of 128 bits and more looks like.
_KEY_TEXT = re.compile(r"\s*(?:0[xX])?(?:[0-9a-fA-F]\s*){32,}")
_KEY_IN_REPR = re.compile(r"""(?<![\w'"])b['"]|['"](?:0[xX])?[0-9a-fA-F]{32,}['"]""")


def looks_like_key(value: Any) -> bool:
    """Whether a value, or one inside it, may be a secret key that was passed in a wrong place."""
    if isinstance(value, str):
        return _KEY_TEXT.fullmatch(value) is not None
    return _KEY_IN_REPR.search(repr(value)) is not None


def shown(value: Any) -> str:
    """The `repr` of a value for a message; only its type if it looks like a key."""
    if looks_like_key(value):
        return f"<{type(value).__name__}, not shown: it may be a key>"
    return repr(value)


def _refuse(name: str, rule: str, value: Any, remedy: str | None, error: type[Exception]) -> None:
    message = f"`{name}` must be {rule}. Received: {name}={shown(value)}."
    raise error(f"{message} {remedy}" if remedy else message)


def check_integer(
    name: str,
    value: Any,
    *,
    minimum: int | None = None,
    optional: bool = False,
    remedy: str | None = None,
) -> Any:
    """Returns `value` as an `int` >= `minimum`; booleans and fractions are refused."""
    if optional and value is None:
        return None
    rule = "an integer" if minimum is None else f"an integer >= {minimum}"
    if optional:
        rule += " or None"
    if isinstance(value, bool):
        _refuse(name, rule, value, remedy, TypeError)
    try:
        number = operator.index(value)
    except TypeError:
        _refuse(name, rule, value, remedy, TypeError)
    if minimum is not None and number < minimum:
        _refuse(name, rule, value, remedy, ValueError)
    return number


def _range_rule(
    minimum: float | None, maximum: float | None, above: float | None, below: float | None
) -> str:
    limits = [
        f"{symbol} {limit:g}"
        for symbol, limit in ((">=", minimum), (">", above), ("<=", maximum), ("<", below))
        if limit is not None
    ]
    return " ".join(["a finite number", " and ".join(limits)]).strip()


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    optional: bool = False,
    remedy: str | None = None,
) -> Any:
    """Returns `value` as a finite `float` inside the limits; `above` and `below` are exclusive."""
    if optional and value is None:
        return None
    rule = _range_rule(minimum, maximum, above, below) + (" or None" if optional else "")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        _refuse(name, rule, value, remedy, TypeError)
    number = float(value)
    inside = (
        math.isfinite(number)
        and (minimum is None or number >= minimum)
        and (maximum is None or number <= maximum)
        and (above is None or number > above)
        and (below is None or number < below)
    )
    if not inside:
        _refuse(name, rule, value, remedy, ValueError)
    return number


def check_choice(name: str, value: Any, choices: Iterable[Any], remedy: str | None = None) -> Any:
    """Returns `value`, which must be one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        rule = f"one of {', '.join(repr(choice) for choice in choices)}"
        _refuse(name, rule, value, remedy, ValueError)
    return value


def check_boolean(name: str, value: Any) -> bool:
    """Returns `value`, which must be True or False and not merely truthy."""
    if not isinstance(value, bool):
        _refuse(name, "True or False", value, None, TypeError)
    return value


def check_identifier(name: str, value: Any, remedy: str | None = None) -> str:
    """Returns `value`, which must be usable inside a log key, a file name and a format string."""
    if not isinstance(value, str) or not value.isidentifier():
        _refuse(name, "a Python identifier", value, remedy, ValueError)
    return value
