"""docs/recipes.md names everything that there is."""

from pathlib import Path

from trl_plus.methods import METHODS
from trl_plus.recipes.keys import option_keys
from trl_plus.recipes.package_data import recipe_names
from trl_plus.recipes.unknown_keys import REFUSED, RENAMED, REPLACED


def test_docs_are_complete():
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    own = [key.name for key in option_keys().values() if key.group == "RunOptions"]
    for name in (*METHODS, *recipe_names(), *own, *RENAMED, *REPLACED, *REFUSED):
        assert f"| `{name}` |" in text, name
