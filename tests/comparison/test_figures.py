"""Statistics of answers, prompt files and blind sheets: by hand."""

import json
import re

import pytest

from trl_plus.comparison.answers import Answer
from trl_plus.comparison.blind import key_path, score_sheet, write_sheet
from trl_plus.comparison.marks import change
from trl_plus.comparison.prompts import as_conversations, read_prompts
from trl_plus.comparison.statistics import repeats, statistics
from trl_plus.errors import DataError

# -- statistics -----------------------------------------------------------------------------------------------------


def test_statistics_by_hand():
    answers = [Answer("a", (1, 2, 3, 4, 1, 2, 3, 4), True), Answer("", (), False), Answer("b", (1, 2), False)]
    found = statistics(answers)
    assert (found.answers, found.mean_tokens, found.median_tokens, found.longest) == (3, 10 / 3, 2.0, 8)
    assert found.repeated_4grams == 1 / 5  # 1234 comes up twice among 1234 2341 3412 4123 1234
    assert found.distinct_1 == 4 / 10
    assert found.distinct_2 == 4 / 8  # 12 23 34 41 of 7 + 1
    assert (found.hit_limit, found.empty) == (1, 1)


def test_what_cannot_be_counted_is_none():
    found = statistics([Answer("", (), True)])
    assert (found.repeated_4grams, found.distinct_1, found.distinct_2) == (None, None, None)
    assert repeats((5,) * 7) == (3, 4)


def test_change():
    assert change("a b c", "a b c") == 0
    assert change("a b", "c d") == 1
    assert change("a  b", "a b") == 0  # the same words: not alike, but nothing to read
    assert change("a b c d", "a b c") == pytest.approx(1 - 6 / 7, abs=1e-4)


# -- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_of_text_and_json(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffHello\n\n  \nWhat is 1 + 1?\nHello\n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "p.txt"), None) == ["Hello", "What is 1 + 1?"]
    assert read_prompts(str(tmp_path / "p.txt"), 1) == ["Hello"]
    turns = [{"role": "user", "content": "Hi\u2028there"}, {"role": "assistant", "content": "Yes?"}]
    rows = [{"prompt": "One"}, {"prompt": turns[:1]}, {"messages": turns}, "Two", {"prompt": turns, "x": 1}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
    assert read_prompts(str(tmp_path / "p.jsonl"), None) == ["One", turns[:1], "Two"]
    assert as_conversations(["One", turns]) == [[{"role": "user", "content": "One"}], turns]


@pytest.mark.parametrize(
    "name, text, cure",
    [
        ("p.jsonl", '{"prompt": 3}\n', "line 1 holds no prompt: give it `prompt`"),
        ("p.jsonl", '{"prompt": "a"}\n{"question": "b"}\n', "line 2 holds no prompt"),
        ("p.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}\n', "line 1 holds no prompt"),
        ("p.jsonl", "Hello\n", "line 1 is no JSON: write an object a line, or name the file .txt"),
        ("p.txt", " \n", "holds no prompt: write one a line"),
        ("p.txt", b"\xff\xfe", "save it as UTF-8"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_what_is_no_prompt(tmp_path, name, text, cure):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=re.escape(cure)):
        read_prompts(str(tmp_path / name), None)


# -- blind sheets ---------------------------------------------------------------------------------------------------

ROWS = [(f"prompt {i}", f"base {i}", f"tuned {i}, longer") for i in range(9)] + [("same", "x\ud800", "x\ud800")]


def filled(sheet, winner):
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    for row in rows:
        row["winner"] = winner(row)
    sheet.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def sheet(tmp_path):
    assert write_sheet(ROWS, tmp_path / "ab.jsonl") == 9
    return tmp_path / "ab.jsonl"


def is_tuned(row, side):
    return row[side].startswith("tuned")


def test_a_sheet_does_not_say_whose_is_whose(sheet):
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    assert [set(row) for row in rows] == [{"id", "prompt", "a", "b", "winner"}] * 9
    assert {row["winner"] for row in rows} == {""}
    key = [json.loads(line) for line in key_path(sheet).read_text().splitlines()]
    assert key[-1] == {"id": "10", "identical": True}
    assert all(is_tuned(row, line["tuned"]) for row, line in zip(rows, key, strict=False))


def test_both_orders_come_up(tmp_path):
    write_sheet([(str(i), "base", "tuned") for i in range(200)], tmp_path / "ab.jsonl")
    first = [json.loads(line)["a"] == "tuned" for line in (tmp_path / "ab.jsonl").read_text().splitlines()]
    assert 60 < sum(first) < 140  # six standard deviations


def test_win_rate_by_hand(sheet):
    """Tuned wins rows 1 to 6, loses 7 and 8, ties 9; row 10 is identical: (6 + 2/2) / 10."""

    def winner(row):
        tuned = "a" if is_tuned(row, "a") else "b"
        number = int(row["id"])
        return "Tie " if number == 9 else tuned.upper() if number < 7 else {"a": "b", "b": "a"}[tuned]

    filled(sheet, winner)
    score = score_sheet(sheet)
    assert (score.wins, score.losses, score.ties, score.identical, score.rows) == (6, 2, 2, 1, 10)
    assert score.rate == 0.7
    # Wilson: centre (0.7 + 1.9207 / 10) / 1.38415, half-width 1.96 sqrt(0.021 + 3.8415 / 400) / 1.38415
    assert (score.low, score.high) == (pytest.approx(0.3968, abs=1e-4), pytest.approx(0.8922, abs=1e-4))
    assert score.longer == 6 / 8  # the tuned answers are the longer ones


def test_rows_that_cannot_be_counted_are_named(sheet):
    with pytest.raises(DataError, match="set `winner` to a, b or tie in rows 1, 2, 3, 4, 5 and 4 more"):
        score_sheet(sheet)
    rows = filled(sheet, lambda row: "c" if row["id"] == "4" else "a")
    with pytest.raises(DataError, match=r"set `winner` to a, b or tie in row 4\."):
        score_sheet(sheet)
    rows[3]["winner"] = "a"
    rows[0]["a"] += "!"
    rows[6]["id"] = "70"
    rows[8]["id"] = "8"
    sheet.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as refused:
        score_sheet(sheet)
    for words in (
        "put back rows 7, 9;", "keep only one of row 8;", "since it lacks row 70;", "as they were written in rows 1, 8."
    ):  # fmt: skip
        assert words in str(refused.value)


def test_files_of_a_sheet(sheet, tmp_path):
    with pytest.raises(DataError, match="exists, and may be filled already"):
        write_sheet(ROWS, sheet)
    with pytest.raises(DataError, match="name another file"):
        write_sheet(ROWS, sheet / "x.jsonl")
    key_path(sheet).unlink()
    with pytest.raises(DataError, match=r"there is no .*ab.key.jsonl: it must be the key"):
        score_sheet(sheet)
    key_path(sheet).write_text("")
    sheet.write_text("no JSON\n")
    with pytest.raises(DataError, match="line 1 is no JSON object"):
        score_sheet(sheet)
    sheet.write_text("")
    with pytest.raises(DataError, match="holds no row"):
        score_sheet(sheet)
