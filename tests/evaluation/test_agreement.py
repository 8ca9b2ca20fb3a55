"""What `evaluate` says of the tuned model is what the run's trainer said of it when training ended."""

import json
import math

import pytest

from trl_plus.evaluation.run import evaluate
from trl_plus.runs.weights import open_run, open_tuned

FULL = {"use_peft": False, "lora_r": None}
ROWS = {"layout": "rows"}  # in 16 bits packed rows are rounded elsewhere, and `evaluate` scores plain ones
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "dtype": "float32"}


def silent(model, done, total):
    """No progress."""


def after(folder):
    return json.loads((folder / "metrics.json").read_text())["after"]


def of(folder, **options):
    recipe, weights = open_run(str(folder))
    return evaluate(recipe, weights, options.pop("rows", None), options.pop("by", None), silent)


@pytest.mark.parametrize(
    "method, keys",
    [
        ("simpo", {}),
        ("orpo", {}),
        ("cpo", {}),
        ("dpo", {}),
        ("dpo", FULL),
        ("ipo", {"max_length": 24}),
        ("dpo", FOUR_BIT),
        ("simpo", {**FOUR_BIT, "use_dora": True}),
        ("dpo", {"lora_modules_to_save": ["lm_head", "norm"]}),
        ("simpo", {"bf16": True, **ROWS}),
        ("dpo", {"dtype": "bfloat16", **ROWS}),
        ("cpo", {**FULL, "bf16": True, "dtype": "bfloat16", **ROWS}),
    ],
)
def test_pairs(method, keys, train_tiny, pair_rows):
    weighted = [{**row, "weight": 1 + i % 3} for i, row in enumerate(pair_rows(10, 2))]
    train = [{**row, "weight": 1} for row in pair_rows(8)]
    folder = train_tiny(method, train, weighted, **keys)
    theirs, ours = after(folder), of(folder)
    found = ours.pairs.models["tuned"]["reward"]
    # the trainer's margin is a difference of two float32 means
    digits = 1e-6 * max(1, abs(theirs["eval_rewards/chosen"]))
    assert found.margin.value == pytest.approx(theirs["eval_rewards/margins"], abs=digits)
    assert found.accuracy.value == pytest.approx(theirs["eval_rewards/accuracies"], abs=1e-6)
    assert found.accuracy_bootstrap.value == pytest.approx(found.accuracy.value)
    assert abs(theirs["eval_rewards/margins"]) > 1e-3  # two steps moved it
    has_base = ours.pairs.models["base"]["reward"] is not None
    assert has_base == (method in ("simpo", "orpo", "cpo"))


@pytest.mark.parametrize("kind", ["unpaired", "pairs"])
def test_kto(kind, train_tiny, pair_rows, unpaired_rows):
    make = pair_rows if kind == "pairs" else unpaired_rows
    folder = train_tiny("kto", make(8), make(12, 2))
    theirs, ours = after(folder), of(folder)
    labels = ours.labels
    assert labels.desirable["tuned"]["reward"].value == pytest.approx(theirs["eval_rewards/chosen"], abs=1e-6)
    assert labels.undesirable["tuned"]["reward"].value == pytest.approx(theirs["eval_rewards/rejected"], abs=1e-6)
    assert labels.desirable["base"]["reward"] is None
    assert ours.pairs.pairs == sum(labels.rows.values()) / 2  # one of each label under every prompt
    assert 0 <= labels.auc["tuned"]["reward"].value <= 1
    # with equally many of each label, pairs and labels have the same mean margin
    assert ours.pairs.models["tuned"]["reward"].margin.value == pytest.approx(theirs["eval_rewards/margins"], abs=1e-6)


def test_base_of_a_method_without_reference_agrees_too(simpo_run):
    before = json.loads((simpo_run / "metrics.json").read_text())["before"]
    found = of(simpo_run).pairs
    assert found.models["base"]["reward"].margin.value == pytest.approx(before["eval_rewards/margins"], abs=1e-6)
    change = found.models["tuned"]["reward"].margin.value - found.models["base"]["reward"].margin.value
    assert found.change["reward"].value == pytest.approx(change)


def test_divergence_is_the_change_of_log_probabilities(train_tiny, pair_rows):
    """DPO's rewards are beta times the summed log-ratio, so they give the mean log-ratio per token."""
    folder = train_tiny("dpo", pair_rows(8), pair_rows(8, 3), beta=1.0)
    ours = of(folder)
    better, worse, every = (ours.divergence[name].value for name in ("better", "worse", "all"))
    theirs = after(folder)
    assert min(better, worse) < every < max(better, worse)
    assert math.copysign(1, better) == math.copysign(1, theirs["eval_rewards/chosen"])


def test_quickstart(quickstart):
    theirs, ours = after(quickstart.folder), of(quickstart.folder, by="kind")
    found = ours.pairs.models["tuned"]["reward"]
    assert found.accuracy.value == theirs["eval_rewards/accuracies"]
    assert found.margin.value == pytest.approx(theirs["eval_rewards/margins"], abs=1e-6)
    assert [group.name for group in ours.sources] == ["arithmetic", "brevity", "format", "politeness"]
    assert sum(group.pairs for group in ours.sources) == ours.rows == 160
    assert ours.pairs.change["reward"].low > 0


def test_a_recipe_that_was_not_trained_shows_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, weights = open_tuned("quickstart", None, [])
    assert weights is None
    result = evaluate(recipe, weights, 16, None, silent)
    assert (result.tuned, result.divergence, result.rows) == (None, None, 16)
    assert set(result.pairs.models) == {"base"}
    assert any("--model" in note for note in result.notes)
