"""An evaluation as JSON, which fits its schema, and as tables, which say what is not defined."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from trl_plus.evaluation.measures import by_label, by_length, by_source, divergence, pair_group
from trl_plus.evaluation.models import Scores
from trl_plus.evaluation.output import as_json, evaluation_report, json_text, schema
from trl_plus.evaluation.rows import HeldOut
from trl_plus.evaluation.run import Evaluation


def make_rows(pairs, paired=True, sources=None):
    """Pairs of completions, one prompt each; as single rows where `paired` is false."""
    index = np.stack([np.arange(pairs), np.arange(pairs) + pairs], 1)
    return HeldOut(
        rows=range(pairs if paired else 2 * pairs),
        collate=None,
        paired=paired,
        labels=np.repeat([True, False], pairs),
        weights=np.ones(2 * pairs),
        prompts=np.tile(np.arange(pairs), 2),
        sources=None if sources is None else np.tile(np.array(sources), 2),
        source_column=None if sources is None else "source",
        pairs=index,
        dropped=0,
    )


def evaluation(held_out, models, **changes):
    values = {
        "source": "r.yaml",
        "method": "dpo",
        "base": "org/base",
        "tuned": "out" if "tuned" in models else None,
        "dataset": "org/data",
        "reference": models["base"].reward is None,
        "rows": len(held_out.rows),
        "dropped": 0,
        "max_length": 128,
        "source_column": held_out.source_column,
        "pairs": pair_group("all", slice(None), held_out, models) if len(held_out.pairs) else None,
        "sources": by_source(held_out, models),
        "lengths": by_length(held_out, models),
        "labels": by_label(held_out, models),
        "divergence": divergence(held_out, models["base"], models["tuned"]) if "tuned" in models else None,
        "notes": [],
        "seconds": 1.5,
    }
    return Evaluation(**values | changes)


def scores(total, length, reward=None):
    return Scores(np.array(total, float), np.array(length, float), None if reward is None else np.array(reward, float))


@pytest.fixture
def by_hand():
    """Three pairs. Lengths of better and worse: 2 and 1, 1 and 2, 4 and 2."""
    rows = make_rows(3, sources=["a", "b", "b"])
    length = [2, 1, 4, 1, 2, 2]
    base = scores([-2, -3, -4, -2, -2, -4], length)
    tuned = scores([-2, -1, -4, -3, -4, -2], length, [0, 2, 0, -1, -2, 2])
    return evaluation(rows, {"base": base, "tuned": tuned})


def printed(result, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in evaluation_report(result):
        console.print(part, markup=False)
    return console.export_text()


def strict(node):
    """The schema, allowing no key that it does not describe."""
    if isinstance(node, dict):
        node = {key: strict(value) for key, value in node.items()}
        if "properties" in node:
            node["additionalProperties"] = False
        return node
    return [strict(item) for item in node] if isinstance(node, list) else node


# The schema of version 1 as it was first published, by hand: whoever reads with it reads what is printed today
PUBLISHED = json.loads((Path(__file__).parent / "evaluation.schema.json").read_text(encoding="utf-8"))
OLD = Path(__file__).parents[1] / "end_to_end" / "old_run" / "run" / "evaluation.json"


def check(value):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(strict(schema())).validate(value)
    jsonschema.Draft202012Validator(strict(PUBLISHED)).validate(value)


def test_figures_by_hand(by_hand):
    """Margins per token: base -1+2, -3+1, -1+2 = 1, -2, 1; tuned -1+3, -1+2, -1+1 = 2, 1, 0. Rewards 1, 4, -2."""
    base, tuned = by_hand.pairs.models["base"], by_hand.pairs.models["tuned"]
    assert base["reward"] is None
    assert base["logp_per_token"].margin.value == pytest.approx(0)
    assert base["logp_per_token"].accuracy.value == pytest.approx(2 / 3)
    assert tuned["logp_per_token"].margin.value == pytest.approx(1)
    assert tuned["logp_per_token"].accuracy.value == pytest.approx(2 / 3)  # a tie is not won
    assert tuned["reward"].margin.value == pytest.approx(1)
    assert by_hand.pairs.change["logp_per_token"].value == pytest.approx(1)
    assert by_hand.pairs.change["reward"] is None
    # log-ratios: better 0, 2, 0 over 2 + 1 + 4 tokens; worse -1, -2, 2 over 1 + 2 + 2
    assert by_hand.divergence["better"].value == pytest.approx(2 / 7)
    assert by_hand.divergence["worse"].value == pytest.approx(-1 / 5)
    assert by_hand.divergence["all"].value == pytest.approx(1 / 12)
    assert [(group.name, group.pairs) for group in by_hand.sources] == [("a", 1), ("b", 2)]


def test_lengths_by_hand(by_hand):
    """Differences +1, -1, +2: the longer side is better in two of three pairs."""
    lengths = by_hand.lengths
    assert lengths.longer_wins == pytest.approx(2 / 3)
    assert (lengths.better_longer.pairs, lengths.better_shorter.pairs) == (2, 1)
    assert lengths.balanced["tuned"]["reward"] == pytest.approx((1 / 2 + 1) / 2)
    assert lengths.balanced["base"] == {"reward": None, "logp_per_token": pytest.approx((1 + 0) / 2)}
    assert lengths.correlation["base"]["reward"] is None


def test_a_model_that_only_likes_length_is_found():
    """Better sides are mostly longer, so preferring length wins 80%; balanced, it wins half."""
    rng = np.random.default_rng(0)
    longer = np.arange(100) < 80
    lengths = np.where(longer, [[30], [10]], [[10], [30]]) + rng.integers(0, 5, (2, 100))
    model = scores(-lengths.ravel(), lengths.ravel(), lengths.ravel())
    found = by_length(make_rows(100), {"base": model})
    assert found.longer_wins == pytest.approx(0.8)
    assert found.balanced["base"]["reward"] == pytest.approx(0.5)
    assert found.correlation["base"]["reward"].value > 0.99
    assert sum(group.pairs for group in found.buckets) == 100
    assert [group.models["base"]["reward"].accuracy.value for group in found.buckets][:1] == [0.0]


def test_buckets_keep_equal_differences_together():
    lengths = np.array([[5] * 40 + [9], [4] * 41])
    found = by_length(make_rows(41), {"base": scores(-lengths.ravel(), lengths.ravel(), lengths.ravel())})
    assert [(group.name, group.pairs) for group in found.buckets] in ([("+1 to +5", 41)], [("+1", 40), ("+5", 1)])


def test_single_rows():
    rows = make_rows(4, paired=False)
    tuned = scores([-1] * 4 + [-2] * 4, [2] * 8, [1, 2, 3, 4, 0, 0, 1, 5])
    result = evaluation(rows, {"base": scores([-3] * 8, [2] * 8), "tuned": tuned})
    assert result.labels.desirable["tuned"]["reward"].value == pytest.approx(2.5)
    assert result.labels.undesirable["tuned"]["reward"].value == pytest.approx(1.5)
    # of 16 comparisons 1>0, 1>0, 1=1; 2>0, 2>0, 2>1; 3 alike; 4 alike: 2.5 + 3 + 3 + 3
    assert result.labels.auc["tuned"]["reward"].value == pytest.approx(11.5 / 16)
    assert result.labels.auc["base"]["reward"] is None
    check(json.loads(json_text(result)))
    assert "AUC, reward" in printed(result)


def test_json_fits_its_schema(by_hand):
    check(json.loads(json_text(by_hand)))
    base = evaluation(make_rows(6), {"base": scores(range(-12, 0), [3] * 12, range(12))})
    value = json.loads(json_text(base))
    check(value)
    assert (value["tuned"], value["divergence"], value["pairs"]["change"]) == (None, None, {})
    assert value["lengths"]["correlation"]["base"]["reward"]["value"] is None  # all of one length


def test_one_label_and_no_pairs():
    rows = replace(make_rows(4, paired=False), labels=np.ones(8, bool), pairs=np.zeros((0, 2), int))
    result = evaluation(rows, {"base": scores([-3] * 8, [2] * 8)})
    value = json.loads(json_text(result))
    check(value)
    assert (value["pairs"], value["lengths"], value["sources"]) == (None, None, [])
    assert value["labels"]["auc"]["base"]["logp_per_token"]["value"] is None
    assert value["labels"]["undesirable"]["base"]["logp_per_token"] is None
    assert "nan" not in printed(result)


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"rows": 0}, {"extra": 1}, {"pairs": {}}])
def test_the_schema_refuses(by_hand, change):
    with pytest.raises(jsonschema.ValidationError):
        check({**as_json(by_hand), **change})


def test_an_evaluation_of_the_version_before_fits():
    added = {"shortcut": None}  # keys may be added within a version
    value = {**json.loads(OLD.read_text(encoding="utf-8")), **added}
    check(value)
    for key in value:  # and none of its keys is optional today
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(schema()).validate({k: v for k, v in value.items() if k != key})


def keys_of(node, root):
    """Every required key of a schema by its path, references followed; by "*" what any key holds."""
    if "$ref" in node:
        return keys_of(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    found = set(node.get("required", ()))
    for part in [*node.get("anyOf", ()), *([node["items"]] if "items" in node else [])]:
        found |= keys_of(part, root)
    inner = {"*": node["additionalProperties"]} if isinstance(node.get("additionalProperties"), dict) else {}
    for key, value in {**node.get("properties", {}), **inner}.items():
        found |= {f"{key}.{name}" for name in keys_of(value, root)}
    return found


def test_the_schema_requires_what_was_published():
    def plain(keys):  # a mapping of models or measures was published with its keys, or without
        return {re.sub(r"\b(base|tuned|reward|logp_per_token|better|worse|all)\.", "*.", key) for key in keys}

    assert plain(keys_of(schema(), schema())) == plain(keys_of(PUBLISHED, PUBLISHED))


def test_every_key_has_a_description():
    for part in (schema(), *schema()["$defs"].values()):
        for key, value in part.get("properties", {}).items():
            assert "description" in value or key in ("base", "tuned"), key


def test_tables_say_what_is_not_defined(by_hand):
    text = printed(by_hand)
    assert "the base itself has none" in text
    assert "not a KL divergence" in " ".join(text.split())
    assert "nan" not in text
    reward = text[text.index("By the method's reward") : text.index("By log-probability")]
    assert reward.split("base")[1].split("tuned")[0].split() == ["-", "-", "-", "-"]


def test_tables_fit_80_columns_and_obey_nothing_of_the_data():
    rows = make_rows(30, sources=["[red]x[/red]\x1b[2J"] * 30)
    total = -np.arange(60.0)
    models = {"base": scores(total, [9] * 60), "tuned": scores(total - 1, [9] * 60, total)}
    text = printed(evaluation(rows, models), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "[red]" in text


def test_pairs_of_one_prompt_are_drawn_together():
    """Ten prompts of ten alike pairs know ten things, not a hundred: every bootstrap interval is wider."""
    margins = np.repeat(np.linspace(-1, 2, 10), 10)
    total = np.concatenate([margins, np.zeros(100)])
    models = {"base": scores(np.zeros(200), np.ones(200)), "tuned": scores(total, np.ones(200), total)}
    alone = make_rows(100)
    shared = replace(alone, prompts=np.tile(np.repeat(np.arange(10), 10), 2))
    widths = []
    for rows in (alone, shared):
        group = pair_group("all", slice(None), rows, models)
        found = group.models["tuned"]["reward"]
        estimates = [found.margin, found.accuracy_bootstrap, group.change["logp_per_token"]]
        estimates += [divergence(rows, **models)["all"]]
        widths.append([estimate.high - estimate.low for estimate in estimates])
    assert all(wide > 2 * narrow for narrow, wide in zip(*widths, strict=True))


def test_weights_count():
    rows = replace(make_rows(2), weights=np.array([3.0, 1.0, 3.0, 1.0]))
    model = scores([1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 0, 1])
    found = pair_group("all", slice(None), rows, {"base": model}).models["base"]["reward"]
    assert (found.accuracy.value, found.margin.value) == pytest.approx((0.75, 0.5))
