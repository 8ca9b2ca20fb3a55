"""Converters in their surroundings: wrong shapes, late types, mixtures, held-out rows, and every row counted."""

import json
import re

import pytest

from trl_plus.data.conversion import convert_rows
from trl_plus.data.loading import DataRequest, load, load_raw
from trl_plus.errors import DataError

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
SCORED = {"prompt": "q", "responses": ["a", "b"], "scores": [2, 1]}


def request(path, converter, paired=True, **keys):
    return DataRequest(paired_method=paired, name=str(path), converter=converter, **keys)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, converter, paired, words",
    [
        (SCORED, "sharegpt", True, "row 0 has the columns prompt, responses, scores, but `converter: sharegpt` needs"),
        (SCORED, "sharegpt", True, "use `converter: scores`"),
        (HH, "alpaca", True, "needs `instruction`: use `converter: hh`"),
        (
            {"q": "a", "good_answer": "b", "bad_answer": "c"},
            "text",
            True,
            "needs `prompt` or `question` or another of 13 names and `chosen` or `chosen_response` or another of 18",
        ),
        (HH, "ultrafeedback", True, "needs `prompt`: use `converter: hh`"),
        ({"instruction": "i", "output": "o"}, "alpaca", False, "needs `kto_tag` or `label`: rename the columns"),
        ({"instruction": "i", "output": ["a", "b", "c"]}, "alpaca", True, "`output` must be a list of two texts"),
        ({"instruction": "i", "output": "o"}, "alpaca", True, "needs `chosen` and `rejected`: rename the columns"),
        ({"text": "x"}, "openai", True, "docs/data.md"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "hh", True, "`chosen` must be text, but is a list of mes"),
        (PAIR, "hh", True, "remove `converter`"),
        ({**PAIR, "prompt": "q"}, "scores", True, "remove `converter`"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "sharegpt", True, "remove `converter`"),
        ({**PAIR, "conversations": [USER]}, "sharegpt", True, "only one of them can be the prompt"),
        ({"prompt": [USER], "completion": [GOOD], "label": True}, "sharegpt", False, "remove `converter`"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "argilla_", True, "no converter 'argilla_'"),
        ({"chosen": "q a", "rejected": "q b"}, "pairs_to_unpaired", False, "no column `prompt`"),
        (PAIR, "pairs_to_unpaired", True, "use `method: kto`"),
        ({**PAIR, "label": 1}, "pairs_to_unpaired", False, "`label` is a column that the converter would overwrite"),
        ({**SCORED, "scores": ["2", "1"]}, "scores", True, "`scores` must hold numbers, but holds '2'"),
        ({**SCORED, "scores": 2}, "scores", True, "`scores` must be a list, but is 2"),
        ({"input": "x", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "openai", True, "must be {mess"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "label": "yes"},
         "sharegpt", False, "`label` must be true or false, but is 'yes'"),
        ({"instruction": "i", "output_1": "a", "output_2": "b", "preference": 3}, "alpaca", True, "from 1 to 2"),
    ],
)  # fmt: skip
def test_wrong_shapes(write, row, converter, paired, words):
    with pytest.raises(DataError, match=re.escape(words)):
        load(request(write("rows.jsonl", [row, row]), converter, paired))


def test_the_row_is_named(write):
    rows = [{"preference": 1, "instruction": "i", "output_1": "a", "output_2": "b"} for _ in range(5)]
    path = write("rows.jsonl", [*rows, {**rows[0], "preference": 7}])
    for streaming in (False, True):
        with pytest.raises(DataError, match="row 5: `preference` must be a number from 1 to 2"):
            list(load(request(path, "alpaca", streaming=streaming)).train)


@pytest.mark.parametrize("streaming", [False, True])
def test_no_row_can_be_converted(write, streaming):
    path = write("rows.jsonl", [{**SCORED, "scores": [1, 1]}] * 3)
    with pytest.raises(DataError, match=r"can convert no row.*row 0: all completions have the same score, 1"):
        load(request(path, "scores", streaming=streaming))


# -- kinds of files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "folder/train.csv"])
def test_texts_of_other_files(write, name, streaming):
    path = write(name, [HH, {**HH, "chosen": "cut"}, HH])
    data = load(request(path.parent if "/" in name else path, "hh", streaming=streaming, row_column="row"))
    assert list(data.train) == [{"row": row, **PAIR} for row in (0, 2)]


# -- types that a first batch does not show ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_key_that_is_null_for_long(write, kind):
    call = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    plain = {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD], "note": None}
    late = {
        "prompt": "q", "note": "late", "rejected": [USER, BAD],
        "chosen": [USER, {"role": "assistant", "content": None, "tool_calls": call}, {"role": "tool", "content": "1"},
                   GOOD],
    }  # fmt: skip
    train = load(request(write(f"rows.{kind}", [plain] * 2500 + [late]), "ultrafeedback")).train
    assert train[2500]["chosen"][0] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    assert train[2500]["note"] == "late"
    assert train[0]["chosen"] == [GOOD]


def test_tools_of_many_kinds(write):
    tools = [[{"name": "f", "default": value}] for value in (1, "x", [2], {"a": None})]
    rows = [
        {"input": {"messages": [USER], "tools": tool}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
        for tool in tools
    ]
    train = load(request(write("rows.jsonl", rows), "openai")).train
    assert [json.loads(text)[0]["default"] for text in train["tools"]] == [1, "x", [2], {}]
    assert train[0]["prompt"] == [USER]


def test_content_in_parts(write):
    parts = {"role": "user", "content": [{"type": "text", "text": "q"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    other = {"role": "assistant", "content": [{"type": "text", "text": "b"}]}
    row = {"input": {"messages": [parts]}, "preferred_output": [answer], "non_preferred_output": [other]}
    assert load(request(write("rows.jsonl", [row] * 2), "openai")).train[0]["chosen"] == [
        {"role": "assistant", "content": "a"}
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("converter, paired", [("pairs_to_unpaired", False), ("ultrafeedback", True)])
def test_images_are_passed_on_as_they_are(converter, paired, streaming):
    import io

    import numpy as np
    from datasets import Dataset, Features, Image, List, Value
    from PIL import Image as Pillow

    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Pillow.fromarray(noise).save(file, "JPEG")  # to write it again would change it
    image = {"bytes": file.getvalue(), "path": None}
    message = List({"role": Value("string"), "content": Value("string")})
    features = Features(
        {"prompt": Value("string"), "chosen": message, "rejected": message, "images": List(Image(decode=False))}
    )
    row = {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD], "images": [image]}
    dataset = Dataset.from_list([row] * 2, features=features).cast_column("images", List(Image()))
    out, _ = convert_rows(dataset.to_iterable_dataset() if streaming else dataset, converter, "data", paired)
    assert out.features["images"] == List(Image())
    found = list(out.cast_column("images", List(Image(decode=False))))
    assert [row["images"] for row in found] == [[image]] * (2 if paired else 4)


# -- mixtures and held-out rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_of_shapes(write, streaming):
    entries = [
        {"path": str(write("a.jsonl", [HH] * 4)), "converter": "hh", "fraction": 0.5},
        {"path": str(write("b.jsonl", [SCORED] * 2)), "converter": "scores", "fraction": 0.25},
        {"path": str(write("c.jsonl", [PAIR] * 2)), "fraction": 0.25},
    ]
    data = load(DataRequest(paired_method=True, mixture=entries, mixture_streaming=streaming, row_column="row"))
    rows = list(data.train)
    assert all([row[side] for side in ("prompt", "chosen", "rejected")] == [[USER], [GOOD], [BAD]] for row in rows)
    assert [note.count("converter: ") for note in data.notes] == [1, 1, 0]
    if not streaming:
        assert [(row["row_source"], row["row"]) for row in rows] == [(0, i) for i in range(4)] + [
            (source, i) for source in (1, 2) for i in range(2)
        ]
        assert "4 of 4 rows of" in data.notes[-1]


@pytest.mark.parametrize("mixed", ["test_split_size", "eval_fraction", None])
def test_rows_of_one_source_row_stay_on_one_side(write, mixed):
    rows = [{**PAIR, "prompt": [{"role": "user", "content": str(i)}]} for i in range(40)]
    path = str(write("rows.jsonl", rows))
    entries = [{"path": path, "converter": "pairs_to_unpaired"}] * 2
    share = {"mixture_test_size": 0.25} if mixed == "test_split_size" else {"eval_fraction": 0.25}
    if mixed:
        wanted = DataRequest(paired_method=False, mixture=entries, row_column="row", **share)
    else:
        wanted = request(path, "pairs_to_unpaired", paired=False, row_column="row", **share)
    data = load(wanted)
    keys = [{(row.get("row_source"), row["row"]) for row in part} for part in (data.train, data.eval)]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == (80 if mixed else 40)
    assert len(data.eval) * 4 == len(data.train) + len(data.eval)
    assert not [name for name in data.train.column_names if "group" in name]
    assert load(wanted).eval["row"][:] == data.eval["row"][:]


def test_no_group_column_is_left(write):
    path = write("rows.jsonl", [{**PAIR, "prompt": [{"role": "user", "content": str(i)}]} for i in range(4)])
    for keys in ({"max_eval_rows": 0}, {}):
        raw = load_raw(request(path, "pairs_to_unpaired", paired=False, eval_fraction=0.5, **keys))
        data = load(raw.request)
        parts = [part for part in (data.train, data.eval) if part is not None]
        assert all(part.column_names == ["prompt", "completion", "label"] for part in parts)


def test_the_test_split_is_converted(write):
    write("train.jsonl", [HH] * 3)
    path = write("test.jsonl", [HH, {**HH, "chosen": None}]).parent
    data = load(request(path, "hh", row_column="row"))
    assert data.eval[:] == {"row": [0], "prompt": [[USER]], "chosen": [[GOOD]], "rejected": [[BAD]]}
    assert "(held-out): `converter: hh`: 1 of 2 rows converted, 1 left out: row 1" in data.notes[1]


def test_other_held_out_rows_may_need_no_conversion(write):
    train = write("a.jsonl", [HH] * 3)
    for rows in ([PAIR], [HH]):
        data = load(request(train, "hh", eval_name=str(write("b.jsonl", rows))))
        assert data.eval[0] == PAIR
        assert ("as they are" in data.notes[1]) == (rows == [PAIR])
    with pytest.raises(DataError, match="use `converter: scores`"):
        load(request(train, "hh", eval_name=str(write("b.jsonl", [SCORED]))))


def test_an_empty_dataset_is_left_as_it_is():
    from datasets import Dataset

    empty = Dataset.from_dict({"chosen": [], "rejected": []})
    assert convert_rows(empty, "hh", "data", True) == (empty, [])
