"""The mapping `columns`: other names, values inside values, columns left out."""

import pytest

from trl_plus.data.loading import DataRequest, load
from trl_plus.errors import DataError

ROWS = [{"q": {"text": f"p{i}", "n": i}, "a": [f"yes {i}", "no"], "prompt": "old", "note": i} for i in range(3)]
COLUMNS = {"prompt": "q.text", "chosen": "a.0", "rejected": "a.1"}


def request(path=None, **keys):
    return DataRequest(paired_method=True, name=path and str(path), **keys)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_values_inside_values(write, kind, streaming):
    data = load(request(write(f"rows.{kind}", ROWS), columns=COLUMNS, streaming=streaming))
    rows = list(data.train)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        (f"p{i}", f"yes {i}", "no") for i in range(3)
    ]
    assert [row["note"] for row in rows] == [0, 1, 2]


def test_other_names_and_one_column_for_two(write):
    rows = [{"question": "p", "good": "yes", "bad": "no", "w": -2.0, "prompt": "old"}]
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "w": None}
    (row,) = load(request(write("a.jsonl", rows), columns=columns)).train
    assert row == {"prompt": "p", "chosen": "yes", "rejected": "no"}
    two = [{"prompt": "p", "response_1": "no", "response_2": "yes", "strength": 2}]
    columns = {"preference_strength": "strength", "weight": "strength", "margin": "strength"}
    (row,) = load(request(write("b.jsonl", two), columns=columns, converter="preference")).train
    assert (row["chosen"][0]["content"], row["weight"], row["margin"]) == ("yes", 2.0, 2.0)


def test_an_entry_of_a_mixture(write):
    plain = write("plain.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    entries = [{"path": str(plain)}, {"path": str(write("rows.jsonl", ROWS)), "columns": COLUMNS}]
    assert load(request(mixture=entries)).train["prompt"][:] == ["a", "p0", "p1", "p2"]


def test_held_out_rows_of_another_dataset_may_have_the_names_already(write):
    held_out = str(write("eval.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}]))
    data = load(request(write("rows.jsonl", ROWS), columns=COLUMNS, eval_name=held_out))
    assert data.eval["prompt"][:] == ["a"]


SCORES = [{"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 4.5, "score_rejected": r} for r in (1, None)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_difference_of_two_columns(write, kind):
    columns = {"margin": "score_chosen - score_rejected"}
    rows = load(request(write(f"rows.{kind}", SCORES), columns=columns)).train
    assert rows["margin"][:] == [3.5, None]
    assert rows["score_chosen"][:] == [4.5, 4.5]
    with pytest.raises(DataError, match="difference of 'a' and 'b', which are no numbers"):
        load(request(write(f"text.{kind}", SCORES), columns={"margin": "chosen - rejected"}))


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"prompt": "quest"}, "has no column `quest`: It has q, a, prompt, note"),
        ({"prompt": "q.txt"}, "`q` of .* has no key `txt`: did you mean `text`?"),
        ({"prompt": "note.text"}, "has no key `text`"),
    ],
)
def test_unknown_columns(write, columns, words):
    with pytest.raises(DataError, match=words):
        load(request(write("rows.jsonl", ROWS), columns=columns))


@pytest.mark.parametrize(
    "row, line",
    [
        ({"query": "q", "chosen_text": "a", "rejected_text": "b"},
         "`columns: {prompt: query, chosen: chosen_text, rejected: rejected_text}`"),
        ({"Prompt": "q", "Chosen": "a", "rejected": "b"}, "`columns: {prompt: Prompt, chosen: Chosen}`"),
    ],
)  # fmt: skip
def test_the_suggested_line_works(write, row, line):
    import yaml

    path = write("rows.jsonl", [row])
    with pytest.raises(DataError) as raised:
        load(request(path))
    assert line in str(raised.value)
    assert len(load(request(path, columns=yaml.safe_load(line.strip("`"))["columns"])).train) == 1
