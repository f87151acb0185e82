import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_modelsec._core.printable import printable

HOSTILE = ["\x1b[2J", "\x9b31m", "\n", "\r", "\t", "\x00", "\x7f", "\u2028", "\u2029", "\u202e"]
HOSTILE += ["\u2066", "\u200f", "\u061c", "\u200b", "\ufeff", "\udc80", "\ud800", "\U000e0041"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_steers_a_terminal_is_written_as_its_escape(text):
    shown = printable(f"a{text}b")
    assert shown.startswith("a\\")
    assert shown.endswith("b")
    assert text[0] not in shown


@given(st.text(st.characters(), max_size=40))
def test_result_is_one_line_of_printable_unicode(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn") for char in shown)
    assert printable(shown) == shown
    shown.encode("utf-8")


def test_letters_stay_and_line_feeds_only_where_they_are_kept():
    assert printable("Zoë 模型 ✓") == "Zoë 模型 ✓"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert printable(7) == "7"
