"""Roles under other names, a doubtful coding, and rows left out as the user's own columns tell it."""

import pytest

from trl_plus.data.loading import DataRequest, load
from trl_plus.errors import DataError

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


def request(path, converter, paired=True, **keys):
    return DataRequest(paired_method=paired, name=str(path), converter=converter, **keys)


HUMAN, GPT, WORSE = ({**m, "role": r} for m, r in ((USER, "human"), (GOOD, "gpt"), (BAD, "GPT")))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [HUMAN], "chosen": [GPT], "rejected": [WORSE]},
        {"prompt": [USER], "chosen": [GPT], "rejected": [WORSE]},
        {"prompt": "q", "chosen": [GPT], "rejected": [WORSE]},
        {"prompt": "q", "chosen": [HUMAN, GPT], "rejected": [HUMAN, WORSE]},
        {"chosen": [HUMAN, GPT], "rejected": [HUMAN, WORSE]},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE},
        {"prompt": [{"from": "human", "value": "q"}], "chosen": [GPT], "rejected": [WORSE]},
        {"prompt": [HUMAN], "completion": [GPT], "label": True},
        {"prompt": "q", "completion": [GPT], "label": True},
        {"completion": [HUMAN, GPT], "kto_tag": True},
        {"conversations": [HUMAN, GPT], "label": True},
    ],
)
def test_roles_of_sharegpt_are_renamed(write, row, streaming):
    path, paired = write("rows.jsonl", [row] * 2), "chosen" in row
    wanted = PAIR if paired else {"prompt": [USER], "completion": [GOOD], "label": True}
    assert list(load(request(path, "sharegpt", paired, streaming=streaming)).train) == [wanted] * 2
    with pytest.raises(DataError, match="set `converter: sharegpt`"):
        load(request(path, None, paired))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_rows_with_the_usual_names_beside_rows_without(write, order, streaming):
    """The advice to remove the converter would send in a circle: other rows need it."""
    rows = [PAIR, {**PAIR, "chosen": [GPT]}, {"prompt": [HUMAN], "chosen": [GOOD], "rejected": [WORSE]}]
    path = write("rows.jsonl", [rows[place] for place in order])
    assert list(load(request(path, "sharegpt", streaming=streaming)).train) == [PAIR] * 3


def test_rows_that_all_have_the_usual_names_need_no_converter(write):
    with pytest.raises(DataError, match=r"every row holds .* would not change: remove `converter`"):
        load(request(write("rows.jsonl", [PAIR] * 3), "sharegpt"))


def test_a_system_text_beside_renamed_roles(write):
    row = {"prompt": [HUMAN], "completion": [GPT], "label": False, "system": "s"}
    train = load(request(write("rows.jsonl", [row]), "sharegpt", paired=False)).train
    assert [message["role"] for message in train[0]["prompt"]] == ["system", "user"]


def preferring(*values):
    return [{"instruction": "i", "output_1": "a", "output_2": "b", "preference": value} for value in values]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("values", [(0, 1), (1.0, 0.0, None), (1,) * 1500 + (0,)])
def test_a_preference_of_zeros_and_ones_is_refused(write, values, streaming):
    path = write("rows.jsonl", preferring(*values))
    with pytest.raises(DataError, match=r"0 may stand for an output or for a draw: write 1 where `output_1` is better"):
        list(load(request(path, "alpaca", streaming=streaming)).train)


@pytest.mark.parametrize("streaming", [False, True])
def test_zeros_beside_a_two_are_draws(write, streaming):
    path = write("rows.jsonl", preferring(0, 1, 2))
    assert [row["chosen"][0]["content"] for row in load(request(path, "alpaca", streaming=streaming)).train] == [
        "a",
        "b",
    ]


OPENAI = {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}


@pytest.mark.parametrize(
    "row, fault, converter, paired, words",
    [
        (OPENAI, {"preferred_output": [USER]}, "openai", True, "`preferred_output` ends with a 'user' message"),
        (OPENAI, {"non_preferred_output": None}, "openai", True, "`non_preferred_output` is null"),
        ({"conversations": [USER, GOOD], "label": True}, {"conversations": [USER]}, "sharegpt", False,
         "`conversations` ends with a 'user' message"),
        ({"conversations": [USER, GOOD], "label": True}, {"label": None}, "sharegpt", False, "`label` is null"),
        ({"instruction": "q", "generations": ["a", "b"], "ratings": [1, 2]}, {"generations": None}, "scores", True,
         "`generations` is null"),
        ({"instruction": "q", "responses": [[GOOD], [BAD]], "scores": [1, 2]}, {"responses": [[USER], [BAD]]}, "scores",
         True, "`responses` ends with a 'user' message"),
    ],
)  # fmt: skip
def test_rows_left_out_are_told_by_the_columns_of_the_data(write, row, fault, converter, paired, words):
    (note,) = load(request(write("rows.jsonl", [row, row, {**row, **fault}]), converter, paired)).notes
    assert f"2 of 3 rows converted, 1 left out: row 2: {words}." in note


def test_a_row_that_becomes_several(write):
    (note,) = load(request(write("rows.jsonl", [PAIR] * 3), "pairs_to_unpaired", paired=False)).notes
    assert note.endswith("`converter: pairs_to_unpaired`: 3 of 3 rows converted into 6.")
