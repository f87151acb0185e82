"""Where a secret comes from, without its ever being stored, shown or put on a command line."""

import os
from collections.abc import Callable
from typing import TypeAlias

Password: TypeAlias = str | bytes | Callable[[], str | bytes] | None


class EnvironmentVariable:
    """Reads a secret from an environment variable when it is needed, not before.

    Args:
        name: The variable's name; the name is no secret and may be shown.

    Example:
    ```python
    ms.sign("model.keras", "owner.pem", password=ms.trust.EnvironmentVariable("OWNER_PASSWORD"))
    ```
    """

    def __init__(self, name: str):
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise ValueError(
                "`name` must be the name of an environment variable. Received: "
                f"{type(name).__name__}. Pass the name, not the secret itself."
            )
        self.name = name

    def __call__(self) -> str:
        """The secret, read now."""
        value = os.environ.get(self.name)
        if not value:
            raise ValueError(
                f"The environment variable {self.name} must hold a secret. Received: "
                f"{'an empty value' if value == '' else 'no such variable'}. Export it first."
            )
        return value

    def __repr__(self) -> str:
        return f"EnvironmentVariable({self.name!r})"


def resolve_password(password: Password) -> bytes | None:
    """The password as bytes, or None if there is none.

    Args:
        password: Text (encoded as UTF-8), bytes, a callable that returns either, or None.

    Raises:
        TypeError: If it is anything else.
        ValueError: If it is empty.
    """
    value = password() if callable(password) else password
    if value is None and password is None:
        return None
    if isinstance(value, str):
        value = value.encode("utf-8")
    if not isinstance(value, bytes):
        raise TypeError(
            "`password` must be str, bytes, a callable that returns one of them, or None. "
            f"Received: {type(value).__name__}."
        )
    if not value:
        raise ValueError("`password` must not be empty. Received: ''. Pass None for no password.")
    return value
