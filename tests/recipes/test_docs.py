"""docs/recipes.md names everything that there is."""

import re
from pathlib import Path

from trl_plus.methods import METHODS
from trl_plus.recipes.keys import option_keys
from trl_plus.recipes.package_data import recipe_names

TEXT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def named(heading):
    """Names in the first cells of the table rows of a section."""
    section = re.split(r"\n## ", TEXT.partition(f"\n## {heading}\n")[2])[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell))


def test_docs_are_complete():
    own = [key.name for key in option_keys().values() if key.group == "RunOptions"]
    assert named("Methods") == sorted(METHODS)
    assert named("Keys that are ours") == sorted(own)
    assert named("Bundled recipes") == sorted(recipe_names())
