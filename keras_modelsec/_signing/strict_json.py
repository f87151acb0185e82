"""JSON and base64 read with no room for two readings.

Owns the step from untrusted bytes to plain Python values. What two parsers could read differently
(duplicate keys, NaN, lone surrogates, base64 with stray bits) is refused.
"""

import base64
import binascii
import datetime
import json
import re
import reprlib
from collections.abc import Collection
from typing import Any, NoReturn

from keras_modelsec._core.printable import printable
from keras_modelsec.errors import SignatureError

LARGEST_INTEGER = 1 << 53  # what every JSON parser reads exactly
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_SHORT = reprlib.Repr()  # bounded in depth and length: hostile JSON may be nested a thousand deep
_SHORT.maxstring = _SHORT.maxother = 120


def parse(data: bytes, what: str) -> Any:
    """The JSON value in `data`, which must be UTF-8 and unambiguous."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) != len(items):
            refuse(what, "not repeat a key", [key for key, _ in items])
        return value

    def constant(name: str) -> NoReturn:
        refuse(what, "hold no NaN or Infinity", name)

    if b"\0" in data:  # a sparse file, which costs its maker nothing: not to be decoded
        refuse(what, "be JSON in UTF-8", "a zero byte")
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except SignatureError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise SignatureError(f"{what} must be JSON in UTF-8. Received: {_brief(error)}.") from None
    return value


def refuse(what: str, rule: str, value: Any) -> NoReturn:
    """Raises `SignatureError` with the rule and a short form of the value."""
    raise SignatureError(f"{what} must {rule}. Received: {_brief(value)}.")


def _brief(value: Any) -> str:
    text = str(value) if isinstance(value, Exception) else _SHORT.repr(value)
    return printable(text.encode("ascii", "backslashreplace").decode("ascii")[:400])


def check_object(
    value: Any, what: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    """Returns `value`, an object with all the `required` keys and none that is not named."""
    names = set(check_mapping(value, what))
    if not set(required) <= names or not names <= {*required, *optional}:
        refuse(what, f"have exactly the fields {sorted(required)}", sorted(names))
    return value


def check_string(value: Any, what: str) -> str:
    """Returns `value`, a string that can be encoded."""
    if not isinstance(value, str):
        refuse(what, "be a string", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        refuse(what, "be valid Unicode", value)
    return value


def check_equal(value: Any, what: str, expected: Any) -> None:
    """Refuses anything but `expected`, in type too (JSON's 0 is not false)."""
    if type(value) is not type(expected) or value != expected:
        refuse(what, f"be {expected!r}", value)


def check_mapping(value: Any, what: str) -> dict[str, Any]:
    """Returns `value`, an object with whatever keys."""
    if not isinstance(value, dict):
        refuse(what, "be a JSON object", value)
    return value


def check_list(value: Any, what: str) -> list[Any]:
    """Returns `value`, a list."""
    if not isinstance(value, list):
        refuse(what, "be a list", value)
    return value


def check_integer(value: Any, what: str, minimum: int = 0) -> int:
    """Returns `value`, an integer (true is none) from `minimum` to 2**53."""
    if type(value) is not int or not minimum <= value <= LARGEST_INTEGER:
        refuse(what, f"be an integer from {minimum} to 2**53", value)
    return value


def check_time(value: Any, what: str) -> datetime.datetime:
    """The UTC time that `write_time` wrote; any other way to write it is refused."""
    text = check_string(value, what)
    try:
        time = datetime.datetime.strptime(text, _TIME).replace(tzinfo=datetime.UTC)
    except ValueError:
        refuse(what, "be a time like 2026-01-31T12:00:00Z", text)
    check_equal(text, what, write_time(time))
    return time


def write_time(time: datetime.datetime) -> str:
    """A time with a zone, as it is stored: in UTC and whole seconds."""
    return time.astimezone(datetime.UTC).strftime(_TIME)


def check_single(value: Any, what: str) -> Any:
    """Returns the only item of a list of one."""
    if not isinstance(value, list) or len(value) != 1:
        refuse(what, "be a list of exactly one item", value)
    return value[0]


def check_sha256(value: Any, what: str) -> str:
    """Returns `value`, a SHA-256 digest in lower-case hexadecimal."""
    if not isinstance(value, str) or not _SHA256_HEX.fullmatch(value):
        refuse(what, "be 64 lower-case hexadecimal digits", value)
    return value


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def decode_base64(value: Any, what: str) -> bytes:
    """The bytes of a canonical standard base64 string: padded, no line breaks, no stray bits."""
    text = check_string(value, what)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        refuse(what, "be standard base64", text)
    # Its length and its last four characters show that there is one way to write it: no need to
    # have a long text in memory a second time.
    last = text[-4:]
    if len(text) != -(-len(data) // 3) * 4 or _encoded(base64.b64decode(last)) != last:
        refuse(what, "be canonical base64", text)
    return data
