"""`balance: true` evens surface features out, and what is trained with it reads where the shortcut is wrong."""

import json
import random

import numpy as np
import pytest
from datasets import Dataset

from tests.conftest import WORDS, assistant, user
from tests.preflight.corpus import FORMS, clean_samples, rendered
from tests.preflight.plant_shortcuts import planted
from tests.preflight.test_shortcuts import as_rows, pairs
from trl_plus.data.balance import CAP, balance, balanced
from trl_plus.data.loading import load
from trl_plus.data.mixture import DataRequest
from trl_plus.data.shortcut_rule import fit, surface_rows
from trl_plus.data.surface import NAMES
from trl_plus.errors import DataError
from trl_plus.evaluation.run import evaluate
from trl_plus.runs.weights import open_run


@pytest.mark.parametrize("name", ["bullets", "refusal", "longer", "think"])
def test_a_rule_finds_nothing_in_balanced_pairs(name):
    """At the minimum the weighted means vanish: a rule fitted with the weights has slopes of nothing."""
    rows = surface_rows(as_rows(planted(pairs(400), name, share=0.9)))
    found = balance(rows.examples)
    assert found.before > 0.85
    assert found.after < 0.6
    assert found.evened
    assert not found.left
    weighed = type(rows.examples)(**{**vars(rows.examples), "weights": found.weights})
    evened = [name in found.evened for name in NAMES]
    assert np.abs(fit(weighed, np.array(evened)).slope).max() < 0.02
    assert found.weights.sum() == pytest.approx(400)
    assert CAP**-1 / 4 < found.weights.min() < found.weights.max() < 4 * CAP
    assert found.effective < 400


def test_one_feature_by_hand():
    """Nine pairs of ten have the mark: each weighs a ninth of a pair that lacks it, so both kinds weigh the same."""
    rows = []
    for number in range(300):
        sides = ["anchor basil cedar", "anchor basil cedar!"]
        chosen = number % 10 != 0
        rows.append((f"Ask {number}", sides[chosen], sides[not chosen]))
    examples = surface_rows(as_rows(rows)).examples
    weights = balance(examples).weights
    marked = np.arange(300) % 10 != 0
    np.testing.assert_allclose(weights[marked], weights[~marked][0] / 9, rtol=1e-3)
    assert weights[marked].sum() == pytest.approx(weights[~marked].sum(), rel=1e-3)


def test_labels_keep_what_they_weigh():
    samples = clean_samples(FORMS["kto-chat"], 450, 2)
    rng = random.Random(1)
    for sample in samples:
        if rng.random() < (0.85 if sample.label else 0.15):
            sample.responses["completion"] += " Indeed!"
    rows = surface_rows(rendered(samples, FORMS["kto-chat"]))
    given = type(rows.examples)(**{**vars(rows.examples), "weights": np.where(rows.labels, 2.0, 1.0)})
    found = balance(given)
    for label in (True, False):
        assert found.weights[rows.labels == label].sum() == pytest.approx(given.weights[rows.labels == label].sum())
    place = NAMES.index("exclamations")
    means = [np.average(given.x[mask, place], weights=found.weights[mask]) for mask in (rows.labels, ~rows.labels)]
    assert means[0] == pytest.approx(means[1], abs=1e-3)
    assert found.after < 0.6 < found.before


def test_given_weights_are_what_is_tilted():
    """Rows of weight 0 stay out, and a weight of 2 is the row twice."""
    rows = as_rows(planted(pairs(300), "bullets", share=0.85))
    some = [{**row, "weight": 2.0 if number % 3 else 0.0} for number, row in enumerate(rows)]
    twice = [row for number, row in enumerate(rows) if number % 3 for _ in range(2)]
    weights = balance(surface_rows(some).examples).weights
    assert (weights[::3] == 0).all()
    assert balance(surface_rows(twice).examples).before == pytest.approx(
        balance(surface_rows(some).examples).before, abs=0.1
    )


# -- in words ---------------------------------------------------------------------------------------------------------


def test_a_dataset_gets_weights_and_a_note(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = as_rows(planted(pairs(300), "bold", share=0.85))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(DataRequest(paired_method=True, name=str(path), balance=True, eval_fraction=0.1))
    assert "weight" in found.train.column_names
    assert "weight" not in found.eval.column_names
    assert "evens out " in found.notes[-1]
    assert "bold" in found.notes[-1]
    plain = load(DataRequest(paired_method=True, name=str(path)))
    assert "weight" not in plain.train.column_names


def test_nothing_to_even_out():
    rows = Dataset.from_list(as_rows(pairs(300)))
    same, note = balanced(rows, "rows")
    assert same is rows
    assert "no surface feature is uneven" in note


def test_a_shortcut_that_no_row_contradicts_is_refused():
    rows = Dataset.from_list(as_rows(planted(pairs(300), "think")))
    with pytest.raises(DataError, match="hardly any row contradicts it"):
        balanced(rows, "rows")


def test_too_few_rows_and_streams_are_refused():
    rows = Dataset.from_list(as_rows(planted(pairs(150), "bold", share=0.8)))
    with pytest.raises(DataError, match="has 150 rows with 150 different prompts"):
        balanced(rows, "rows")
    with pytest.raises(DataError, match="needs all rows at once"):
        balanced(rows.to_iterable_dataset(), "rows")


# -- trained with it --------------------------------------------------------------------------------------------------


def marked(count, seed, shortcut):
    """Pairs that one word decides in 85 of 100, and an exclamation mark in `shortcut` of 1."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        sides = []
        word, mark = rng.random() < 0.85, rng.random() < shortcut
        for good in (True, False):
            words = [rng.choice(WORDS[:20]) for _ in range(5)]
            words.insert(2, "violet" if good == word else "garnet")
            sides.append(" ".join(words) + ("!" if good == mark else "."))
        prompt = user(f"{number} {seed}?")
        rows.append({"prompt": [prompt], "chosen": [assistant(sides[0])], "rejected": [assistant(sides[1])]})
    return rows


def test_training_with_it_reads_where_the_shortcut_is_wrong(train_tiny):
    """The mark says more than the word, so a model that has both prefers the mark. Balanced, only the word is left."""
    keys = {
        "use_peft": False, "lora_r": None, "learning_rate": 1e-2, "max_steps": 80, "per_device_train_batch_size": 20,
        "per_device_eval_batch_size": 50, "bf16": False,
    }  # fmt: skip
    train, held_out = marked(800, 0, shortcut=0.9), marked(200, 1, shortcut=0.5)
    found = {}
    for name, on in (("plain", None), ("balanced", True)):
        recipe, weights = open_run(str(train_tiny("simpo", train, held_out, balance=on, **keys)))
        result = evaluate(recipe, weights, None, None, lambda *_: None)
        shortcut = result.shortcut
        assert shortcut.fitted_on == "train"
        assert shortcut.rows == 800
        assert shortcut.accuracy.value == pytest.approx(0.5, abs=0.12)
        assert shortcut.right.pairs + shortcut.wrong.pairs == 200
        found[name] = shortcut.wrong.models["tuned"]["reward"].accuracy.value
    assert found["plain"] < 0.3
    assert found["balanced"] > 0.7
