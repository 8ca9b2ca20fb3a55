"""From the words of a command line to runs, and the rounds of successive halving. Nothing here trains."""

import itertools

import pytest

from trl_plus.errors import RecipeError
from trl_plus.sweep.grid import read_plan, read_values
from trl_plus.sweep.halving import rounds

RECIPE = (
    "method: simpo\nmodel_name_or_path: org/model\ndataset_name: org/data\noutput_dir: runs/one\neval_fraction: 0.1\n"
)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.mark.parametrize(
    "text, values",
    [
        ("1e-3,2e-3", [0.001, 0.002]),
        ("[a,b]", [["a", "b"]]),
        ("[a,b],all-linear", [["a", "b"], "all-linear"]),
        ("{a: 1, b: 2}", [{"a": 1, "b": 2}]),
        ('"a,b"', ["a,b"]),
        ("true,false", [True, False]),
        ("null,5", [None, 5]),
        ("2", [2]),
        ("{% a, b %}", ["{% a, b %}"]),
    ],
)
def test_values_are_yaml(text, values):
    assert read_values(text).all == values


def test_every_combination_with_every_seed(recipe):
    plan = read_plan(recipe, ["beta=2,2.5", "--gamma-beta-ratio", "0.3,0.5", "max_steps=3"], 2, None)
    assert (len(plan.variants), plan.seeds, plan.keys) == (4, [42, 43], ["beta", "gamma_beta_ratio"])
    assert [run.seed for run in plan.runs] == [42] * 4 + [43] * 4  # a sweep that is stopped has whole seeds
    first = plan.runs[0]
    assert str(plan.folder) == "runs/one-sweep"
    assert first.recipe["output_dir"] == "runs/one-sweep/beta-2_gamma_beta_ratio-0.3_seed-42"
    assert (first.recipe["beta"], first.recipe["gamma_beta_ratio"], first.recipe["max_steps"]) == (2, 0.3, 3)
    assert len({run.name for run in plan.runs}) == 8


def test_all_seeds_hold_out_the_same_rows(recipe):
    assert {run.recipe["split_seed"] for run in read_plan(recipe, ["beta=1,2"], 3, None).runs} == {42}
    assert {run.recipe["split_seed"] for run in read_plan(recipe, ["beta=1,2", "split_seed=7"], 3, None).runs} == {7}


def test_seeds_can_be_named(recipe):
    assert read_plan(recipe, ["beta=1,2", "seed=5,9"], None, None).seeds == [5, 9]


def test_a_reference_is_scored_once(recipe):
    plans = {method: read_plan(recipe, [f"method={method}", "beta=1,2"], 2, None) for method in ("dpo", "simpo")}
    assert plans["dpo"].runs[0].recipe["precompute_ref_log_probs"] is True
    assert "precompute_ref_log_probs" not in plans["simpo"].runs[0].recipe.values
    kept = read_plan(recipe, ["method=dpo", "beta=1,2", "precompute_ref_log_probs=false"], 2, None)
    assert kept.runs[0].recipe["precompute_ref_log_probs"] is False


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["beta=1"], "Nothing is swept"),
        (["beta=1,1.0,1"], "`beta` has the value 1 twice"),
        (["output_dir=a,b"], "`output_dir` cannot be swept"),
        (["beta=1,x", "learning_rate=1e-5,1e-6"], "beta x, learning_rate 1e-05: command line: `beta` must be a number"),
        (["bta=1,2"], "command line: unknown key `bta`: did you mean `beta`?"),
        (["method=simpo,sipmo", "beta=1,2"], "method sipmo, beta 1: "),
    ],
)
def test_refused_before_anything_trains(recipe, words, sentence):
    with pytest.raises(RecipeError) as raised:
        read_plan(recipe, words, 2, None)
    assert sentence in str(raised.value)


@pytest.mark.parametrize("variants, seeds, budget", [(2, 1, 10), (4, 2, 100), (5, 3, 400), (8, 1, 96), (9, 2, 1000)])
def test_rounds_halve_and_keep_to_the_budget(variants, seeds, budget):
    found = rounds(variants, seeds, budget, None)
    assert found[0].variants == variants
    assert all(after.variants == (before.variants + 1) // 2 for before, after in itertools.pairwise(found))
    assert found[-1].variants == 2 or variants == 2
    untils = [0, *(each.until for each in found)]
    spent = sum(each.variants * seeds * (each.until - before) for each, before in zip(found, untils, strict=False))
    assert 0.5 * budget < spent <= budget


def test_no_run_is_longer_than_its_recipe():
    assert rounds(4, 1, 8000, 50)[-1].until == 50


def test_a_budget_that_is_too_small():
    with pytest.raises(RecipeError, match="give at least 24"):
        rounds(4, 3, 10, None)


def test_budget_and_length(recipe):
    with pytest.raises(RecipeError, match="`max_steps` cannot be swept"):
        read_plan(recipe, ["max_steps=1,2"], 2, None, budget=100)
