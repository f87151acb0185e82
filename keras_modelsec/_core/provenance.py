"""What is known of how a model came to be, noted by those who know and read by who signs it.

Owns a notebook per model. The domains do not know one another: a privacy accountant notes epsilon
here, and the callback that signs a checkpoint writes down whatever it finds.
"""

import copy
import json
import weakref
from collections.abc import Mapping
from typing import Any

_NOTES: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()


def note(model: Any, section: str, facts: Mapping[str, Any]) -> None:
    """Notes `facts` about a model, in place of what the section held before.

    Args:
        model: The Keras model; the notes live as long as it does.
        section: "privacy", "robustness", "watermark" and so on.
        facts: What JSON can hold. Never a secret: it will be published with the model.

    Raises:
        TypeError: If JSON cannot hold it.
    """
    _NOTES.setdefault(model, {})[section] = json.loads(json.dumps(dict(facts)))


def notes(model: Any) -> dict[str, Any]:
    """All that was noted about a model, by section."""
    return copy.deepcopy(_NOTES.get(model, {}))
