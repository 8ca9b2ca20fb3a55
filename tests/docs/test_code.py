"""Code in the pages: every recipe is valid, every Python block compiles, and what it takes from trl_plus is there."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import Code, blocks
from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import load_recipe


def is_recipe(code):
    """Whether a YAML block is a recipe: it has the key `method`. What others' configurations look like has not."""
    return "method" in (yaml.safe_load(code.text) or {})


# Recipes of other projects in full, and what they become
WHOLE = [
    Code(path.name, 1, "yaml", path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parent / "migrated").glob("*.yaml"))
]
RECIPES = [code for code in [*blocks("yaml"), *WHOLE] if is_recipe(code)]
OLD_RECIPES = [code for code in [*blocks("yaml"), *WHOLE] if not is_recipe(code)]
PYTHON = blocks("python")


def test_there_is_code_to_check():
    assert len(RECIPES) >= 4
    assert len(OLD_RECIPES) >= 3
    assert len(PYTHON) >= 3


@pytest.mark.parametrize("code", RECIPES, ids=lambda code: code.id)
def test_recipe_is_valid(code, tmp_path, monkeypatch):
    from trl_plus.setup.objects import build

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(code.text, encoding="utf-8")
    for table in (table for table in blocks("csv") if table.page == code.page):
        (tmp_path / yaml.safe_load(code.text)["dataset_name"]).write_text(table.text, encoding="utf-8")
    build(load_recipe(str(path)))


@pytest.mark.parametrize("code", OLD_RECIPES, ids=lambda code: code.id)
def test_every_key_of_an_old_recipe_is_explained(code, tmp_path):
    """`trl-plus train --dry-run` tells what to write instead, or why the key is not needed."""
    from trl_plus.recipes.keys import all_keys

    method = next((name for name in ("orpo", "simpo") if name in code.text), "dpo")
    path = tmp_path / "old.yaml"
    path.write_text(f"method: {method}\n{code.text}", encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(path))
    assert not [problem for problem in refused.value.problems if "unknown key" in problem]
    for problem in refused.value.problems:
        key = re.search(r"`(\w+)`", problem)[1]
        if key in all_keys():  # only in want of one that has another name now
            continue
        assert re.search(r"write `|is not a key of a recipe: \w", problem), problem


def test_migrating_shows_the_keys_that_change():
    """migrating.md shows each key of the DPO recipe that changes, with its values in the recipe in full."""
    shown = [yaml.safe_load(code.text) for code in blocks("yaml") if code.page == "migrating.md"]
    whole = {code.page: yaml.safe_load(code.text) for code in WHOLE}
    before, after = whole["dpo_before.yaml"], whole["dpo_after.yaml"]
    for keys, others in ((before, after), (after, before)):
        changed = {key: value for key, value in keys.items() if key not in others or others[key] != value}
        assert [part for part in shown if changed.items() <= part.items() <= keys.items()]


def wrong_names(text):
    """What a Python block takes from trl_plus and is not there: modules, names, arguments of their calls."""
    wrong, taken = [], {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trl_plus":
            for alias in node.names:
                try:
                    taken[alias.asname or alias.name] = getattr(importlib.import_module(node.module), alias.name)
                except (ImportError, AttributeError):
                    wrong.append(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "trl_plus" and importlib.util.find_spec(alias.name) is None:
                    wrong.append(alias.name)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in taken:
            known = inspect.signature(taken[node.func.id]).parameters
            wrong += [f"{node.func.id}({key.arg}=)" for key in node.keywords if key.arg and key.arg not in known]
    return wrong


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.id)
def test_python(code):
    compile(code.text, code.id, "exec")
    assert not wrong_names(code.text)


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("from trl_plus import SimPOTrainre", "trl_plus.SimPOTrainre"),
        ("from trl_plus.recipse import load_recipe", "trl_plus.recipse.load_recipe"),
        ("import trl_plus.recipse", "trl_plus.recipse"),
        ("from trl_plus import SimPOConfig\nSimPOConfig(gama=1.0)", "SimPOConfig(gama=)"),
        ("from trl_plus import SimPOTrainer\nSimPOTrainer(model='m', arg=None)", "SimPOTrainer(arg=)"),
    ],
)
def test_a_wrong_name_is_found(text, wrong):
    assert wrong_names(text) == [wrong]
