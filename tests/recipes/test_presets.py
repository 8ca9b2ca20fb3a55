"""A preset is for new runs: an earlier run is resumed, evaluated and repeated with the value it began with."""

import re

import pytest
import torch
from safetensors.torch import load_file

from trl_plus.recipes.recipe import RESOLVED, load_recipe, write_resolved
from trl_plus.runs.resume import check_same_run, with_presets_of_run
from trl_plus.training.run import run

TODAY, BEFORE = 5.0, 0.1  # beta of dpo_norm: the preset, and TRL's default, which early versions left in place


@pytest.fixture
def folder(write, tmp_path):
    """folder(beta) -> the folder of a run of dpo_norm whose recipe has this line for beta."""

    def _folder(line):
        recipe = load_recipe(write(method="dpo_norm"))
        path = write_resolved(recipe, tmp_path / "run")
        path.write_text(re.sub(r"^beta: .*\n", line, path.read_text(), flags=re.MULTILINE))
        return tmp_path / "run"

    return _folder


def test_a_new_run_has_the_preset(write, tmp_path):
    recipe = load_recipe(write(method="dpo_norm"))
    assert (recipe["beta"], recipe.origin("beta")) == (TODAY, "preset")
    assert load_recipe(write(method="dpo_norm"), ["beta=null"])["beta"] == TODAY
    assert "beta: 5.0  # preset" in write_resolved(recipe, tmp_path / "run").read_text()


def test_the_recipe_of_an_earlier_run(folder):
    recipe = load_recipe(str(folder("") / RESOLVED))
    assert (recipe["beta"], recipe.origin("beta")) == (BEFORE, "default")
    assert recipe["loss_type"] == ["sigmoid_norm"]  # what defines the method is no preset
    note = next(note for note in recipe.notes if "beta" in note)
    assert "0.1, the default, as when the run began" in note
    assert "is 5.0 today" in note
    again = load_recipe(str(write_resolved(recipe, folder("").parent / "again")))
    assert again["beta"] == BEFORE


def test_another_method_for_an_earlier_recipe_has_its_presets(folder):
    assert load_recipe(str(folder("") / RESOLVED), ["method=cdpo", "loss_type=null"])["label_smoothing"] == 0.1


@pytest.mark.parametrize(
    "line, beta, said",
    [
        ("", BEFORE, "beta stays 0.1, as when the run began: the preset of method dpo_norm is 5.0 today."),
        ("beta: 2.0  # preset\n", 2.0, "beta stays 2.0"),
        ("beta: 5.0  # preset\n", TODAY, None),
        ("beta: 2.0  # recipe\n", TODAY, None),  # the recipe gave it, and does no longer: a change
        ("beta: 2.0  # command line\n", TODAY, None),
    ],
)
def test_resume(write, folder, line, beta, said):
    checkpoint = str(folder(line) / "checkpoint-1")
    recipe = load_recipe(write(method="dpo_norm"))
    kept = with_presets_of_run(recipe, checkpoint)
    assert kept["beta"] == beta
    assert [note for note in kept.notes if "beta" in note] == ([] if said is None else [kept.notes[-1]])
    assert said is None or said in kept.notes[-1]
    if said is not None:
        check_same_run(kept, checkpoint, False, pytest.fail)  # nothing changed


def test_a_value_that_is_given_stays(write, folder):
    given = load_recipe(write(method="dpo_norm"), ["beta=3"])
    assert with_presets_of_run(given, str(folder("") / "checkpoint-1")) == given
    assert with_presets_of_run(given, str(folder("") / "none" / "checkpoint-1")) == given


def test_a_run_that_began_before_the_preset(recipe_of, tmp_path):
    """Interrupted after 2 of 4 steps with beta 0.1, which no line names, and resumed today: the run that was meant."""
    write = recipe_of(16, 4, method="dpo_norm", lr_scheduler_type="constant", save_steps=2, max_steps=4, seed=3)
    path, said = write(), []
    run(load_recipe(path, [f"beta={BEFORE}"]), None, said.append)
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    resolved = tmp_path / "out" / RESOLVED
    resolved.write_text(re.sub(r"^beta: .*\n", "", resolved.read_text(), flags=re.MULTILINE))
    run(load_recipe(path), str(tmp_path / "out" / "checkpoint-2"), said.append)
    assert any("beta stays 0.1" in str(text) for text in said)
    resumed = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert load_recipe(str(resolved))["beta"] == BEFORE
