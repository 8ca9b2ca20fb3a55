"""The same rows are found the same whatever file they lie in and however they are batched, by their source's index."""

import json
import random

import pytest

from tests.preflight.corpus import FORMS, clean_samples, rendered, write
from tests.preflight.looks import EVERYTHING, counts, first_rows, look, look_at
from tests.preflight.planters import PLANTERS, Field
from tests.preflight.toys import build_toy, open_toy, save_toy
from trl_plus.data.mixture import DataRequest
from trl_plus.preflight.findings import Severity
from trl_plus.preflight.run import Extent, preflight
from trl_plus.preflight.source import open_dataset

CHAT, TEXT, KTO, IMPLICIT = (FORMS[name] for name in ("chat", "text", "kto-chat", "text-implicit"))
# defects that a file with one type to a column can hold
NAMES = ("null_side", "blank_wanted", "blank_unwanted", "same_response", "broken_off", "two_questions_running",
         "unheard_of_role", "invisible", "personal", "secret", "read_as_latin_1", "exact_copy", "near_copy",
         "opposite_preference")  # fmt: skip


def planted_rows(form, rows=240, seed=6):
    """Rows with a few of these defects each, and the rows that each code must be found in."""
    field = Field(clean_samples(form, rows, seed), form, random.Random(seed), list(range(rows)))
    wanted = {}
    for planter in (planter for planter in PLANTERS if planter.name in NAMES and planter.fits(form)):
        if planter.implies(form):
            continue
        for _ in range(3):
            row = field.take()
            found = planter.plant(field, row)
            wanted.setdefault(planter.code, set()).update({row} if found is None else found)
    return rendered(field.samples, form), {code: sorted(rows) for code, rows in wanted.items()}


def check(result, wanted):
    assert counts(result) == {code: len(rows) for code, rows in wanted.items()}
    assert first_rows(result) == {code: rows[:3] for code, rows in wanted.items()}


@pytest.mark.parametrize("streaming", [False, True], ids=["read", "streamed"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("form", [CHAT, TEXT, IMPLICIT, KTO], ids=lambda form: form.name)
def test_files_of_every_kind(form, kind, streaming, tmp_path):
    if kind == "csv" and form.conversational:
        pytest.skip("CSV holds no conversations")
    rows, wanted = planted_rows(form)
    result = look(rows, form, tmp_path / f"rows.{kind}", streaming=streaming)
    check(result, wanted)
    assert result.splits[0].checked == len(rows)
    assert result.splits[0].rows == (None if streaming else len(rows))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_folder_with_two_splits(kind, tmp_path):
    (train, wanted), (held_out, also) = planted_rows(CHAT), planted_rows(CHAT, 220, seed=9)
    write(train, tmp_path / "data" / f"train.{kind}")
    write(held_out, tmp_path / "data" / f"test.{kind}")
    result = look_at(str(tmp_path / "data"), CHAT)
    for split, rows in (("train", wanted), ("eval", also)):
        found = {f.code: [e.row for e in f.examples] for f in result.findings if f.split == split}
        assert found == {code: rows[code][:3] for code in rows}


def test_converted_rows_keep_the_index_of_the_row_they_were_made_from(tmp_path):
    rows = [{"question": f"What is {n}?", "chosen": f"It is {n}, I think.", "rejected": f"Not {n}."} for n in range(20)]
    rows[7]["chosen"] = " "
    path = write([{"prompt": row.pop("question"), **row} for row in rows], tmp_path / "rows.jsonl")
    source = open_dataset(DataRequest(paired_method=False, name=str(path), converter="pairs_to_unpaired"), "kto")
    assert first_rows(preflight(source, EVERYTHING))["D202"] == [7]


# -- batches, processes, samples --------------------------------------------------------------------------------------


def comparable(result):
    return [(f.code, f.split, f.count, f.checked, f.sentence, f.examples) for f in result.findings], [
        (s.rows, s.checked, s.lengths, s.labels, s.dropped, s.cut) for s in result.splits
    ]


@pytest.mark.parametrize("form", [CHAT, TEXT, KTO, FORMS["kto-pairs"]], ids=lambda form: form.name)
def test_batches_of_any_size_give_the_same(form, tmp_path, monkeypatch):
    rows, _ = planted_rows(form)
    path, toy = write(rows, tmp_path / "rows.jsonl"), save_toy(tmp_path / "toy", build_toy())
    results = []
    for size in (1000, 64, 7):
        monkeypatch.setattr("trl_plus.preflight.source.BATCH", size)
        source = open_toy(toy, str(path), form.method, max_length=300)
        results.append(comparable(preflight(source, EVERYTHING)))
    assert results[0] == results[1] == results[2]
    assert {finding[0] for finding in results[0][0]} >= {"D503", "D601", "D603"}


def test_two_processes_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_plus.preflight.source.BATCH", 40)
    rows, wanted = planted_rows(CHAT)
    path = write(rows, tmp_path / "rows.jsonl")
    source = open_dataset(DataRequest(paired_method=True, name=str(path)), "dpo")
    one, two = (preflight(source, Extent(rows=None, num_proc=number)) for number in (1, 2))
    assert comparable(one) == comparable(two)
    check(two, wanted)


def test_a_sample_names_rows_by_their_place_in_the_source(tmp_path):
    rows = rendered(clean_samples(CHAT, 150), CHAT)
    marked = list(range(1, 150, 3))
    for row in marked:
        rows[row]["chosen"][0]["content"] += "\u200b"
    result = look(rows, CHAT, tmp_path / "rows.jsonl", Extent(rows=60))
    [finding] = result.findings
    assert finding.code == "D302"
    assert {example.row for example in finding.examples} <= set(marked)
    assert 8 <= finding.count <= 32  # 20 are expected
    assert finding.checked == result.splits[0].checked == 60
    assert any("60 of 150" in note for note in result.notes)


def test_a_stream_is_looked_at_from_its_beginning(tmp_path):
    rows = rendered(clean_samples(CHAT, 150), CHAT)
    for row in (10, 59, 60):
        rows[row]["chosen"][0]["content"] = " "
    result = look(rows, CHAT, tmp_path / "rows.jsonl", Extent(rows=60), streaming=True)
    assert first_rows(result) == {"D202": [10, 59]}


def test_held_out_rows_keep_their_index(tmp_path):
    rows = rendered(clean_samples(CHAT, 100), CHAT)
    blank = [3, 20, 41, 50, 66, 67, 78, 90, 95]
    for row in blank:
        rows[row]["chosen"][0]["content"] = " "
    result = look(rows, CHAT, tmp_path / "rows.jsonl", eval_fraction=0.3)
    assert [(f.code, f.split) for f in result.findings] == [("D202", "eval"), ("D202", "train")]
    assert sum(finding.count for finding in result.findings) == len(blank)
    shown = [example.row for finding in result.findings for example in finding.examples]
    assert set(shown) <= set(blank)
    assert len(set(shown)) == len(shown) >= 4


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_mixture_are_named_by_their_index_in_their_entry(streaming, tmp_path):
    entries = []
    for number, name in enumerate(("first", "second")):
        rows = rendered(clean_samples(CHAT, 50, seed=number + 1), CHAT)
        for row in (4, 30 + number):
            rows[row]["chosen"][0]["content"] = " "
        entries.append({"path": str(write(rows, tmp_path / f"{name}.jsonl"))})
    request = DataRequest(paired_method=True, mixture=entries, mixture_streaming=streaming)
    [finding] = preflight(open_dataset(request, "dpo"), EVERYTHING).findings
    assert (finding.code, finding.count) == ("D202", 4)
    assert [example.row for example in finding.examples] == [4, 30, 4]


@pytest.mark.parametrize(("bad", "severity"), [(0, None), (5, Severity.INFO), (6, Severity.WARNING)])
def test_rows_that_a_converter_leaves_out_are_a_finding(bad, severity, tmp_path):
    """D110, a warning from a tenth of the rows on."""
    rows = [{"prompt": f"q{i}", "responses": ["a", "b"], "scores": [1, 1 if i % 8 == 0 and i < 8 * bad else 2]}
            for i in range(50)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = DataRequest(paired_method=True, name=str(tmp_path / "rows.jsonl"), converter="scores")
    found = [f for f in preflight(open_dataset(request, "dpo"), Extent()).findings if f.code == "D110"]
    assert [(f.severity, f.count, f.checked, f.split) for f in found] == ([] if severity is None else
                                                                          [(severity, bad, 50, "train")])  # fmt: skip
    for finding in found:
        assert [example.row for example in finding.examples] == [0, 8, 16]
        assert "all completions have the same score" in finding.examples[0].detail


def test_an_evaluation_strategy_without_held_out_rows(tmp_path):
    path = write(rendered(clean_samples(CHAT, 12), CHAT), tmp_path / "rows.jsonl")
    toy = save_toy(tmp_path / "toy", build_toy())
    keys = {"eval_strategy": "steps", "eval_steps": 5}
    (finding,) = preflight(open_toy(toy, str(path), "dpo", **keys), EVERYTHING).findings
    assert finding.code == "D111"
    assert (finding.severity, finding.split) == (Severity.ERROR, "eval")
    assert "set `eval_fraction: 0.05`" in finding.sentence
    assert not preflight(open_toy(toy, str(path), "dpo", eval_fraction=0.25, **keys), EVERYTHING).findings
