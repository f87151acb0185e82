"""What is known of how a model came to be, noted by those who know and read by who signs it.

Owns a notebook per model. The domains do not know one another: a privacy accountant notes here how
epsilon is to be asked for, and the callback that signs a checkpoint writes down what it finds.
"""

import json
import weakref
from collections.abc import Callable, Mapping
from typing import Any

_Facts = Callable[[], Mapping[str, Any]]
# Weak on both sides: a callback refers to its model and would keep it alive from here.
_NOTES: "weakref.WeakKeyDictionary[Any, dict[str, weakref.WeakMethod[_Facts]]]" = (
    weakref.WeakKeyDictionary()
)


def note(model: Any, section: str, facts: _Facts) -> None:
    """Notes how to learn something about a model, in place of what the section held before.

    Args:
        model: The Keras model.
        section: "privacy", "robustness", "watermark" and so on.
        facts: A method that returns what is true at the time it is asked, or nothing; what JSON
            cannot hold is written as text. Never a secret: it will be published with the model.
            The note lives as long as the method's object, a callback of the `fit` in hand, does.
    """
    _NOTES.setdefault(model, {})[section] = weakref.WeakMethod(facts)


def notes(model: Any) -> dict[str, Any]:
    """All that is known about a model now, by section; sections that know nothing are left out."""
    asked = {section: reference() for section, reference in _NOTES.get(model, {}).items()}
    known = {section: dict(facts()) for section, facts in asked.items() if facts is not None}
    told = {section: facts for section, facts in known.items() if facts}
    result: dict[str, Any] = json.loads(json.dumps(told, default=str))
    return result
