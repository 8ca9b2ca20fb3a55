"""The documents: every recipe in them is valid, every Python block compiles, every link and named function exists."""

import ast
import re
import textwrap
from pathlib import Path

import pytest
import yaml

from trl_plus.recipes import METHODS, RecipeError, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks(language):
    """(id, text) of each fenced block of a language in all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text[: match.start()].count("\n") + 1
            if match[2] == language:
                found.append(pytest.param(textwrap.dedent(match[3]), id=f"{page.name}:{line}"))
    return found


def is_recipe(text):
    """Whether a YAML block is a recipe: it has the key `method`. What others' configurations look like has not."""
    return "method" in (yaml.safe_load(text) or {})


RECIPES = [block for block in blocks("yaml") if is_recipe(block.values[0])]
OLD_RECIPES = [block for block in blocks("yaml") if not is_recipe(block.values[0])]


@pytest.mark.parametrize("text", RECIPES)
def test_recipe_is_valid(text, tmp_path):
    from trl_plus.recipes.objects import build

    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    build(load_recipe(str(path)))


@pytest.mark.parametrize("text", OLD_RECIPES)
def test_every_key_of_an_old_recipe_is_explained(text, tmp_path):
    """`trl-plus train --dry-run` and the tables of migrating.md both say what to write instead."""
    from trl_plus.recipes.keys import all_keys

    method = next((name for name in ("orpo", "simpo") if name in text), "dpo")
    path = tmp_path / "old.yaml"
    path.write_text(f"method: {method}\n{text}", encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(path))
    assert not [problem for problem in refused.value.problems if "unknown key" in problem]
    migrating = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    for problem in refused.value.problems:
        key = re.search(r"`(\w+)`", problem)[1]
        if key in all_keys():  # only in want of one that has another name now
            continue
        assert re.search(rf"^\|.*\b{key}\b", migrating, re.MULTILINE), f"no table row of migrating.md names {key}"


def test_there_are_recipes_to_check():
    assert len(RECIPES) >= 4
    assert len(OLD_RECIPES) >= 3


@pytest.mark.parametrize("text", blocks("python"))
def test_python_compiles(text):
    compile(text, "block", "exec")


@pytest.mark.parametrize("text", blocks("python"))
def test_imported_names_exist(text):
    import trl_plus

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "trl_plus":
            assert {alias.name for alias in node.names} <= set(trl_plus.__all__)


def anchors(page):
    """GitHub's anchors of a page's headings."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links(page):
    prose = re.sub(r"`[^`\n]*`", "`", FENCE.sub("", page.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(<?([^)\s>]+)>?\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page.name} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_functions_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for path, name in re.findall(r"`((?:trl_plus|tests|scripts|benchmarks)/[\w/.]+\.py)(?:: (\w+))?`", text):
        assert (ROOT / path).is_file(), f"{page.name} names {path}"
        if name:
            nodes = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
            defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert name in defined, f"{page.name} names {path}: {name}"


def test_objectives_are_complete():
    """Every method, every key of ours and every loss has its place in docs/objectives.md."""
    from trl_plus import configs, objectives

    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    for method in METHODS:
        assert f"`{method}`" in text, method
    for config in ("DPOConfig", "SimPOConfig", "ORPOConfig", "CPOConfig"):
        own = [name for name, kind in getattr(configs, config).__annotations__.items() if "ClassVar" not in str(kind)]
        for name in own:
            assert name == "overlong" or f"`{name}" in text, name
    losses = set(objectives.__all__) - {"Completions", "log1mexp", "log_odds", "log_odds_ratio", "reference_point"}
    for name in losses:
        assert f"`{name}`" in text or f": {name}`" in text, name


def test_the_table_of_preflight_is_that_of_the_checks():
    """`python scripts/preflight_codes.py` prints it."""
    import runpy

    wanted = runpy.run_path(str(ROOT / "scripts" / "preflight_codes.py"))["lines"]()
    page = (ROOT / "docs" / "preflight.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if re.match(r"\| D\d+ \|", line)] == wanted
