"""Local files to splits, formats by their columns, held-out rows, and one sentence for whatever cannot be read."""

import re

import pytest
from datasets import Dataset, concatenate_datasets

from trl_plus.data.files import is_local, split_files
from trl_plus.data.formats import detect, prepare
from trl_plus.data.loading import DataRequest, load
from trl_plus.data.numbering import split_groups
from trl_plus.data.reading import first_line
from trl_plus.errors import DataError

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
TEXT_PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
LABELLED = {"prompt": [USER], "completion": [GOOD], "label": True}


def request(name, paired=True, **keys):
    return DataRequest(paired_method=paired, name=str(name), **keys)


# -- files and splits --------------------------------------------------------------------------------------------------


def test_splits_of_files(write, tmp_path):
    for name in ("pairs_train.jsonl", "pairs_test.jsonl", "other_train.jsonl"):
        write(name, [PAIR])
    assert set(split_files(str(tmp_path / "pairs"))) == {"train", "test"}
    assert set(split_files(str(tmp_path / "other"))) == {"train"}
    assert set(split_files(str(tmp_path / "pairs_test.jsonl"))) == {"train"}
    with pytest.raises(DataError, match="several datasets"):
        split_files(str(tmp_path))
    write("shards/part-0.jsonl", [PAIR])
    write("shards/part-1.jsonl", [PAIR])
    assert len(split_files(str(tmp_path / "shards"))["train"]) == 2
    assert not is_local("org/data")


def test_test_split_is_held_out(write, tmp_path):
    write("train.jsonl", [PAIR] * 6)
    write("test.jsonl", [PAIR] * 3)
    data = load(request(tmp_path))
    assert (len(data.train), len(data.eval)) == (6, 3)
    assert load(request(tmp_path, max_eval_rows=0)).eval is None
    assert len(load(request(tmp_path, max_eval_rows=2)).eval) == 2
    with pytest.raises(DataError, match=r"set `dataset_test_split` to test or train|to train or test"):
        load(request(tmp_path, test_split="held", test_split_required=True))
    with pytest.raises(DataError, match="no split 'learn'"):
        load(request(tmp_path, train_split="learn"))


def test_eval_fraction_is_seeded(write):
    path = write("rows.jsonl", [{**TEXT_PAIR, "prompt": str(i)} for i in range(20)])
    first, again = (load(request(path, eval_fraction=0.25, seed=3)) for _ in range(2))
    assert first.eval["prompt"] == again.eval["prompt"]
    assert (len(first.train), len(first.eval)) == (15, 5)
    assert not set(first.train["prompt"]) & set(first.eval["prompt"])
    assert load(request(path)).eval is None


@pytest.mark.parametrize("prompt", [str, lambda i: [{"role": "user", "content": str(i)}]], ids=["text", "messages"])
def test_no_prompt_is_trained_on_and_held_out(write, prompt):
    """Several answers to a prompt are common: split by rows, held-out figures would say what was memorised."""
    pair = TEXT_PAIR if prompt is str else PAIR
    rows = [{**pair, "prompt": prompt(i % 8)} for i in range(24)]
    data = load(request(write("rows.jsonl", rows), eval_fraction=0.25, seed=3))
    assert (len(data.train), len(data.eval)) == (18, 6)  # six prompts and two: here the share is met
    assert not set(map(repr, data.train["prompt"])) & set(map(repr, data.eval["prompt"]))


def test_a_repeated_prompt_moves_its_own_rows_only(write):
    """The draw of the other rows stays as it is: a seed means the same rows whatever else the data repeats."""
    rows = [{**TEXT_PAIR, "prompt": str(i)} for i in range(40)]
    plain = load(request(write("plain.jsonl", rows), eval_fraction=0.25, seed=3))
    rows[7] = {**rows[7], "prompt": "3"}
    again = load(request(write("again.jsonl", rows), eval_fraction=0.25, seed=3))
    assert set(plain.eval["prompt"]) ^ set(again.eval["prompt"]) <= {"3", "7"}
    assert not set(again.train["prompt"]) & set(again.eval["prompt"])


def test_one_prompt_cannot_be_parted(write):
    with pytest.raises(DataError, match="The 9 rows have one prompt"):
        load(request(write("rows.jsonl", [PAIR] * 9), eval_fraction=0.25))


def test_rows_that_share_a_prompt_or_a_source_stay_together():
    rows = Dataset.from_dict({"prompt": list("abcdefgh"), "_source_group": [0, 0, 1, 1, 2, 2, 3, 3]})
    rows = concatenate_datasets([rows, Dataset.from_dict({"prompt": ["b", "h"], "_source_group": [4, 4]})])
    for seed in range(20):  # sources 0, 3 and 4 are one group: 4 holds a prompt of either
        train, held_out = split_groups(rows, 0.4, seed)
        sides = [set(part["prompt"]) for part in (train, held_out)]
        assert sum(len(side) for side in sides) == 8
        assert any(set("abgh") <= side for side in sides)
        assert len(train) + len(held_out) == 10


def test_eval_dataset(write):
    train, held_out = write("a.jsonl", [PAIR] * 2), write("b.jsonl", [PAIR])
    assert len(load(request(train, eval_name=str(held_out))).eval) == 1
    labelled = write("c.jsonl", [LABELLED])
    with pytest.raises(DataError, match="use one kind"):
        load(request(train, paired=False, eval_name=str(labelled)))


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_kinds_of_files(tmp_path, kind):
    from datasets import Dataset

    path = tmp_path / f"rows.{kind}"
    getattr(Dataset.from_list([TEXT_PAIR] * 4), f"to_{kind}")(str(path))
    assert len(load(request(path)).train) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_words_for_nothing_stay_text_in_csv(write, streaming):
    path = write("rows.csv", "prompt,chosen,rejected\nNA,None,null\nnan,NaN,n/a\n")
    rows = list(load(request(path, streaming=streaming)).train)
    assert [tuple(row.values()) for row in rows] == [("NA", "None", "null"), ("nan", "NaN", "n/a")]


@pytest.mark.parametrize("suffix, mark", [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
def test_separators_of_csv(tmp_path, suffix, mark):
    """Spreadsheets of many countries write semicolons. A comma in a text does not make it another file."""
    text = f'prompt{mark}chosen{mark}rejected\nHi{mark}"Hello, you; there."{mark}What?\n'
    (tmp_path / f"a.{suffix}").write_text(text, encoding="utf-8")
    rows = load(request(tmp_path / f"a.{suffix}")).train
    assert [rows[0][name] for name in ("prompt", "chosen", "rejected")] == ["Hi", "Hello, you; there.", "What?"]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"prompt,chosen,rejected\nHi,Hello,you,What?\n", "line 2 has 4 values, but the header names 3 columns"),
        (b"prompt,chosen,rejected\nHi,a,b\nHi,Hello,you,What?\n", "line 3 has 4 values"),
        ("prompt,chosen,rejected\nHi,Grüße,What?\n".encode("cp1252"), "line 2 is not UTF-8: save the file as UTF-8"),
        ("prompt,chosen,rejected\nHi,Grüße,What?\n".encode("utf-16"), "line 1 is not UTF-8: save the file as UTF-8"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, data, words):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(DataError, match=words):
        load(request(tmp_path / "a.csv"))


def test_empty_cells_of_csv_are_null(write):
    path = write("rows.csv", "prompt,chosen,rejected,weight\nq,a,b,1\nq,,b,2\n")
    with pytest.raises(DataError, match=r"`chosen` of row 1 of .* is null"):
        load(request(path))
    path = write("weights.csv", "prompt,chosen,rejected,weight\nq,a,b,1\nq,a,b,\n")
    with pytest.raises(DataError, match="`weight` of row 1"):
        load(request(path))


def test_streaming(write):
    path = write("rows.jsonl", [PAIR] * 3)
    data = load(request(path, streaming=True))
    assert next(iter(data.train))["chosen"] == [GOOD]
    with pytest.raises(DataError, match="remove `dataset_streaming`"):
        load(request(path, streaming=True, eval_fraction=0.5))


# -- what cannot be read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ("a.jsonl", "", "is empty"),
        (
            "a.jsonl",
            '{"chosen": "a", "rejected": "b"}\n{"chosen": [1], "rejected": "b"}\n',
            "`chosen` of row 1 of",
        ),
        ("a.txt", "x", "its name must end in"),
        (
            "a.jsonl",
            '{"question": "a", "answer": "b"}\n',
            "has the columns question, answer, but the method needs pairs",
        ),
        ("a.jsonl", '{"conversations": [], "label": true}\n', "set `converter: sharegpt`"),
    ],
)
def test_unreadable(write, name, text, words):
    with pytest.raises(DataError, match=words):
        load(request(write(name, text)))


@pytest.mark.parametrize(
    "other, words",
    [
        ({"prompt": "q", "good": "a", "bad": "b"}, "b.jsonl has the columns prompt, good, bad, but "),
        ({"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, "`chosen` is text in "),
    ],
)
def test_files_that_do_not_fit_together(write, other, words):
    write("both/a.jsonl", [TEXT_PAIR] * 3)
    path = write("both/b.jsonl", [other] * 3)
    with pytest.raises(DataError, match=re.escape(words)) as error:
        load(request(path.parent))
    assert "both/a.jsonl" in str(error.value)
    assert "make each file an entry of `datasets`, with a `converter`" in str(error.value)


def test_a_failed_cast_names_both_types():
    assert first_line(TypeError("Couldn't cast array of type\nstruct<a: int>\nto\nstring")) == (
        "Couldn't cast array of type struct<a: int> to string"
    )
    assert first_line(ValueError("one\ntwo")) == "one"


def test_missing(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load(request(tmp_path / "none.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no file ending in"):
        load(request(tmp_path / "empty"))


def test_hub_failure_is_one_sentence():
    with pytest.raises(DataError, match="could not be loaded from the hub"):
        load(request("trl-plus-tests/no-such-dataset"))


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, words",
    [
        (PAIR, "conversational pairs, explicit prompt"),
        (TEXT_PAIR, "text pairs, explicit prompt"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "conversational pairs, implicit prompt"),
        ({"chosen": "q a", "rejected": "q b"}, "text pairs, implicit prompt"),
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "conversational pairs, text prompt"),
        (LABELLED, "conversational labelled completions, explicit prompt"),
        ({"prompt": "q", "completion": "a", "label": False}, "text labelled completions, explicit prompt"),
    ],
)
def test_formats(row, words):
    assert str(detect(row, "data", paired_method=False)) == words


@pytest.mark.parametrize(
    "row, words",
    [
        (LABELLED, "use `method: kto`"),
        ({"prompt": "q", "completion": "a"}, "rename the columns"),
        ({"prompt": [USER], "chosen": "a", "rejected": "b"}, "a conversation but `chosen` is text"),
        ({"prompt": "q", "chosen": [GOOD], "rejected": "b"}, "use one kind"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "must be text or a list"),
        ({"chosen": [{"from": "human", "value": "q"}], "rejected": [{"from": "human", "value": "q"}]}, "`role` and"),
    ],
)
def test_formats_refused(row, words):
    with pytest.raises(DataError, match=words):
        detect(row, "data", paired_method=True)


@pytest.mark.parametrize(
    "columns, words",
    [
        (["prompt;chosen;rejected"], "separated by semicolons"),
        (["prompt\tchosen\trejected"], "separated by tabs"),
        (["Prompt", "Chosen ", "rejected"], "rename `Prompt` to `prompt`, `Chosen ` to `chosen`."),
        (["a;b", "c"], "rename the columns"),
        (["a", "__index_level_0__", "_row", "_row_source", "_source_group", "_id"], "the columns a, _id, but"),
    ],
)
def test_columns_refused(columns, words):
    with pytest.raises(DataError, match=re.escape(words)):
        detect(dict.fromkeys(columns, "x"), "data", paired_method=True)


def test_text_prompt_beside_conversations():
    from datasets import Dataset

    whole = {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    dataset, _, notes = prepare(Dataset.from_list([whole] * 2), "data", paired_method=True)
    assert dataset.column_names == ["chosen", "rejected"]
    assert len(notes) == 1
    answers = {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}
    dataset, _, _ = prepare(Dataset.from_list([answers]), "data", paired_method=True)
    assert dataset[0]["prompt"] == [{"content": "q", "role": "user"}]


@pytest.mark.parametrize(
    "labels, words", [(["true", "false"], "got 'true', 'false'"), ([1, -1], "got 1, -1"), ([0.5], "0.5")]
)
def test_labels_refused(labels, words):
    from datasets import Dataset

    rows = [{"prompt": "q", "completion": "a", "label": label} for label in labels]
    with pytest.raises(DataError, match=words):
        prepare(Dataset.from_list(rows), "data", paired_method=False)


def test_labels_of_zero_and_one():
    from datasets import Dataset

    rows = [{"prompt": "q", "completion": "a", "label": label} for label in (1, 0)]
    dataset, _, notes = prepare(Dataset.from_list(rows), "data", paired_method=False)
    assert dataset["label"][:] == [True, False]
    assert len(notes) == 1


def test_long_texts_of_csv(tmp_path):
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected\nHi,{'long ' * 50_000},What?\n", encoding="utf-8")
    assert len(load(request(tmp_path / "a.csv")).train[0]["chosen"]) == 250_000
