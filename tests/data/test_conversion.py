"""Converters in their surroundings: wrong shapes, late types, mixtures, held-out rows, and every row counted."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_plus.data.conversion import convert_rows
from trl_plus.data.converters import CONVERTERS, Unconvertible, WrongShape, convert, shape_of
from trl_plus.data.files import DataError
from trl_plus.data.loading import DataRequest, load, load_raw

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
        (HH, "ultrafeedback", True, "needs `prompt`: use `converter: hh`"),
        ({"instruction": "i", "output": "o"}, "alpaca", False, "needs `kto_tag` or `label`: rename the columns"),
        ({"text": "x"}, "openai", True, "docs/data.md"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "hh", True, "`chosen` must be text, but is a list of mes"),
        (PAIR, "hh", True, "remove `converter`"),
        ({**PAIR, "prompt": "q"}, "scores", True, "remove `converter`"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "sharegpt", True, "remove `converter`"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "argilla_", True, "no converter 'argilla_'"),
        ({"chosen": "q a", "rejected": "q b"}, "pairs_to_unpaired", False, "no column `prompt`"),
        (PAIR, "pairs_to_unpaired", True, "use `method: kto`"),
        ({**PAIR, "label": 1}, "pairs_to_unpaired", False, "`label` is a column that the converter would overwrite"),
        ({**SCORED, "scores": ["2", "1"]}, "scores", True, "`scores` must hold numbers, but holds '2'"),
        ({**SCORED, "scores": 2}, "scores", True, "`scores` must be a list, but is 2"),
        ({"input": "x", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "openai", True, "must be {mess"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "label": "yes"},
         "sharegpt", False, "`kto_tag` must be true or false, but is 'yes'"),
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
    assert train[2500]["chosen"][0]["tool_calls"] == call
    assert train[2500]["note"] == "late"
    assert train[0]["chosen"][0].get("tool_calls") is None


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
    assert load(request(write("rows.jsonl", [row] * 2), "openai")).train[0]["chosen"] == [answer]


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
    path = write("rows.jsonl", [PAIR] * 4)
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
    assert "(held-out): `converter: hh` made 1 rows of 1; left out" in data.notes[1]


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


# -- properties --------------------------------------------------------------------------------------------------------

TEXT = st.one_of(st.none(), st.sampled_from(["", "a", "b", "é\n\n", HH["chosen"], HH["rejected"], "\n\nHuman: a"]))
NUMBER = st.one_of(st.none(), st.sampled_from([0, 1, 2, 1.5, -1.0, float("nan")]))
TURNS = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "x"]), "value": TEXT}), max_size=4
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", None]), "content": TEXT}),
    max_size=3,
)
MAYBE = st.one_of(st.none(), MESSAGES)
SHAPES = {
    "ultrafeedback": [
        {"prompt": TEXT, "chosen": MAYBE, "rejected": MAYBE},
        {"instruction": TEXT, "completions": st.one_of(st.none(), st.lists(
            st.fixed_dictionaries({"response": TEXT, "overall_score": NUMBER, "fine-grained_score": NUMBER}),
            max_size=3))},
    ],
    "hh": [{"chosen": TEXT, "rejected": TEXT}],
    "sharegpt": [
        {"conversations": TURNS, "chosen": TURNS, "rejected": TURNS, "system": TEXT, "tools": TEXT},
        {"conversations": TURNS, "kto_tag": st.sampled_from([True, False, None])},
    ],
    "argilla": [
        {"chosen": MAYBE, "rejected": MAYBE, "chosen_rating": NUMBER, "rejected_rating": NUMBER},
        {"instruction": TEXT, "system": TEXT, "generations": st.lists(TEXT, max_size=3),
         "ratings": st.lists(NUMBER, max_size=3)},
    ],
    "openai": [
        {"input": st.fixed_dictionaries({"messages": MESSAGES}), "preferred_output": MAYBE,
         "non_preferred_output": MAYBE}
    ],
    "alpaca": [
        {"instruction": TEXT, "input": TEXT, "chosen": TEXT, "rejected": TEXT},
        {"instruction": TEXT, "output_1": TEXT, "output_2": TEXT, "preference": st.sampled_from([0, 1, 2, 1.5, None])},
    ],
    "pairs_to_unpaired": [
        {"prompt": MAYBE, "chosen": MAYBE, "rejected": MAYBE},
        {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT},
    ],
    "scores": [{"prompt": TEXT, "responses": st.lists(TEXT, max_size=3), "scores": st.lists(NUMBER, max_size=3)}],
}  # fmt: skip


def datasets_of(converter):
    return st.one_of(*(st.lists(st.fixed_dictionaries(shape), min_size=1, max_size=6) for shape in SHAPES[converter]))


@pytest.mark.parametrize("converter", sorted(CONVERTERS))
@pytest.mark.parametrize("paired", [False, True])
def test_no_row_vanishes_uncounted(converter, paired):
    """Of every row that a shape allows, rows come out, or it is one of those that the note counts."""
    if paired and converter == "pairs_to_unpaired":
        pytest.skip("refused with a method of pairs")

    @given(datasets_of(converter))
    def check(rows):
        from datasets import Dataset

        shape = shape_of(converter, list(rows[0]))
        numbered = [{**row, "row": index} for index, row in enumerate(rows)]
        good = set()
        for row in numbered:
            try:
                made = convert(shape, row, paired)
            except Unconvertible:
                continue
            good.add(row["row"])
            assert made
            assert all(new["row"] == row["row"] for new in made)
            assert len({tuple(new) for new in made}) == 1
        error = None
        try:
            out, notes = convert_rows(Dataset.from_list(numbered), converter, "data", paired)
        except DataError as raised:
            error = str(raised)
        if not good:
            assert error is not None
            return
        assert error is None
        assert set(out["row"]) == good
        left_out = len(rows) - len(good)
        assert f"made {len(out)} rows of {len(good)}" in notes[0]
        assert (f": {left_out} of {len(rows)} (" in notes[0]) == bool(left_out)

    check()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "response", "overall_score", "messages", "x"]), inner
        ),
    ),
    max_leaves=8,
)


@given(st.data())
def test_any_value_is_converted_or_refused_in_words(data):
    shape = data.draw(st.sampled_from([shape for shapes in CONVERTERS.values() for shape in shapes]))
    row = {names[0]: data.draw(JSON) for names in (*shape.needs, *shape.also)}
    paired = data.draw(st.booleans())
    try:
        columns = set(convert(shape, row, paired)[0])
    except (Unconvertible, WrongShape) as raised:
        said = str(raised)
    else:
        said = "converted"
        assert {"prompt", "chosen", "rejected"} <= columns or {"prompt", "completion", "label"} <= columns
    assert said
