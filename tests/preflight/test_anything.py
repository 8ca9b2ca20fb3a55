"""Whatever stands in the rows, preflight looks at it or says why not; it never fails."""

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.preflight.toys import build_toy, open_toy, save_toy
from trl_plus.errors import DataError
from trl_plus.preflight.examine import Batch, examine
from trl_plus.preflight.rows import ROW, SOURCE_ROW, Kind, kind_of
from trl_plus.preflight.run import Extent, preflight
from trl_plus.preflight.target import Target

TEXTS = st.one_of(
    st.text(st.characters(), max_size=12),  # lone surrogates among them
    st.sampled_from(["", " ", "\x00", "\ud800", "a" * 300, "<|im_end|>", "\n\nHuman: a\n\nAssistant: b", "Ã©", "😀"]),
)
NUMBERS = st.one_of(st.integers(-(2**80), 2**80), st.floats(), st.booleans(), st.none())
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "human", "", None, 3])
JSON = st.recursive(st.one_of(NUMBERS, TEXTS), lambda inner: st.lists(inner, max_size=3), max_leaves=6)
MESSAGES = st.fixed_dictionaries(
    {}, optional={"role": ROLES, "content": st.one_of(TEXTS, JSON), "tool_calls": JSON, "reasoning_content": JSON}
)
SPOKEN = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXTS}), max_size=4)
SIDES = st.one_of(
    TEXTS,
    JSON,
    st.lists(MESSAGES, max_size=4),
    SPOKEN,
    SPOKEN.map(lambda s: [*s, {"role": "assistant", "content": "x"}]),
)
PAIRED = st.fixed_dictionaries(
    {"chosen": SIDES, "rejected": SIDES}, optional={"prompt": SIDES, "score_chosen": JSON, "score_rejected": JSON,
                                                    "weight": JSON, "tools": JSON, "images": JSON,
                                                    "chat_template_kwargs": JSON}
)  # fmt: skip
LABELLED = st.fixed_dictionaries({"completion": SIDES, "label": JSON}, optional={"prompt": SIDES, "weight": JSON})
KINDS = [
    Kind(sides, conversational, prompt)
    for sides in (("chosen", "rejected"), ("completion",))
    for conversational in (True, False)
    for prompt in (True, False)
    if len(sides) == 2 or conversational or prompt
]


def numbered(rows):
    return [{**row, ROW: number, SOURCE_ROW: number} for number, row in enumerate(rows)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_of_any_content_are_examined(kind, data):
    rows = data.draw(st.lists(PAIRED if kind.paired else LABELLED, min_size=1, max_size=6))
    tally = examine(Batch("train", numbered(rows)), Target(kind, "dpo" if kind.paired else "kto", kind.paired))
    assert tally.rows == len(rows)
    for code, found in tally.found.items():
        assert found.count <= found.checked <= len(rows), code


@settings(max_examples=150, deadline=None)
@given(row=st.one_of(PAIRED, LABELLED, st.dictionaries(TEXTS, JSON, max_size=4)))
def test_the_kind_of_any_row(row):
    kind = kind_of(row)
    assert kind is None or set(kind.sides) <= set(row)


# what a file can hold: JSON without surrogates and numbers beyond 64 bits
CLEAN = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool", "gpt"]), "content": CLEAN}),
    max_size=3,
)
ANY_SIDE = st.one_of(CLEAN, st.none(), TURNS, TURNS.map(lambda turns: [*turns, {"role": "assistant", "content": "x"}]))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy"), build_toy())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries({"chosen": ANY_SIDE, "rejected": ANY_SIDE}, optional={"prompt": ANY_SIDE}),
        min_size=1,
        max_size=5,
    ),
    method=st.sampled_from(["dpo", "kto"]),
)
def test_files_of_any_rows_are_looked_at_or_refused_in_words(rows, method, toy, tmp_path):
    from tests.preflight.corpus import write

    path = write(rows, tmp_path / "rows.jsonl")
    with suppress(DataError):  # no row can be read at all
        result = preflight(open_toy(toy, str(path), method, max_length=40), Extent(rows=None))
        assert all(finding.sentence and finding.cure for finding in result.findings)
