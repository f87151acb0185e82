"""The README: short, its code runs, its links lead somewhere, and the Chinese one says the same."""

import re
from pathlib import Path

import keras
import pytest

import keras_modelsec as ms

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
MOST_LINES = 130


def text_of(path):
    return path.read_text(encoding="utf-8")


def fences(path):
    return re.findall(r"^```.*?^```$", text_of(path), re.DOTALL | re.MULTILINE)


def prose(path):
    return re.sub(r"^```.*?^```$", "", text_of(path), flags=re.DOTALL | re.MULTILINE)


def links(path):
    found = re.findall(r"\]\(([^)]+)\)", prose(path))
    return [link for link in found if not link.startswith("README")]


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_readme_is_short_and_every_link_leads_to_a_file(path):
    assert len(text_of(path).splitlines()) <= MOST_LINES
    assert links(path)
    for link in links(path):
        assert (ROOT / link.partition("#")[0]).exists(), link


def test_chinese_readme_has_the_same_code_headings_links_and_numbers():
    assert fences(CHINESE) == fences(ENGLISH)
    assert len(fences(ENGLISH)) == 3

    def headings(path):
        return re.findall(r"^(#+) ", prose(path), re.MULTILINE)

    assert headings(CHINESE) == headings(ENGLISH)
    assert links(CHINESE) == links(ENGLISH)

    def names(path):
        return sorted(re.findall(r"`([^`]+)`", prose(path)))

    assert names(CHINESE) == names(ENGLISH)

    def rows(path):
        return [re.findall(r"\d[\d.,]*\d|\d", row)[-3:] for row in prose(path).splitlines()
                if row.startswith("| ") and re.search(r"\d \|$", row)]  # fmt: skip

    assert rows(CHINESE) == rows(ENGLISH)
    assert len(rows(ENGLISH)) == 6


def test_each_readme_leads_to_the_other():
    assert "](README.zh-CN.md)" in text_of(ENGLISH)
    assert "](README.md)" in text_of(CHINESE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored")
def test_readme_code_runs_to_its_last_line(given, run_blocks):
    import tensorflow as tf

    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Dense(32, activation="relu")(keras.layers.Flatten()(inputs))
    names = given | {
        "key": ms.watermark.generate_key(),
        "inputs": inputs,
        "outputs": keras.layers.Dense(10, activation="softmax")(hidden),
        "train": tf.data.Dataset.from_tensor_slices((given["x_train"], given["y_train"])).batch(40),
    }
    run_blocks(ENGLISH, names)
    assert isinstance(names["model"], ms.SecureModel)
    ms.verify("checkpoints/10.keras", "owner.pub")
