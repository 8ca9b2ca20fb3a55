"""D520: shortcuts of many kinds are found, labels that were drawn at random are not, and figures are right."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.preflight.corpus import FORMS, clean_samples, rendered, write
from tests.preflight.looks import look
from tests.preflight.plant_shortcuts import PLANTS, WRONGS, planted
from tests.preflight.toys import build_toy, open_toy, save_toy
from trl_plus.data.shortcut_rule import Examples, cross_fitted, fit, of_labels, of_pairs, right, surface_rows
from trl_plus.data.surface import FEATURES, NAMES, Stock, measure, of_responses, stock_keys
from trl_plus.preflight.as_json import as_json, from_json
from trl_plus.preflight.findings import WORTH, Severity, worth
from trl_plus.preflight.page import preflight_page
from trl_plus.preflight.run import Extent, preflight
from trl_plus.preflight.shortcuts import MOST, accuracy, audit

CHAT, KTO, PAIRS = FORMS["chat"], FORMS["kto-chat"], FORMS["kto-pairs"]


def pairs(rows=300, seed=0):
    """Clean pairs as (prompt, chosen, rejected)."""
    return [
        (sample.turns[-1]["content"], sample.responses["chosen"], sample.responses["rejected"])
        for sample in clean_samples(CHAT, rows, seed)
    ]


def examples(rows):
    prompts, chosen, rejected = zip(*rows, strict=True)
    names = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return of_pairs(of_responses([chosen, rejected], prompts)[0], np.array([names[prompt] for prompt in prompts]))


def as_rows(rows):
    return [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in rows
    ]


# -- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.85])
@pytest.mark.parametrize("name", [*PLANTS, *WRONGS])
def test_a_planted_shortcut_is_found(name, share):
    found = audit(examples(planted(pairs(), name, share=share)))
    assert found is not None
    assert found.found
    assert found.accuracy.value > share - 0.08  # no rule can reach more than the share by this feature


def test_labels_drawn_at_random_hold_no_shortcut():
    """Mean accuracy 0.5, and no more alarms than the level says: 120 shuffles of pairs full of surface features."""
    whole = examples(planted(pairs(), "bullets"))
    rng, found = np.random.default_rng(0), []
    for _ in range(120):
        shuffled = replace(whole, x=whole.x * rng.choice([-1, 1], len(whole.y))[:, None])
        found.append(accuracy(right(cross_fitted(shuffled), shuffled), shuffled))
    values = np.array([estimate.value for estimate in found])
    assert abs(values.mean() - 0.5) < 3 * values.std() / np.sqrt(len(values))
    assert sum(map(worth, found)) <= 6
    assert sum(estimate.low > 0.5 for estimate in found) <= 8  # 2.5% are expected


def test_prompts_that_come_with_many_rows_are_no_evidence():
    """Five pairs of each prompt, whose label goes by the prompt: they say the same five times over."""
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(60):
        prompts = np.repeat(np.arange(100), 5)
        x = np.repeat(rng.normal(size=(100, len(FEATURES))), 5, axis=0) + 0.1 * rng.normal(size=(500, len(FEATURES)))
        whole = Examples(x, np.ones(500), np.ones(500), prompts, True)
        estimate = accuracy(right(cross_fitted(whole), whole), whole)
        false += worth(estimate)
        assert estimate.high - estimate.low > 0.2  # of 100 prompts, not of 500 rows
    assert false <= 5


def test_labelled_rows_are_judged_by_the_mean_of_both_labels():
    """Nine of ten rows are wanted: a rule that always says so is worth 0.5, and a planted mark is found."""
    rng = np.random.default_rng(2)
    labels = rng.random(600) < 0.9
    texts = [sample.responses["chosen"] for sample in clean_samples(CHAT, 600, 5)]
    prompts = np.arange(600)
    plain = audit(of_labels(of_responses([texts], [""] * 600)[0][:, 0], labels, prompts))
    assert plain is not None
    assert not plain.found
    assert abs(plain.accuracy.value - 0.5) < 0.1
    marked = [text + "\n\n- one\n- two" if label else text for text, label in zip(texts, labels, strict=True)]
    found = audit(of_labels(of_responses([marked], [""] * 600)[0][:, 0], labels, prompts))
    assert found is not None
    assert found.accuracy.value > 0.95
    assert found.accuracy.low < 0.97  # the interval is that of the 60 unwanted rows too


def test_weights_of_rows_count():
    """A shortcut whose rows weigh nothing is gone; a factor that all rows share changes nothing."""
    rows = planted(pairs(240), "bullets") + planted(pairs(240, 1), "capitals")
    whole = examples(rows)
    weights = np.repeat([1.0, 0.0], 240)
    found = audit(replace(whole, weights=weights))
    assert found is not None
    assert found.rows == 240
    assert "list_items" in [trait.name for trait in found.traits[:3]]
    assert "capitals" not in [trait.name for trait in found.traits[:3]]
    assert audit(replace(whole, weights=7 * whole.weights)).accuracy.value == audit(whole).accuracy.value
    double = fit(whole.select(np.repeat(np.arange(480), np.where(np.arange(480) < 240, 3, 1))))
    weighed = fit(replace(whole, weights=np.repeat([3.0, 1.0], 240)))
    np.testing.assert_allclose(weighed.slope, double.slope, rtol=0.3, atol=0.1)  # the penalty weighs twice as much here


def test_the_regression_is_at_its_minimum():
    """The gradient of the stated loss vanishes, for pairs and for labelled rows."""
    rng = np.random.default_rng(3)
    x, y, weights = rng.normal(size=(300, len(FEATURES))), rng.choice([-1.0, 1.0], 300), rng.random(300)
    rule = fit(Examples(x, y, weights, np.arange(300), False))
    even = Examples(x, y, weights, np.arange(300), False).even
    even = even * 300 / even.sum()
    standard = np.clip((x - rule.centre) / rule.scale, -4, 4)
    pull = even * y / (1 + np.exp(y * rule.score(x)))
    np.testing.assert_allclose(10.0 * rule.slope, standard.T @ pull, atol=1e-3)
    assert abs(pull.sum()) < 1e-3


def test_an_accuracy_and_its_interval_by_hand():
    """7 of 10 rows right, each with its own prompt: Wilson's interval on 9 rows, one being spent on the mean."""
    whole = Examples(np.zeros((10, len(FEATURES))), np.ones(10), np.ones(10), np.arange(10), True)
    estimate = accuracy(np.array([1.0] * 7 + [0.0] * 3), whole, spread=1)
    n, z = 9.0, 1.959964
    centre = (0.7 + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(0.7 * 0.3 / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    np.testing.assert_allclose([estimate.value, estimate.low, estimate.high], [0.7, centre - half, centre + half])


def test_too_few_rows_say_nothing():
    assert audit(examples(planted(pairs(199), "bullets"))) is None
    assert audit(examples(planted(pairs(200), "bullets"))) is not None
    whole = examples(planted(pairs(300), "bullets"))
    assert audit(replace(whole, prompts=np.zeros(300, np.int64))) is None
    many = Examples(
        *(np.concatenate([part] * 80) for part in (whole.x, whole.y, whole.weights)), np.arange(24000), True
    )
    assert audit(many).rows == MOST


# -- features ---------------------------------------------------------------------------------------------------------


def test_features_of_a_response_by_hand():
    text = "Sure! Here is a list:\n\n- one, 22\n- two\n1. Three?\n# Title\n**Bold** `code` <think>I am</think> Ça 山 😀"
    found = dict(zip(NAMES, measure([text], ["Sure! Here"])[0].tolist(), strict=True))
    assert np.expm1(found["characters"]) == pytest.approx(len(text))
    assert np.expm1(found["words"]) == pytest.approx(len(text.split()))
    assert np.expm1(found["lines"]) == pytest.approx(text.count("\n"))
    counted = {"list_items": 2, "numbered_items": 1, "headings": 1, "paragraphs": 1, "bold": 4, "code": 2, "emoji": 1}
    assert {name: round(float(np.expm1(found[name]))) for name in counted} == counted
    assert (found["think_opened"], found["think_closed"], found["affirmation"], found["refusal"]) == (1, 1, 1, 0)
    assert found["digits"] == pytest.approx(np.sqrt(3 / len(text)))
    assert found["east_asian"] == found["accents"] == pytest.approx(np.sqrt(1 / len(text)))
    assert found["prompt_start"] == pytest.approx(10 / 40)
    assert (found["end_mark"], found["outer_space"], found["lower_start"], found["tokens"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "\ud800", "a\n\n", "\u0000", "x" * 50_000, "\u200b", "-", "1", "#", "*"]
)
def test_any_text_has_finite_features(text):
    both = measure([text, "plain"], ["", text])
    assert np.isfinite(both).all()
    np.testing.assert_array_equal(both[0], measure([text], [""])[0])  # neighbours in a batch change nothing
    assert stock_keys([text]).shape == (1, 2)


def test_chunks_change_nothing(monkeypatch):
    texts = [sample.responses["chosen"] for sample in clean_samples(CHAT, 60)]
    whole = measure(texts, [""] * 60)
    monkeypatch.setattr("trl_plus.data.surface._CHUNK", 100)
    np.testing.assert_array_equal(measure(texts, [""] * 60), whole)
    monkeypatch.setattr("trl_plus.data.shortcut_rule._ROWS", 7)
    rows = as_rows(planted(pairs(50), "bold"))
    np.testing.assert_array_equal(surface_rows(rows).features, of_responses(*sides_and_prompts(rows))[0])


def sides_and_prompts(rows):
    sides = [[row[side][0]["content"] for row in rows] for side in ("chosen", "rejected")]
    return sides, [row["prompt"][0]["content"] for row in rows]


def test_common_openings_are_counted_without_the_response_itself():
    keys = stock_keys(["I see a b c", "i see d e f", "You a b c"])
    stock = Stock.of(keys)
    per_thousand = np.expm1(stock.common(keys, own=True)) * 3 / 1000
    np.testing.assert_allclose(per_thousand, [[1, 1], [1, 0], [0, 1]], atol=1e-6)
    others = np.expm1(stock.common(stock_keys(["I see x y z", "No a b c"]), own=False)) * 3 / 1000
    np.testing.assert_allclose(others, [[2, 0], [0, 2]], atol=1e-6)


# -- through preflight ------------------------------------------------------------------------------------------------


def finding(result, code="D520"):
    return next((found for found in result.findings if found.code == code), None)


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("form", [CHAT, PAIRS], ids=["dpo", "kto"])
def test_pairs_with_a_shortcut(form, with_model, tmp_path):
    rows = as_rows(planted(pairs(), "refusal", share=0.9))
    if with_model:
        path = write(rows, tmp_path / "rows.jsonl")
        toy = save_toy(tmp_path / "toy", build_toy())
        result = preflight(open_toy(toy, str(path), form.method), Extent(rows=None))
    else:
        result = look(rows, form, tmp_path / "rows.jsonl")
    found = finding(result)
    assert (found.severity, found.count, found.checked) == (Severity.WARNING, 0, 300)
    assert "opens without a refusal or an apology" in found.sentence
    shortcut = result.splits[0].shortcut
    assert shortcut.accuracy.value == pytest.approx(0.9, abs=0.06)
    assert len(found.examples) == 3
    for example in found.examples:  # rows whose chosen side refuses
        assert rows[example.row]["chosen"][0]["content"].startswith(("I am sorry", "I cannot", "Unfortunately"))
        assert "it favours rejected, which" in example.detail


def test_labelled_rows_with_a_shortcut(tmp_path):
    samples = clean_samples(KTO, 300, 2)
    for sample in samples:
        if sample.label:
            sample.responses["completion"] = "\n".join(
                f"- {part}" for part in sample.responses["completion"].split(". ")
            )
    found = finding(look(rendered(samples, KTO), KTO, tmp_path / "rows.jsonl"))
    assert found.severity is Severity.WARNING
    assert "A wanted completion, by weight in log-odds: " in found.sentence
    assert "has more list items" in found.sentence


def test_what_length_explains_is_left_to_d510(tmp_path):
    """Sides that differ in nothing but their length: one warning, and a pointer to it."""
    rng = np.random.default_rng(4)
    words = [f"w{rng.integers(1e6):06d}x" for _ in range(9000)]

    def response(size):
        return " ".join(rng.choice(words, size, replace=False)) + "."

    rows = [(f"Ask {i}?", response(rng.integers(30, 40)), response(rng.integers(22, 32))) for i in range(300)]
    result = look(as_rows(rows), CHAT, tmp_path / "rows.jsonl")
    assert finding(result, "D510").severity is Severity.WARNING
    found = finding(result)
    assert found.severity is Severity.INFO
    assert "see D510" in found.sentence
    assert result.splits[0].shortcut.length_only


def test_the_result_as_json_and_as_a_page(tmp_path):
    result = look(as_rows(planted(pairs(), "bold")), CHAT, tmp_path / "rows.jsonl")
    content = json.loads(json.dumps(as_json(result)))
    shortcut = content["splits"][0]["shortcut"]
    assert shortcut["accuracy"]["value"] > WORTH
    assert shortcut["features"][0]["name"] == "bold"
    assert sum(shortcut["scores"]["counts"]) == shortcut["rows"] == 300
    again = from_json(content).splits[0].shortcut
    assert replace(again, examples=result.splits[0].shortcut.examples) == result.splits[0].shortcut
    page = preflight_page(result)
    assert "surface features alone" in page
    assert "has more bold or italic marks" in page
    del content["splits"][0]["shortcut"]  # a result of an earlier version
    assert from_json(content).splits[0].shortcut is None


def test_processes_and_batches_change_nothing(tmp_path, monkeypatch):
    rows = as_rows(planted(pairs(), "think", share=0.8))
    whole = look(rows, CHAT, tmp_path / "rows.jsonl").splits[0].shortcut
    monkeypatch.setattr("trl_plus.preflight.source.BATCH", 70)
    assert look(rows, CHAT, tmp_path / "rows.jsonl").splits[0].shortcut == whole
