"""The reference leaves nothing out: public names, errors, log keys, commands."""

import importlib
import inspect
import re
from pathlib import Path

import keras
import pytest

import keras_modelsec as ms

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def public_names():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_ext"))
        yield importlib.import_module("public_names")


@pytest.fixture(scope="module")
def generated(public_names, tmp_path_factory):
    """The pages that are made from the package, by name."""
    folder = tmp_path_factory.mktemp("generated")
    public_names.write(folder)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}


def offered():
    """Every public name, found without the code under test."""
    for name in set(ms.__all__) - {"__version__"}:
        value = getattr(ms, name)
        if inspect.ismodule(value):
            yield from (
                (f"keras_modelsec.{name}.{part}", getattr(value, part)) for part in value.__all__
            )
        else:
            yield f"keras_modelsec.{name}", value


def test_every_public_object_has_one_heading_and_every_name_is_told(generated):
    text = "\n".join(generated.values())
    headings = re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE)
    names = dict(offered())
    assert len(names) > 100
    assert set(headings) <= names.keys()
    assert len({id(value) for value in names.values()}) == len(headings)
    assert {id(names[heading]) for heading in headings} == {id(v) for v in names.values()}
    for name in names.keys() - set(headings):
        assert f"`{name}`" in text or f"`{name.rpartition('.')[2]}`" in text, name


def test_a_name_that_is_added_has_its_heading(public_names, monkeypatch, tmp_path):
    def brand_new():
        """Does nothing yet."""

    monkeypatch.setattr(ms, "__all__", [*ms.__all__, "brand_new"])
    monkeypatch.setattr(ms, "brand_new", brand_new, raising=False)
    public_names.write(tmp_path)
    assert (
        ".. autofunction:: keras_modelsec.brand_new" in (tmp_path / "keras_modelsec.md").read_text()
    )


def test_generated_pages_name_no_place_inside_the_package(generated):
    for name, text in generated.items():
        assert not re.search(
            r"keras_modelsec\._|keras_modelsec\.(integrity|robustness)\.[a-z_]+\.", text
        ), name


def test_every_error_and_warning_is_on_its_page_with_its_base():
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    errors = {v for _, v in offered() if inspect.isclass(v) and issubclass(v, Exception)}
    assert told == {error.__name__: error.__base__.__name__ for error in errors}


def test_every_command_is_on_the_page_with_its_help(public_names, generated):
    commands = public_names.commands()
    assert ("trust", "rotate") in commands
    assert ("verify",) in commands
    for command in commands:
        assert f"# `modelsec {' '.join(command)}`" in generated["commands.md"]
        assert f"usage: modelsec {' '.join(command)} " in generated["commands.md"]
    told = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    for command in commands:
        assert f"`{command[-1]}`" in told or f"modelsec {' '.join(command)}" in told, command


@pytest.mark.slow
def test_log_keys_are_those_on_the_page(given):
    """One epoch with everything that writes into `logs`."""
    page = (DOCS / "reference" / "log-keys.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `([a-z_0-9<>]+)` \|", page, re.MULTILINE))
    ms.sign("model.keras", "owner.pem")
    base = ms.guard_activations(given["model"], given["x_train"])
    model = ms.SecureModel.from_model(base)
    key = ms.watermark.generate_key()
    ms.attach_watermark(model, key)
    model.compile(ms.DPOptimizer("sgd", 1.0, 4.0), "sparse_categorical_crossentropy")
    attack = ms.attacks.FGSM(epsilon=0.1)
    history = model.fit(
        given["x_train"],
        given["y_train"],
        batch_size=200,
        verbose=0,
        callbacks=[
            ms.RobustnessMonitor(given["x_val"], given["y_val"], [attack]),
            ms.PrivacyBudget(delta=1e-3),
            ms.WatermarkMonitor(key),
            ms.IntegrityGuard(),
            keras.callbacks.History(),
        ],
    )
    found = set(history.history) - {"loss"}
    assert {name.replace(attack.name, "<attack>") for name in found} == told


@pytest.mark.parametrize(
    "word", ["epsilon", "privacy_epsilon", "key", "statement", "leaf", "unit", "release", "hint"]
)
def test_glossary_has_the_words_that_are_easily_confused(word):
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\S[^\n]*)\n    ", glossary, re.MULTILINE)
    assert word in terms
    assert terms == sorted(terms, key=str.lower)
