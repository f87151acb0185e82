"""Every code block of the documentation's pages runs, from top to bottom of its page."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_GENERATED = (DOCS / "_build", DOCS / "reference" / "api")
_FENCE = re.compile(r"^ *```(\S*)", re.MULTILINE)
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if not any(path.is_relative_to(at) for at in _GENERATED)
)
RUN = [p for p in PAGES if re.search(r"^```(python|sh)$", p.read_text(encoding="utf-8"), re.M)]
SLOW = {
    "tutorials/private-mnist",
    "explanation/accounting",
    "how-to/attack",
    "how-to/harden",
    "how-to/watch",
    "how-to/train-privately",
    "how-to/mark",
    "how-to/sign",
    "how-to/trust",
}
LONG = {"tutorials/first-secured-fit"}  # what the README's code does in one `fit`, it does too
NEED_CRYPTOGRAPHY_50 = {"how-to/encrypt"}
_KERAS_NOTES = ("ignore:Skipping variable loading for optimizer",)


def name(path):
    return path.relative_to(DOCS).with_suffix("").as_posix()


def parameter(path):
    marks = [pytest.mark.slow] if name(path) in SLOW else []
    if name(path) in LONG:
        marks.append(pytest.mark.long)
    if name(path) in NEED_CRYPTOGRAPHY_50:
        marks.append(pytest.mark.needs_cryptography(50))
    return pytest.param(path, marks=marks, id=name(path))


@pytest.mark.filterwarnings(*_KERAS_NOTES)
@pytest.mark.filterwarnings("ignore::keras_modelsec.errors.WatermarkWarning")
@pytest.mark.filterwarnings("ignore:The gradient was zero:UserWarning")
@pytest.mark.parametrize("path", [parameter(path) for path in RUN])
def test_blocks_of_the_page_run(path, given, run_blocks, mnist_shaped):
    run_blocks(path, given)


def test_pages_that_are_named_here_are_there():
    assert {name(path) for path in RUN} >= SLOW | LONG | NEED_CRYPTOGRAPHY_50
    assert sum(name(path).startswith("how-to/") for path in RUN) >= 15


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_block_is_code_that_runs_output_or_a_directive(path):
    languages = _FENCE.findall(path.read_text(encoding="utf-8"))[::2]
    of_decisions = {""} if "adr" in path.parts else set()
    for language in languages:
        known = {"python", "sh", "text", *of_decisions}
        assert language in known or language.startswith("{"), language
