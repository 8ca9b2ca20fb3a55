"""docs/recipes.md names everything that there is."""

import re
from pathlib import Path

from trl_plus.methods import METHODS
from trl_plus.recipes.keys import option_keys
from trl_plus.recipes.package_data import recipe_names
from trl_plus.recipes.unknown_keys import REFUSED, RENAMED, REPLACED

TEXT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def rows(heading):
    """(names in the first cell, second cell) of each table row of a section; a row may name several things."""
    section = re.split(r"\n## ", TEXT.partition(f"\n## {heading}\n")[2])[0]
    lines = re.findall(r"^\| (`.*?) \| (.*?) \|", section, re.MULTILINE)
    return [(re.findall(r"`(\w+)`", first), second) for first, second in lines]


def named(heading):
    return sorted(name for names, _ in rows(heading) for name in names)


def test_docs_are_complete():
    own = [key.name for key in option_keys().values() if key.group == "RunOptions"]
    assert named("Methods") == sorted(METHODS)
    assert named("Keys that are ours") == sorted(own)
    assert named("Bundled recipes") == sorted(recipe_names())
    assert named("Keys of older recipes") == sorted({*RENAMED, *REPLACED, *REFUSED})


def test_renamed_keys_stand_beside_their_new_names():
    today = {name: second for names, second in rows("Keys of older recipes") for name in names}
    assert {name: today[name] for name in RENAMED} == {name: f"`{new}`" for name, new in RENAMED.items()}
