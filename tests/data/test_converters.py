"""Each converter on rows of the real shape, awkward ones included: what comes out, and what is left out and said."""

import json
import logging
from pathlib import Path

import pytest

from trl_plus.data.converters import CONVERTERS, recognise
from trl_plus.data.files import DataError
from trl_plus.data.loading import DataRequest, load

FIXTURES = Path(__file__).parent / "fixtures"


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


# fixture, converter, whether the method takes pairs only, the source row of each row that comes out, the reason why
# each other row does not, and rows that come out, by position: (prompt, sides or label, other columns)
CASES = [
    (
        "ultrafeedback_binarized", "ultrafeedback", True, [0, 1, 2, 4],
        {3: "ends with a 'user' message", 5: "`chosen` is null"},
        {
            1: {
                "prompt": [system("Antworte kurz."), user("Grüße auf Japanisch?")],
                "chosen": [assistant("こんにちは 👋")], "rejected": [assistant("Hallo.")],
                "prompt_id": "0001", "score_chosen": 7.0, "score_rejected": 6.5,
            },
            2: {
                "prompt": [user("Hi"), assistant("Hello. What can I do?"), user("Add 2 and 2.")],
                "chosen": [assistant("4")], "rejected": [assistant("5")],
                "prompt_id": "0002", "score_chosen": 9.0, "score_rejected": 1.0,
            },
        },
    ),
    (
        "ultrafeedback_original", "ultrafeedback", True, [0, 2],
        {1: "the same score, 3", 3: "fewer than two", 4: "fewer than two"},
        {
            0: {  # the mean of the aspects decides, not the overall score
                "prompt": [user("Write a haiku.")], "chosen": [assistant("Frost, and a lone kite")],
                "rejected": [assistant("Haiku haiku")], "score_chosen": 4.5, "score_rejected": 1.5, "source": "evol",
                "models": ["a", "b", "c"], "correct_answers": ["None"], "incorrect_answers": ["None"],
            },
            1: {  # no mean there
                "prompt": [user("Translate 'Straße'.")], "chosen": [assistant("street")],
                "rejected": [assistant("straw")], "score_chosen": 9.0, "score_rejected": 2.0, "source": "flan",
                "models": ["a", "b"], "correct_answers": ["None"], "incorrect_answers": ["None"],
            },
        },
    ),
    (
        "hh", "hh", True, [0, 1, 3, 7],
        {
            2: "`chosen` ends with a 'user' message", 4: "turn 1 of `chosen` is Human's", 5: "does not begin with",
            6: "`chosen` is null",
        },
        {
            1: {
                "prompt": [user("Hi"), assistant("Hello."), user("Why is the sky blue?")],
                "chosen": [assistant("Light scatters.\n\nShort waves most.")], "rejected": [assistant("Paint.")],
            },
            2: {
                "prompt": [user("¿Qué?")], "chosen": [assistant("Nada — «nada».")], "rejected": [assistant("")],
            },
            3: {  # different histories: each side keeps its own in front of the answer
                "prompt": [user("Hi")],
                "chosen": [assistant("Hello."), user("Go on"), assistant("I do")],
                "rejected": [assistant("Hullo."), user("Go on"), assistant("I stop")],
            },
        },
    ),
    (
        "sharegpt_pairs", "sharegpt", True, [0, 1, 2],
        {3: "is from 'narrator'", 4: "message 0 of `conversations` has no value", 5: "`rejected` is null"},
        {
            0: {
                "prompt": [system("Be brief."), user("Name a tree.")], "chosen": [assistant("Elm.")],
                "rejected": [assistant("Rock.")], "tools": None, "id": "x1",
            },
            1: {
                "prompt": [system("You speak French."), user("Bonjour"), assistant("Salut !"), user("Ça va ?")],
                "chosen": [assistant("Oui, merci.")], "rejected": [assistant("Yes.")], "tools": None, "id": "x1",
            },
        },
    ),
    (
        "sharegpt_labelled", "sharegpt", False, [0, 1, 2],
        {3: "ends with a 'user' message", 4: "`kto_tag` is null", 5: "`conversations` is empty"},
        {
            1: {"prompt": [user("Hi")], "completion": [assistant("What?")], "label": False},
            2: {
                "prompt": [system("Rhyme."), user("cat"), assistant("hat"), user("dog")],
                "completion": [assistant("log")], "label": True,
            },
        },
    ),
    (
        "argilla_mix", "argilla", True, [0, 1], {2: "no first turn in common", 3: "`rejected` is empty"},
        {
            1: {
                "prompt": [system("Sea-man."), user("Ahoy"), assistant("Ahoy!"), user("Where to?")],
                "chosen": [assistant("Port 🚢")], "rejected": [assistant("Home")], "score_chosen": 4.5,
                "score_rejected": None, "dataset": "capybara", "chosen_model": "a", "rejected_model": "b",
            }
        },
    ),
    (
        "argilla_texts", "argilla", True, [0, 1], {2: "`prompt` is null"},
        {
            0: {
                "prompt": [system("Be exact."), user("Capital of Chad?")], "chosen": [assistant("N'Djamena")],
                "rejected": [assistant("Paris")], "generations": ["N'Djamena", "Paris"], "rating": [9.0, 1.0],
                "status": "unchanged", "score_chosen": 9.0, "score_rejected": 1.0,
            }
        },
    ),
    (
        "argilla_generations", "argilla", True, [0, 1],
        {2: "fewer than two", 3: "the same score, 3", 4: "1 completions but 2 scores"},
        {
            0: {
                "prompt": [user("Name a fruit.")], "chosen": [assistant("Fig")], "rejected": [assistant("Brick")],
                "score_chosen": 5.0, "score_rejected": 1.0, "model_name": "m",
            },
            1: {
                "prompt": [user("Name a metal.")], "chosen": [assistant("Zinc")], "rejected": [assistant("Wood")],
                "score_chosen": 4.0, "score_rejected": 1.0, "model_name": "m",
            },
        },
    ),
    (
        "openai", "openai", True, [0, 1], {2: "`preferred_output` is empty", 3: "ends with a 'user' message"},
        {
            0: {
                "prompt": [user("How cold is Oslo?")], "chosen": [assistant("Around -5 °C in January.")],
                "rejected": [assistant("Cold.")], "tools": None,
            }
        },
    ),
    (
        "alpaca_pairs", "alpaca", True, [0, 1, 2], {3: "`instruction` is null", 4: "`rejected` is null"},
        {
            0: {
                "prompt": [system("You translate."), user("Translate to German.\nsea")],
                "chosen": [assistant("See")], "rejected": [assistant("Lake")],
            },
            1: {
                "prompt": [user("Translate 'sea'."), assistant("See"), user("And 'garden'?")],
                "chosen": [assistant("Garten")], "rejected": [assistant("Garden")],
            },
        },
    ),
    (
        "alpaca_preference", "alpaca", True, [0, 1], {2: "is a draw", 3: "`preference` is null"},
        {
            0: {
                "prompt": [user("Rhyme on cat.")], "chosen": [assistant("hat")], "rejected": [assistant("dog")],
                "raw_preference": 1,
            },
            1: {
                "prompt": [user("Rhyme on log.\none word")], "chosen": [assistant("fog")],
                "rejected": [assistant("cat")], "raw_preference": 4,
            },
        },
    ),
    (
        "alpaca_labelled", "alpaca", False, [0, 1], {2: "`output` is null"},
        {1: {"prompt": [user("Add.\n2 3")], "completion": [assistant("6")], "label": False, "weight": 1.0}},
    ),
    (
        "pairs", "pairs_to_unpaired", False, [0, 0, 1, 1], {2: "ends with a 'user' message"},
        {
            2: {
                "prompt": [system("Kind."), user("Hi"), assistant("Yes?"), user("Bye")],
                "completion": [assistant("Bye 👋")], "label": True, "weight": 0.5, "source": "b",
            },
            3: {
                "prompt": [system("Kind."), user("Hi"), assistant("Yes?"), user("Bye")],
                "completion": [assistant("No")], "label": False, "weight": 0.5, "source": "b",
            },
        },
    ),
    (
        "pairs_text", "pairs_to_unpaired", False, [0, 0, 1, 1], {2: "`prompt` is null"},
        {3: {"prompt": "Ω is", "completion": " an O", "label": False, "weight": 3.0}},
    ),
    (
        "scores", "scores", True, [0, 1, 3],
        {2: "the same score, 1", 4: "`prompt` is null", 5: "`scores` is empty"},
        {
            0: {
                "prompt": [user("Name a tool.")], "chosen": [assistant("Hammer")], "rejected": [assistant("Cloud")],
                "score_chosen": 0.9, "score_rejected": -1.0, "id": 1,
            },
            1: {  # the first of equal ones
                "prompt": [user("Name a note.")], "chosen": [assistant("A")], "rejected": [assistant("B")],
                "score_chosen": 2.0, "score_rejected": 1.0, "id": 2,
            },
        },
    ),
    (
        "scores", "scores", False, [0, 0, 0, 1, 1, 1],
        {2: "the same score, 1", 3: "completion 1 has no score", 4: "`prompt` is null", 5: "`scores` is empty"},
        {
            # the middle between 0.9 and -1 is -0.05
            0: {
                "prompt": [user("Name a tool.")], "completion": [assistant("Saw")], "label": True, "score": 0.4,
                "id": 1,
            },
            2: {
                "prompt": [user("Name a tool.")], "completion": [assistant("Cloud")], "label": False, "score": -1.0,
                "id": 1,
            },
        },
    ),
]  # fmt: skip
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
    assert f"made {len(kept)} rows of {len(set(kept))}; left out" in note
    assert f": {len(left_out)} of {len(source(fixture))} (" in note
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
    assert {converter for _, converter, *_ in CASES} == set(CONVERTERS)


@pytest.mark.parametrize("fixture, converter", sorted({(f, c) for f, c, *_ in CASES if c != "pairs_to_unpaired"}))
def test_shapes_are_recognised(fixture, converter):
    assert recognise(source(fixture)[0], paired_method=False) == converter


# these the trainers take as they are, and text pairs without a prompt with a note
TAKEN = {"ultrafeedback_binarized", "argilla_mix", "pairs", "pairs_text"}
TEXT_PAIRS = {"hh", "argilla_texts", "alpaca_pairs"}


@pytest.mark.parametrize("fixture, converter, paired", sorted({case[:3] for case in CASES if case[0] not in TAKEN}))
def test_unconverted_rows_name_the_converter(write, fixture, converter, paired):
    path = write("first.jsonl", source(fixture)[:1])
    if fixture in TEXT_PAIRS:
        assert f"set `converter: {converter}`" in load(request(path, None, paired)).notes[0]
    else:
        with pytest.raises(DataError, match=f"set `converter: {converter}`"):
            load(request(path, None, paired))
