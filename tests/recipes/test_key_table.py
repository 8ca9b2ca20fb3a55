"""keys.json is what the installed configurations say, and the schema accepts and refuses what the validator does."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from trl_plus.methods import METHODS
from trl_plus.recipes.keys import DECLARED, generated_with, recipe_schema
from trl_plus.recipes.options import UPSTREAM, EntryOptions, RunOptions
from trl_plus.recipes.package_data import recipe_names, recipe_path
from trl_plus.recipes.recipe import load_recipe

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "make_recipe_keys.py"


@pytest.mark.skipif(
    any(version(name) != wanted for name, wanted in generated_with().items()),
    reason="keys.json belongs to other versions of TRL and transformers",
)
def test_table_is_current():
    code = f"import json, runpy; print(json.dumps(runpy.run_path({str(SCRIPT)!r})['table']()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    stored = json.loads((ROOT / "trl_plus" / "recipes" / "keys.json").read_text())
    assert json.loads(result.stdout.splitlines()[-1]) == stored, "run python scripts/make_recipe_keys.py"


@pytest.fixture(scope="module")
def validator():
    import jsonschema

    schema = recipe_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize("name", recipe_names())
def test_schema_accepts_bundled_recipes(validator, name):
    assert not list(validator.iter_errors(yaml.safe_load(recipe_path(name).read_text())))


@pytest.mark.parametrize(
    "keys",
    [
        {"learning_rat": 1},
        {"beta": "abc"},
        {"method": "simop"},
        {"desirable_weight": 1.0},
        {"loss_type": ["ipo"]},
        {"output_dir": None},
        {"eval_fraction": 1.5},
        {"max_eval_rows": -1},
        {"lora_r": 0},
        {"num_train_epochs": 0},
    ],
)
def test_schema_refuses(validator, keys):
    recipe = {"method": "simpo", "model_name_or_path": "a", "dataset_name": "b", "output_dir": "c", "beta": 1, **keys}
    assert list(validator.iter_errors({k: v for k, v in recipe.items() if v is not None}))


@pytest.mark.parametrize(
    "values, text",
    [
        ({"eval_fraction": 1}, "`eval_fraction` must be below 1, got 1."),
        ({"eval_fraction": -0.1}, "`eval_fraction` must be at least 0, got -0.1."),
        ({"max_eval_rows": -1}, "`max_eval_rows` must be at least 0, got -1."),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` must be at least 1, got 0."),
        (
            {"eval_fraction": 0.1, "eval_dataset_name": "a"},
            "`eval_dataset_name` and `eval_fraction` exclude each other",
        ),
    ],
)
def test_python_reads_the_same_bounds(values, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        RunOptions(**values)


@pytest.mark.parametrize(
    "method, values, text",
    [
        ("SimPO", {"tokens_per_device": 0}, "`tokens_per_device` must be at least 1, got 0."),
        ("DPO", {"nonfinite": "skip", "max_nonfinite_skips": -1}, "`max_nonfinite_skips` must be at least 0, got -1."),
        ("DPO", {"margin_scale": -1.0}, "`margin_scale` must be at least 0, got -1.0."),
        ("SimPO", {"sft_weight": -0.1}, "`sft_weight` must be at least 0, got -0.1."),
        ("SimPO", {"gamma": 0.0, "gamma_beta_ratio": 0.5}, "`gamma` and `gamma_beta_ratio` exclude each other"),
        ("CPO", {"cpo_alpha": -1.0}, "`cpo_alpha` must be at least 0, got -1.0."),
        ("KTO", {"desirable_weight": -1.0}, "`desirable_weight` must be at least 0, got -1.0."),
        ("ORPO", {"odds": "word"}, "`odds` must be one of sequence, token, got 'word'."),
        ("KTO", {"overlong": "cut"}, "`overlong` must be one of truncate, drop, error, got 'cut'."),
    ],
)
def test_configurations_read_the_same_bounds(method, values, text, tmp_path):
    from trl_plus.trainers import configs

    with pytest.raises(ValueError, match=re.escape(text)):
        getattr(configs, f"{method}Config")(output_dir=str(tmp_path), use_cpu=True, bf16=False, **values)


def test_bounds_are_declared_once():
    from trl_plus.trainers import configs

    classes = [RunOptions, EntryOptions, *(getattr(configs, method.config) for method in METHODS.values())]
    own = {field.name for cls in classes for field in fields(cls) if {*field.metadata} & {*DECLARED}}
    assert {"eval_fraction", "max_eval_rows"} <= own
    assert not own & UPSTREAM.keys()


@pytest.mark.parametrize("name", recipe_names())
def test_bundled_recipe(name):
    recipe = load_recipe(name)
    header = recipe_path(name).read_text().split("\n\n")[0]
    assert f"trl-plus train recipes/{name}.yaml" in header
    assert "# GPU memory: " in header
    assert "# Numbers: " in header
    assert load_recipe(f"recipes/{name}.yaml").values == recipe.values
    assert recipe["output_dir"] == f"runs/{name}"


def test_every_method_has_a_recipe():
    covered = {load_recipe(name).method.name for name in recipe_names()}
    assert covered >= {"simpo", "orpo", "cpo", "kto", "dpo", "cdpo", "ipo", "apo_zero"}
    for method in ("simpo", "orpo", "kto", "dpo"):
        assert {f"{method}_lora", f"{method}_qlora", f"{method}_full"} <= set(recipe_names())
    assert set(METHODS) >= covered
