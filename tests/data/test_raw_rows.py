"""Rows before they are checked, and which row of the source each of them is."""

import pytest

from trl_plus.data.loading import DataRequest, finish, hold_out, load, load_raw
from trl_plus.errors import DataError

KINDS = ["jsonl", "csv", "parquet"]


def rows(n, start=0):
    return [{"prompt": f"p{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(start, start + n)]


def request(name=None, **keys):
    return DataRequest(paired_method=True, name=name and str(name), row_column="row", **keys)


def numbered(dataset, *columns):
    """(number in the prompt, row, ...) of each row."""
    return [(int(row["prompt"][1:]), *(row[column] for column in ("row", *columns))) for row in dataset]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_numbered(write, kind, streaming):
    write(f"train.{kind}", rows(5))
    path = write(f"test.{kind}", rows(3, 10)).parent
    data = load(request(path, streaming=streaming, max_eval_rows=2))
    assert [(prompt, row) for prompt, row in numbered(data.train)] == [(i, i) for i in range(5)]
    assert len(list(data.eval)) == 2
    assert all(prompt == 10 + row for prompt, row in numbered(data.eval))
    if not streaming:
        assert data.train.features["row"].dtype == "int64"


def test_numbers_survive_holding_out(write):
    data = load(request(write("rows.jsonl", rows(20)), eval_fraction=0.25))
    found = numbered(data.train) + numbered(data.eval)
    assert all(prompt == row for prompt, row in found)
    assert sorted(row for _, row in found) == list(range(20))
    assert [row for _, row in numbered(data.train)] != sorted(row for _, row in numbered(data.train))


def test_no_numbers_unless_asked_for(write):
    path = str(write("rows.jsonl", rows(2)))
    assert load(DataRequest(paired_method=True, name=path)).train.column_names == ["prompt", "chosen", "rejected"]


def test_a_column_of_that_name(write):
    path = write("rows.jsonl", [{**row, "row": 1} for row in rows(2)])
    with pytest.raises(DataError, match="has a column `row` of its own"):
        load(request(path))


def test_raw_rows_are_not_refused(write):
    faulty = [*rows(3), {"prompt": "p3", "chosen": None, "rejected": "no"}]
    raw = load_raw(request(write("rows.jsonl", faulty)))
    assert raw.train["chosen"][3] is None
    assert raw.eval is None
    with pytest.raises(DataError, match="`chosen` of row 3"):
        finish(raw)


def test_raw_rows_are_held_out_like_prepared_ones(write):
    wanted = request(write("rows.jsonl", rows(20)), eval_fraction=0.5, max_eval_rows=4)
    raw, data = hold_out(load_raw(wanted)), load(wanted)
    assert numbered(raw.train) == numbered(data.train)
    assert numbered(raw.eval) == numbered(data.eval)
    assert len(data.eval) == 4
    again = finish(raw)
    assert numbered(again.eval) == numbered(data.eval)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_mixture(write, streaming):
    entries = [{"path": str(write("a.jsonl", rows(3)))}, {"path": str(write("b.jsonl", rows(2, 10)))}]
    data = load(request(mixture=entries, mixture_streaming=streaming))
    wanted = [(0, 0, 0), (1, 1, 0), (2, 2, 0), (10, 0, 1), (11, 1, 1)]
    assert numbered(data.train, "row_source") == wanted
