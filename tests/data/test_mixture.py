"""The list `datasets`: TRL's own mixtures row for row, local files, slices, shares of map-style rows and of streams."""

from collections import Counter

import pytest

from trl_plus.data.loading import DataRequest, load
from trl_plus.errors import DataError


def rows(n, word):
    return [{"prompt": f"{word} {i}", "chosen": "yes", "rejected": "no"} for i in range(n)]


def mixture(*entries, **keys):
    return DataRequest(paired_method=True, mixture=list(entries), **keys)


def prompts(dataset):
    return [row["prompt"] for row in dataset]


def words(dataset):
    return Counter(prompt.split()[0] for prompt in prompts(dataset))


@pytest.fixture
def folders(write):
    """Two folders, which TRL's get_dataset reads too."""
    return [str(write(f"{word}/train.jsonl", rows(n, word)).parent) for word, n in (("a", 30), ("b", 20))]


@pytest.mark.parametrize("fractions", [(None, None), (0.5, 0.5), (3, 1), (1, 0)])
def test_the_rows_are_those_of_trl(folders, fractions):
    from transformers import set_seed
    from trl import DatasetMixtureConfig, get_dataset

    entries = [{"path": path, "fraction": fraction} for path, fraction in zip(folders, fractions, strict=True)]
    data = load(mixture(*entries, mixture_test_size=0.2, seed=5))
    set_seed(5)
    wanted = get_dataset(DatasetMixtureConfig(datasets=entries, test_split_size=0.2))
    assert prompts(data.train) == prompts(wanted["train"])
    assert prompts(data.eval) == prompts(wanted["test"])


def test_what_each_entry_gave_is_said(folders):
    entries = [{"path": path, "fraction": fraction} for path, fraction in zip(folders, (0.2, 0.8), strict=True)]
    data = load(mixture(*entries))
    assert words(data.train) == {"a": 5, "b": 20}
    assert data.notes == [f"The mixture holds 5 of 30 rows of {folders[0]}, 20 of 20 rows of {folders[1]}."]


def test_local_files_and_slices(write):
    path = write("a.jsonl", rows(10, "a"))
    pairs = write("pairs_test.csv", rows(6, "t")).with_name("pairs")
    data = load(
        mixture(
            {"path": str(path), "split": "train[:3]", "columns": ["prompt", "chosen", "rejected"]},
            {"path": str(pairs), "split": "test[50%:]"},
        )
    )
    assert prompts(data.train) == ["a 0", "a 1", "a 2", "t 3", "t 4", "t 5"]


def test_a_stream_draws_by_shares(write):
    entries = [
        {"path": str(write("a.jsonl", rows(2000, "a"))), "fraction": 3},
        {"path": str(write("b.jsonl", rows(500, "b"))), "fraction": 1},
    ]
    data, again, other = (load(mixture(*entries, mixture_streaming=True, seed=seed)) for seed in (1, 1, 2))
    counts = words(data.train)
    assert prompts(data.train) == prompts(again.train) != prompts(other.train)
    assert counts["b"] == 500 or counts["a"] == 2000  # one of them has ended
    assert counts["a"] / counts["b"] == pytest.approx(3, rel=0.2)
    assert [p for p in prompts(data.train) if p[0] == "b"] == [f"b {i}" for i in range(counts["b"])]  # none twice
    assert "75.0%" in data.notes[0]
    assert "25.0%" in data.notes[0]


def test_a_share_of_zero_does_not_end_a_stream(write):
    entries = [
        {"path": str(write("a.jsonl", rows(5, "a"))), "fraction": 1},
        {"path": str(write("b.jsonl", rows(5, "b"))), "fraction": 0},
    ]
    assert words(load(mixture(*entries, mixture_streaming=True)).train) == {"a": 5}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kinds", [("jsonl", "parquet"), ("parquet", "parquet")])
def test_messages_and_columns_that_differ(write, streaming, kinds):
    ask, yes, no = ({"role": role, "content": role} for role in ("user", "assistant", "assistant"))
    named = {"prompt": [ask], "chosen": [{**yes, "name": "x"}], "rejected": [no], "weight": 2, "note": None}
    plain = {"rejected": [no], "chosen": [yes], "prompt": [dict(reversed(ask.items()))], "weight": 0.5, "note": "n"}
    entries = [
        {"path": str(write(f"{at}.{kind}", [row] * 2))}
        for at, kind, row in zip("ab", kinds, (named, plain), strict=True)
    ]
    rows = list(load(mixture(*entries, mixture_streaming=streaming)).train)
    assert [row["chosen"][0].get("name") for row in rows] == ["x", "x", None, None]
    assert [row["weight"] for row in rows] == [2, 2, 0.5, 0.5]
    assert [row["note"] for row in rows] == [None, None, "n", "n"]
    assert all(row["prompt"] == [ask] for row in rows)


@pytest.mark.parametrize(
    "fractions, words",
    [
        ((0.5, None), "for every entry"),
        ((-1, 2), "at least 0"),
        ((0, 0), "one of them above"),
        ((float("nan"), 1), "0"),
    ],
)
def test_fractions_refused(folders, fractions, words):
    entries = [{"path": path, "fraction": fraction} for path, fraction in zip(folders, fractions, strict=True)]
    with pytest.raises(DataError, match=words):
        load(mixture(*entries))


def test_refused(write, folders):
    path = str(write("a.jsonl", rows(4, "a")))
    with pytest.raises(DataError, match="has no split 'test': set `split` to train"):
        load(mixture({"path": path, "split": "test"}))
    with pytest.raises(DataError, match="remove `streaming`"):
        load(mixture({"path": path}, mixture_streaming=True, mixture_test_size=0.5))
    with pytest.raises(DataError, match="could not be loaded"):
        load(mixture({"path": "trl-plus-tests/no-such-dataset"}))
    other = str(write("c.jsonl", [{"prompt": ["x"], "chosen": "yes", "rejected": "no"}]))
    with pytest.raises(DataError, match=r"`prompt` is text in .*, but a list in .*c\.jsonl: give"):
        load(mixture({"path": path}, {"path": other}))


@pytest.mark.parametrize("streaming", [False, True])
def test_text_beside_messages_is_refused_by_column(write, streaming):
    message = [{"role": "assistant", "content": "a"}]
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}], [{"prompt": "q", "chosen": message, "rejected": message}]
    entries = [{"path": str(write(f"{index}.parquet", part))} for index, part in enumerate(rows)]
    with pytest.raises(
        DataError, match=r"`chosen` is text in .*0\.parquet, but a list in .*1\.parquet: give the entry"
    ):
        load(DataRequest(paired_method=True, mixture=entries, mixture_streaming=streaming))
