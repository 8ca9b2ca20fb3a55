"""Pairs that are made of several rows: trees of messages, and one scored answer a row."""

import pytest

from trl_plus.data.loading import DataRequest, load
from trl_plus.errors import DataError


def request(path, converter, **keys):
    return DataRequest(paired_method=True, name=str(path), converter=converter, row_column="row", **keys)


def message(name, parent, role, rank=None):
    return {
        "message_id": name,
        "parent_id": parent,
        "text": f"text of {name}",
        "role": role,
        "rank": rank,
        "lang": name,
    }


TREE = [
    message("q", None, "prompter"),
    message("b", "q", "assistant", 1.0),
    message("a", "q", "assistant", 0.0),
    message("c", "q", "assistant", 2.0),
    message("q2", "a", "prompter", 0.0),
    message("a2", "q2", "assistant", 0.0),
    message("b2", "q2", "assistant", 1.0),
    message("lost", "nowhere", "assistant", 0.0),
    message("lost2", "nowhere", "assistant", 1.0),
    message("one", "b", "assistant", 0.0),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_trees(write, kind):
    data = load(request(write(f"rows.{kind}", TREE), "trees"))
    first, second = data.train
    assert (first["row"], first["lang"], second["row"]) == (2, "a", 5)
    assert [turn["content"] for turn in first["prompt"]] == ["text of q"]
    assert (first["chosen"][0]["content"], first["rejected"][0]["content"]) == ("text of a", "text of c")
    assert [(turn["role"], turn["content"]) for turn in second["prompt"]] == [
        ("user", "text of q"),
        ("assistant", "text of a"),
        ("user", "text of q2"),
    ]
    assert (second["chosen"][0]["content"], second["rejected"][0]["content"]) == ("text of a2", "text of b2")
    assert "2 pairs made of 10 rows" in data.notes[0]


def test_groups(write):
    rows = [
        {"prompt": prompt, "response": answer, "helpfulness": score, "coherence": 4}
        for prompt, answer, score in [
            ("p", "good", 4),
            ("p", "bad", 1),
            ("q", "same", 2),
            ("q", "too", 2),
            ("r", "x", 1),
        ]
    ]
    (row,) = load(request(write("rows.jsonl", rows), "groups")).train
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"], row["row"]) == ("good", "bad", 0)
    assert (row["score_chosen"], row["score_rejected"], row["coherence"]) == (4.0, 1.0, 4)


@pytest.mark.parametrize(
    "rows, streaming, words",
    [
        (TREE[:2], False, "no prompt with two answers"),
        (TREE, True, "remove `dataset_streaming`"),
        ([{**TREE[0], "role": "robot"}], False, "`role` of row 0 is 'robot'"),
        ([message(*names, "assistant", rank) for names, rank in (("ab", 0.0), ("ba", 0.0), ("ca", 1.0))], False,
         "answers itself"),
    ],
)  # fmt: skip
def test_refused(write, rows, streaming, words):
    with pytest.raises(DataError, match=words):
        load(request(write("rows.jsonl", rows), "trees", streaming=streaming))


def test_trees_are_named(write):
    with pytest.raises(DataError, match="set `converter: trees`"):
        load(request(write("rows.jsonl", TREE), None))


def test_answers_that_give_no_pair_are_counted_with_their_reason(write):
    (note,) = load(request(write("rows.jsonl", [*TREE, message("plain", "q", "assistant")]), "trees")).notes
    assert (note.rows, note.of) == (4, 11)
    assert note.first == {
        7: "a message before the answer is missing",
        8: "a message before the answer is missing",
        9: "the answer is the only one with a rank",
    }
    assert "4 answers are left out (2: a message before the answer is missing; 1: " in note
    assert "the answer has no rank" in note


def test_groups_count_what_they_leave_out(write):
    scores = [("p", 4), ("p", 1), ("p", 2), ("q", 2), ("q", 2), ("r", 1), ("s", None)]
    rows = [{"prompt": prompt, "response": f"answer {n}", "score": score} for n, (prompt, score) in enumerate(scores)]
    (note,) = load(request(write("rows.jsonl", rows), "groups")).notes
    assert note.first == {
        3: "all completions have the same score, 2",
        4: "all completions have the same score, 2",
        5: "the prompt has no second answer with a score",
    }
    assert (note.rows, note.of) == (4, 7)
    assert "1: the answer has no score" in note
