"""What surface features alone reach stands beside the models: which rows the rule is fitted on, and who is compared."""

from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from datasets import Dataset

from tests.preflight.plant_shortcuts import planted
from tests.preflight.test_shortcuts import as_rows, pairs
from tests.reporting.test_evaluation import evaluation, make_rows, printed, scores
from trl_plus.evaluation.measures import HELD_OUT, TRAIN, by_shortcut
from trl_plus.evaluation.output import as_json, schema
from trl_plus.report.evaluation import shown_evaluation

COUNT = 240


def rows(count, seed, share):
    return as_rows(planted(pairs(count, seed), "affirmation", seed, share))


def held_out(share, seed=3):
    """Pairs, and a model that wins just those whose chosen side does not affirm: it reads, and dislikes the mark."""
    data = rows(COUNT, seed, share)
    affirms = np.array(["!" in row["chosen"][0]["content"][:16] for row in data])
    reward = np.concatenate([np.where(affirms, -1.0, 1.0), np.zeros(COUNT)])
    model = scores([-2.0] * 2 * COUNT, [2] * 2 * COUNT, reward)
    return replace(make_rows(COUNT), rows=Dataset.from_list(data)), {"base": model, "tuned": model}, affirms


def test_it_is_fitted_on_the_training_rows():
    found, models, affirms = held_out(share=0.3)
    result = by_shortcut(found, Dataset.from_list(rows(300, 8, 1.0)), models)
    assert (result.fitted_on, result.rows) == (TRAIN, 300)
    assert result.accuracy.value == pytest.approx(affirms.mean(), abs=0.05)
    assert result.accuracy.low < result.accuracy.value < result.accuracy.high
    assert result.right.pairs + result.wrong.pairs == COUNT
    assert result.wrong.models["tuned"]["reward"].accuracy.value > 0.9
    assert result.right.models["tuned"]["reward"].accuracy.value < 0.1
    assert result.auc is None


@pytest.mark.parametrize("train", [None, Dataset.from_list(rows(50, 8, 1.0))], ids=["none", "too few"])
def test_too_few_training_rows_leave_the_held_out_ones(train):
    """Cross-fitted there, the rule finds that the mark is on the worse side in seven of ten pairs."""
    found, models, affirms = held_out(share=0.3)
    result = by_shortcut(found, train, models)
    assert (result.fitted_on, result.rows) == (HELD_OUT, COUNT)
    assert result.accuracy.value == pytest.approx(1 - affirms.mean(), abs=0.08)


def test_streams_and_rows_that_the_trainer_refuses():
    found, models, _ = held_out(share=0.3)
    train = rows(300, 8, 1.0)
    assert by_shortcut(found, Dataset.from_list(train).to_iterable_dataset(), models).fitted_on == HELD_OUT
    train[4]["chosen"] = [*train[4]["chosen"], {"role": "user", "content": "And then?"}]
    assert by_shortcut(found, Dataset.from_list(train), models).rows == 299
    few = replace(make_rows(20), rows=found.rows.select(range(20)))
    assert by_shortcut(few, None, {"base": scores([-2] * 40, [2] * 40)}) is None


def test_labelled_rows_have_an_auc_and_their_pairs_an_accuracy():
    data = rows(COUNT, 3, 0.9)
    single = [
        {"prompt": r["prompt"], "completion": r[s], "label": s == "chosen"}
        for s in ("chosen", "rejected")
        for r in data
    ]
    found = replace(make_rows(COUNT, paired=False), rows=Dataset.from_list(single))
    models = {"base": scores([-2] * 2 * COUNT, [2] * 2 * COUNT)}
    for train in (rows(300, 8, 1.0), single):  # pairs, or labelled rows
        result = by_shortcut(found, Dataset.from_list(train), models)
        assert result.fitted_on == TRAIN
        assert result.auc.value > 0.85
        assert result.accuracy.value == pytest.approx(0.9, abs=0.06)


def test_in_words_as_json_and_in_the_report():
    found, models, _ = held_out(share=0.3)
    result = evaluation(found, models, shortcut=by_shortcut(found, None, models))
    content = as_json(result)
    jsonschema.validate(content, schema())
    text = printed(result)
    assert "Accuracy by what surface features alone say" in text
    assert "fitted on 240 of the other held-out rows" in " ".join(text.split())

    class Run:
        folder, begins, end, summary = None, (), None, {}

    content["weights"] = None
    shown = shown_evaluation(content, Run())
    assert "Accuracy of surface features alone, without a model" in [title for title, _ in shown.measures]
    assert [name for name, *_ in shown.groups][-2:] == [
        "surface features alone are right",
        "surface features alone are wrong",
    ]
    del content["shortcut"]  # of an earlier version
    assert "Accuracy of surface features alone, without a model" not in [
        title for title, _ in shown_evaluation(content, Run()).measures
    ]
