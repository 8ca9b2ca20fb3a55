"""docs/data.md: every converter has a section, and each example becomes the rows that the page shows."""

import json
import re
from pathlib import Path

import pytest

from trl_plus.data.converters import CONVERTERS, convert, shape_of
from trl_plus.recipes.keys import dataset_keys

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def examples():
    for name, text in SECTIONS.items():
        fenced = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
        blocks = [[json.loads(line) for line in block.splitlines()] for block in fenced]
        for number, (before, after) in enumerate(zip(blocks[::2], blocks[1::2], strict=True)):
            yield pytest.param(name, before, after, id=f"{name}-{number}")


def test_every_converter_has_a_section():
    assert set(SECTIONS) == set(CONVERTERS)
    of_several_rows = {"trees", "groups"}
    assert {example.id.rpartition("-")[0] for example in examples()} == set(CONVERTERS) - of_several_rows


def test_every_key_of_an_entry_is_described():
    table = PAGE[PAGE.index("| key of an entry") : PAGE.index("Without `fraction`")]
    assert all(f"`{name}`" in table for name in dataset_keys())


@pytest.mark.parametrize("name, before, after", list(examples()))
def test_example(name, before, after):
    (row,) = before
    assert convert(shape_of(name, list(row)), row, "chosen" in after[0]) == after


def test_lines_of_public_datasets_are_those_of_their_cases():
    """docs/datasets.md names each case of datasets.json once, beside the keys that the case is tested with."""
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    written = {}
    for line, names in re.findall(r"^\| (none|`.*?`) \| (.*) \|$", page, re.MULTILINE):
        keys = {key for key in re.findall(r"`(.*?)`", line) if not key.startswith(_OF_THE_HUB)}
        for name in re.findall(r"`([\w.-]+/[\w.-]+)`", names):
            assert written.setdefault(name, keys) == keys
    cases = json.loads((Path(__file__).parent / "cases" / "datasets.json").read_text(encoding="utf-8"))
    assert written == {case["what"]: _keys(case.get("recipe", {})) for case in cases}


_OF_THE_HUB = ("dataset_config", "dataset_train_split")  # cases are rows of a local file


def _keys(recipe):
    """The keys of a recipe as the page has them; every recipe has a method."""
    return {f"{key}: {value}".replace("'", "") for key, value in recipe.items() if key != "method"}
