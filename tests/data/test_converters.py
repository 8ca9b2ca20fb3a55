"""Each converter on rows of the real shape, awkward ones included: what comes out, and what is left out and said."""

import json
import logging
from pathlib import Path

import pytest

from trl_plus.data.converters import CONVERTERS, recognise
from trl_plus.data.loading import DataRequest, load
from trl_plus.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"


def case_of(entry):
    """(fixture, converter, whether the method takes pairs only, source row of each row that comes out, source row ->
    reason of each that does not, position -> whole row for some that come out). Messages are [role, content] there."""

    def value(part):
        pairs = isinstance(part, list) and part and isinstance(part[0], list)
        return [{"role": role, "content": content} for role, content in part] if pairs else part

    rows = {int(at): {name: value(part) for name, part in row.items()} for at, row in entry["rows"].items()}
    left_out = {int(row): why for row, why in entry["left_out"].items()}
    return entry["fixture"], entry["converter"], entry["paired"], entry["kept"], left_out, rows


CASES = [case_of(entry) for entry in json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))]
NAMES = [f"{fixture}-{'pairs' if paired else 'labelled'}" for fixture, _, paired, *_ in CASES]
every_case = pytest.mark.parametrize("fixture, converter, paired, kept, left_out, wanted", CASES, ids=NAMES)


def source(fixture):
    return [json.loads(line) for line in (FIXTURES / f"{fixture}.jsonl").read_text(encoding="utf-8").splitlines()]


def request(path, converter, paired, **keys):
    return DataRequest(paired_method=paired, name=str(path), converter=converter, row_column="row", **keys)


def bare(value):
    """A value without the nulls with which a table fills keys that other rows have; keys of a row stay."""
    if isinstance(value, dict):
        return {key: bare(part) for key, part in value.items() if part is not None}
    return [bare(part) for part in value] if isinstance(value, list) else value


def rows_of(dataset):
    return [{key: bare(value) for key, value in row.items()} for row in dataset]


@every_case
def test_rows(fixture, converter, paired, kept, left_out, wanted):
    data = load(request(FIXTURES / f"{fixture}.jsonl", converter, paired))
    rows = rows_of(data.train)
    assert [row.pop("row") for row in rows] == kept
    for position, row in wanted.items():
        assert rows[position] == row
    assert {*kept, *left_out} == set(range(len(source(fixture))))


@every_case
def test_what_is_left_out_is_said(fixture, converter, paired, kept, left_out, wanted):
    (note, *others) = load(request(FIXTURES / f"{fixture}.jsonl", converter, paired)).notes
    assert not others
    rows, good = len(source(fixture)), len(set(kept))
    into = f" into {len(kept)}" if len(kept) != good else ""
    assert f": {good} of {rows} rows converted{into}, {len(left_out)} left out: row " in note
    for row, why in list(left_out.items())[:3]:
        assert any(f"row {row}: " in part and why in part for part in note.split("; "))
    assert ("and 1 more" in note) == (len(left_out) == 4)


@every_case
def test_every_source_gives_the_same_rows(write, fixture, converter, paired, kept, left_out, wanted):
    plain = load(request(FIXTURES / f"{fixture}.jsonl", converter, paired))
    path = write(f"{fixture}.parquet", source(fixture))
    others = [
        load(request(FIXTURES / f"{fixture}.jsonl", converter, paired, streaming=True)),
        load(request(path, converter, paired)),
        load(request(path, converter, paired, streaming=True)),
        load(
            DataRequest(paired_method=paired, mixture=[{"path": str(path), "converter": converter}], row_column="row")
        ),
    ]
    for other in others:
        rows = rows_of(other.train)
        assert [{**row, "row_source": 0} for row in rows_of(plain.train)] == [{**row, "row_source": 0} for row in rows]
        assert other.format == plain.format


@every_case
def test_a_stream_warns_of_each_row_once(caplog, fixture, converter, paired, kept, left_out, wanted):
    with caplog.at_level(logging.WARNING, logger="trl_plus.data.conversion"):
        data = load(request(FIXTURES / f"{fixture}.jsonl", converter, paired, streaming=True))
        for _ in range(2):
            list(data.train)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == min(len(left_out), 3)
    for message, (row, why) in zip(said, left_out.items(), strict=False):
        assert f"leaves out row {row} " in message
        assert why in message


@every_case
def test_converted_rows_are_refused(write, fixture, converter, paired, kept, left_out, wanted):
    converted = load(DataRequest(paired_method=paired, name=str(FIXTURES / f"{fixture}.jsonl"), converter=converter))
    path = write("converted.jsonl", [dict(row) for row in converted.train])
    with pytest.raises(DataError, match="remove `converter`"):
        load(request(path, converter, paired))
    assert len(load(request(path, None, paired)).train) == len(kept)


@every_case
def test_rows_train(tmp_path, tiny_model_dir, tokenizer, fixture, converter, paired, kept, left_out, wanted):
    import trl_plus

    data = load(DataRequest(paired_method=paired, name=str(FIXTURES / f"{fixture}.jsonl"), converter=converter))
    config, trainer = (
        (trl_plus.SimPOConfig, trl_plus.SimPOTrainer) if paired else (trl_plus.KTOConfig, trl_plus.KTOTrainer)
    )
    args = config(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to=[],
        disable_tqdm=True, save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    trained = trainer(model=tiny_model_dir, args=args, train_dataset=data.train, processing_class=tokenizer)
    assert len(trained.train_dataset) == len(kept)
    assert trained.train().training_loss > 0


def test_every_converter_has_a_case():
    gathered = {name for name, shapes in CONVERTERS.items() if any(shape.gather for shape in shapes)}
    assert {converter for _, converter, *_ in CASES} == set(CONVERTERS) - gathered  # those have tests of their own


@pytest.mark.parametrize("fixture, converter", sorted({(f, c) for f, c, *_ in CASES if c != "pairs_to_unpaired"}))
def test_shapes_are_recognised(fixture, converter):
    assert recognise(source(fixture)[0], paired_method=False) == converter


# these the trainers take as they are, and transcripts without a prompt with a note
TAKEN = {"text_steps", "ultrafeedback_binarized", "argilla_mix", "pairs", "pairs_text"}
TEXT_PAIRS = {"hh"}


@pytest.mark.parametrize("fixture, converter, paired", sorted({case[:3] for case in CASES if case[0] not in TAKEN}))
def test_unconverted_rows_name_the_converter(write, fixture, converter, paired):
    path = write("first.jsonl", source(fixture)[:1])
    if fixture in TEXT_PAIRS:
        assert f"set `converter: {converter}`" in load(request(path, None, paired)).notes[0]
    else:
        with pytest.raises(DataError, match=f"set `converter: {converter}`"):
            load(request(path, None, paired))
