"""Published recipes: each says where it is from, is valid here, and is what the table of rates and betas says."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.errors import RecipeError
from trl_plus.methods import FAMILIES, METHODS
from trl_plus.published import BETAS, RATES
from trl_plus.recipes.keys import recipe_schema
from trl_plus.recipes.package_data import find_recipe, published_names, recipe_names, recipe_path
from trl_plus.recipes.recipe import load_recipe
from trl_plus.setup.objects import build
from trl_plus.setup.plan import plan
from trl_plus.trainers.watch import unknown_beta, unknown_rate

NAMES = published_names()
BY_RECIPE = {rate.source: rate for rate in RATES if rate.source in NAMES}


def trainer_of(recipe):
    return recipe.method.trainer.removesuffix("Trainer")


def model_of(row):
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: int(row.size * 1e9))])
    if row.lora:
        model.peft_config = {"default": SimpleNamespace(peft_type="LORA")}
    return model


@pytest.fixture(scope="module")
def validator():
    import jsonschema

    return jsonschema.Draft7Validator(recipe_schema())


def test_names_are_of_one_recipe_only():
    assert len(NAMES) > 20
    assert not set(NAMES) & set(recipe_names())


@pytest.mark.parametrize("name", NAMES)
def test_header(name):
    header = recipe_path(name).read_text().split("\n\n")[0]
    assert f"trl-plus train recipes/published/{name}.yaml" in header
    assert re.search(r"^# Source: [\w.-]+/[\w.-]+, commit [0-9a-f]{40}:$", header, re.MULTILINE)
    assert re.search(r"^# [^:]*\.(yaml|sh|py|md)[.,]", header, re.MULTILINE)
    assert "# Differs: " in header


@pytest.mark.parametrize("name", NAMES)
def test_valid(name, validator):
    recipe = load_recipe(name)
    assert not list(validator.iter_errors(yaml.safe_load(recipe_path(name).read_text())))
    assert recipe["output_dir"] == f"runs/{name}"
    rows, gpus = map(int, re.search(r"# Rows per step: (\d+), on (\d+) GPU", recipe_path(name).read_text()).groups())
    assert plan(recipe).effective_batch * gpus == rows
    for way in (f"recipes/published/{name}.yaml", f"published/{name}"):
        assert load_recipe(way).values == recipe.values


@pytest.mark.parametrize("name", NAMES)
def test_no_warning(name):
    """Neither the rate nor the beta of a published recipe is called unusual."""
    recipe, row = load_recipe(name), BY_RECIPE[name]
    assert row.low <= recipe["learning_rate"] <= row.high
    assert (row.method, row.lora) == (trainer_of(recipe), recipe["use_peft"])
    args = build(recipe).args
    assert unknown_rate(row.method, args, model_of(row)) is None
    assert unknown_beta(row.method, args) is None


@pytest.mark.parametrize("name", recipe_names())
def test_starting_points_are_near_published_betas(name):
    recipe = load_recipe(name)
    assert unknown_beta(trainer_of(recipe), build(recipe).args) is None


@pytest.mark.parametrize("row", RATES, ids=lambda row: f"{row.method}-{row.model}")
def test_rows_of_the_table(row):
    assert row.low <= row.high
    assert row.kind in ("base", "SFT", "instruct", "reasoning")
    assert row.source in NAMES or re.match(r"[\w.-]+/[\w.-]+, \S+\.(md|yaml|sh)$", row.source)
    args = SimpleNamespace(learning_rate=row.high, optim="adamw_torch")
    assert unknown_rate(row.method, args, model_of(row)) is None


def test_every_method_has_a_known_beta_near_its_default():
    """A default that was copied across losses of another scale would be far from every published value."""
    known = {beta.loss for beta in BETAS}
    assert known == {*FAMILIES["DPO"].losses, *FAMILIES} - {"sft", "DPO"}  # "sft" reads no beta
    assert {rate.method for rate in RATES} == set(FAMILIES)
    for method in METHODS.values():
        recipe = load_recipe("dpo_full", [f"method={method.name}", "beta=null"])
        args = build(recipe).args
        assert (args.loss_type[0] if method.trainer == "DPOTrainer" else trainer_of(recipe)) in known
        assert unknown_beta(trainer_of(recipe), args) is None, method.name


def test_groups_of_the_list():
    out = CliRunner().invoke(app, ["recipes", "list"], env={"COLUMNS": "150"}).output
    starting, published = out.split("Published recipes")
    assert all(name in starting for name in recipe_names())
    assert all(name in published for name in NAMES)
    assert "dpo_norm" in published


def test_ways_to_name_one():
    assert find_recipe("tulu3_8b").bundled
    for wrong in ("recipes/tulu3_8b.yaml", "published/simpo_lora", "other/tulu3_8b"):
        with pytest.raises(RecipeError):
            find_recipe(wrong)


def test_the_page_lists_all():
    """docs/published.md has the figures of every published recipe and of both tables."""
    text = (Path(__file__).parents[2] / "docs" / "published.md").read_text(encoding="utf-8")
    for name in NAMES:
        recipe, source = load_recipe(name), re.search(r"# Source: (\S+), commit (\w{7})", recipe_path(name).read_text())
        ratio = f", ratio {recipe['gamma_beta_ratio']:g}" if recipe.method.name == "simpo" else ""
        figures = f"| {recipe['learning_rate']:g} | {recipe['beta']:g}{ratio} | "
        assert f"| `{name}` | `{recipe.method.name}` {figures}" in text, name
        assert f"| {source[1]} {source[2]} |" in text
    for row in RATES:
        rate = f"{row.low:g}" if row.low == row.high else f"{row.low:g} to {row.high:g}"
        assert row.source in NAMES or f"| {row.size:g}B, {row.kind} | {rate} | {row.source} |" in text, row
    for row in BETAS:
        beta = f"{row.low:g}" if row.low == row.high else f"{row.low:g} to {row.high:g}"
        assert f"| `{row.loss}` | {beta} | {row.source} |" in text, row
