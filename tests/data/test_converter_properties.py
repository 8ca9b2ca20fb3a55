"""Whatever a row holds: rows come out of it, or it is counted, or the converter says what is wrong."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trl_plus.data.conversion import convert_rows
from trl_plus.data.converters import CONVERTERS, Unconvertible, WrongShape, convert, shape_of
from trl_plus.errors import DataError

FIRST, SECOND = "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b"
TEXT = st.one_of(st.none(), st.sampled_from(["", "a", "b", "é\n\n", FIRST, SECOND, "\n\nHuman: a"]))
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
    "text": [
        {"question": TEXT, "chosen": TEXT, "rejected": TEXT, "system": TEXT, "context": TEXT},
        {"prompt": TEXT, "response_j": TEXT, "response_k": TEXT, "initial_reason_steps": TEXT},
        {"question": TEXT, "chosen": st.lists(st.sampled_from(["a", "b"]), max_size=3),
         "rejected": st.lists(st.sampled_from(["c"]), max_size=2)},
    ],
    "messages": [
        {"messages": MAYBE, "rejected_messages": MAYBE, "system": TEXT},
        {"messages": MAYBE, "rejected_response": TEXT},
        {"messages": MAYBE, "label": st.sampled_from([True, False, None])},
        {"messages": MAYBE, "chosen": TEXT, "rejected": TEXT},
    ],
    "preference": [
        {"prompt": TEXT, "response_0": TEXT, "response_1": TEXT, "better_response_id": st.sampled_from([0, 1, None])},
        {"conversation_a": MAYBE, "conversation_b": MAYBE, "winner": st.sampled_from(["model_a", "model_b", "tie"])},
        {"question": TEXT, "answer_0": TEXT, "answer_1": TEXT, "score_0": NUMBER, "score_1": NUMBER},
        {"prompt": TEXT, "response_1": TEXT, "response_2": TEXT, "preference_strength": st.sampled_from([-2, 0, 1])},
    ],
    "scores": [{"prompt": TEXT, "responses": st.lists(TEXT, max_size=3), "scores": st.lists(NUMBER, max_size=3)}],
}  # fmt: skip


def datasets_of(converter):
    return st.one_of(*(st.lists(st.fixed_dictionaries(shape), min_size=1, max_size=6) for shape in SHAPES[converter]))


@pytest.mark.parametrize(
    "converter, paired",
    # a method of pairs refuses pairs_to_unpaired
    [
        (name, paired)
        for name in sorted(CONVERTERS)
        for paired in (False, True)
        if (name, paired) != ("pairs_to_unpaired", True) and not any(shape.gather for shape in CONVERTERS[name])
    ],
)
def test_no_row_vanishes_uncounted(converter, paired):
    """Of every row that a shape allows, rows come out, or it is one of those that the note counts."""

    @settings(deadline=None)
    @given(datasets_of(converter))
    def check(rows):
        from datasets import Dataset

        shape = shape_of(converter, list(rows[0]))
        field, refuse = shape.refuse or (None, None)
        column = (shape.columns(list(rows[0])) or {}).get(field)
        assume(field is None or refuse([row[column] for row in rows]) is None)
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
        assert f": {len(good)} of {len(rows)} rows converted" in notes[0]
        assert (f" into {len(out)}" in notes[0]) == (len(out) != len(good))
        assert (f", {left_out} left out: row " in notes[0]) == bool(left_out)

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
