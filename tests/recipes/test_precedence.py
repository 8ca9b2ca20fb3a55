"""Command line over recipe over preset over default; origins; the resolved recipe gives the same recipe again."""

import pytest

from trl_plus.errors import RecipeError
from trl_plus.methods import METHODS
from trl_plus.recipes.keys import keys_of
from trl_plus.recipes.recipe import load_recipe, write_resolved


def test_precedence_and_origins(write):
    path = write(method="cdpo", beta=0.3, learning_rate=1e-6)
    recipe = load_recipe(path, ["--beta", "0.5"])
    assert (recipe["beta"], recipe.origin("beta")) == (0.5, "command line")
    assert (recipe["learning_rate"], recipe.origin("learning_rate")) == (1e-6, "recipe")
    assert (recipe["label_smoothing"], recipe.origin("label_smoothing")) == (0.1, "preset")
    assert (recipe["loss_type"], recipe.origin("loss_type")) == (["sigmoid"], "preset")
    assert (recipe["max_length"], recipe.origin("max_length")) == (1024, "default")
    assert load_recipe(path, ["label_smoothing=0.2"])["label_smoothing"] == 0.2


def test_three_spellings(write):
    path = write()
    spellings = [
        ["--learning-rate", "5e-7", "--bf16", "--loss-type", "[hinge]"],
        ["--learning_rate=5e-7", "--bf16=true", "--loss_type=hinge"],
        ["learning_rate=5.0e-7", "bf16=yes", "loss-type=[hinge]"],
    ]
    recipes = [load_recipe(path, words) for words in spellings]
    assert recipes[0] == recipes[1] == recipes[2]
    assert recipes[0]["learning_rate"] == 5e-7
    assert recipes[0]["loss_type"] == ["hinge"]


def test_values_are_yaml(write):
    recipe = load_recipe(
        write(),
        ["gamma=0", "report_to=[wandb,trackio]", "--max_steps", "-1", "eval_strategy=no", "run_name=a: b: c", "--bf16",
         "false", "--use_cpu", "lr_scheduler_kwargs={num_cycles: 2}", "seed=1", "seed=2"],
    )  # fmt: skip
    assert recipe["gamma"] == 0
    assert recipe.origin("gamma") == "command line"
    assert recipe["report_to"] == ["wandb", "trackio"]
    assert recipe["max_steps"] == -1
    assert recipe["eval_strategy"] == "no"
    assert recipe["run_name"] == "a: b: c"
    assert recipe["bf16"] is False
    assert recipe["use_cpu"] is True
    assert recipe["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert recipe["seed"] == 2


def test_numbers_without_a_dot(write):
    base = "method: simpo\nmodel_name_or_path: a/b\ndataset_name: c/d\noutput_dir: out\n"
    recipe = load_recipe(write(base + "learning_rate: 1e-6\nweight_decay: 1E+2\nmax_grad_norm: 1\neval_strategy: no"))
    assert recipe["learning_rate"] == 1e-6
    assert recipe["weight_decay"] == 100.0
    assert recipe["eval_strategy"] == "no"


def test_the_command_line_makes_keys_inert(write):
    path = write(use_peft=True, lora_r=8, gamma_beta_ratio=0.5, eval_strategy="steps", eval_steps=5)
    recipe = load_recipe(path, ["use_peft=false", "gamma=0", "eval_strategy=no"])
    assert not {"lora_r", "gamma_beta_ratio", "eval_steps"} & set(recipe.values)
    assert len(recipe.notes) == 3
    with pytest.raises(RecipeError, match="lora_r"):
        load_recipe(write(), ["lora_r=8"])


def test_null_takes_a_key_away(write):
    recipe = load_recipe(write(gamma_beta_ratio=0.5, beta=3.0), ["method=orpo", "gamma_beta_ratio=null", "beta=null"])
    assert not {"gamma_beta_ratio", "beta"} & set(recipe.values)
    assert recipe["beta"] == 0.1


@pytest.mark.parametrize("method", METHODS)
def test_resolved_recipe_is_the_recipe(write, tmp_path, method):
    recipe = load_recipe(write(method=method, learning_rate=1e-6), ["--bf16=false", "run_name='no'", "report_to=x"])
    again = load_recipe(str(write_resolved(recipe, tmp_path / "runs")))
    assert again.method == recipe.method
    assert again.values == recipe.values
    assert load_recipe(str(write_resolved(again, tmp_path / "more"))).values == recipe.values


def test_presets_are_keys_of_their_method():
    for method in METHODS.values():
        keys = keys_of(method)
        for name, value in {**method.fixed, **method.preset}.items():
            choices = keys[name].choices
            assert choices is None or set(value if isinstance(value, list) else [value]) <= set(choices)
