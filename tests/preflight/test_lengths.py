"""D5xx: what preflight says `max_length` does to the rows is what the real trainer does to them."""

import copy

import pytest

import trl_plus
from tests.conftest import build_model
from tests.preflight.corpus import FORMS, clean_samples, rendered, write
from tests.preflight.looks import EVERYTHING, counts, first_rows
from tests.preflight.toys import build_toy, open_toy, save_toy
from trl_plus.data.loading import load
from trl_plus.data.mixture import DataRequest
from trl_plus.preflight.findings import Severity
from trl_plus.preflight.run import preflight

ROWS, LIMIT = 60, 300
CHAT = FORMS["chat"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy"), build_toy())


@pytest.fixture(scope="module")
def model():
    return build_model(build_toy())


def ragged(form):
    """Clean rows, some of which have a long prompt, a history of each side's own, or a response that just fits."""
    samples = clean_samples(form, ROWS, 8)
    for sample in samples[::7]:
        sample.turns[-1]["content"] += " And so on." * 30
    if form.name == "chat-implicit":
        for sample in samples[::3]:
            for side in form.sides:
                asked = [{"role": "assistant", "content": f"As {side}?"}, {"role": "user", "content": "Do."}]
                sample.own[side] = asked * (1 if side == "chosen" else 4)
    return rendered(samples, form)


def real_trainer(form, path, model_dir, model, **settings):
    """The trainer as a run builds it, with the toy tokenizer of `model_dir`."""
    from transformers import AutoTokenizer

    paired = form.method != "kto"
    name = {"dpo": "DPO", "simpo": "SimPO", "orpo": "ORPO", "cpo": "CPO", "kto": "KTO"}[form.method]
    config = getattr(trl_plus, f"{name}Config")(
        f"{model_dir}-out", use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False, **settings
    )
    return getattr(trl_plus, f"{name}Trainer")(
        model=copy.deepcopy(model),
        args=config,
        train_dataset=load(DataRequest(paired_method=paired, name=str(path))).train,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )


def cut_by_collator(trainer, sides):
    """By side, how many rows of the trainer's dataset the collator really shortens."""
    cut = dict.fromkeys(sides, 0)
    for row in trainer.train_dataset:
        mask = trainer.data_collator([row])["attention_mask"]
        for side, kept in zip(sides, mask.sum(1).tolist(), strict=True):
            cut[side] += kept < len(row["prompt_ids"]) + len(row[f"{side}_ids"])
    return cut


NAMES = ("chat", "chat-implicit", "ultrafeedback", "text", "text-implicit", "kto-chat", "kto-text", "kto-pairs")


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
@pytest.mark.parametrize("name", NAMES)
def test_drops_and_cuts_are_the_trainers(name, overlong, model_dir, model, tmp_path):
    form = FORMS[name]
    path = write(ragged(form), tmp_path / "rows.jsonl")
    settings = {"max_length": LIMIT, "overlong": overlong}
    result = preflight(open_toy(model_dir, str(path), form.method, **settings), EVERYTHING)
    trainer = real_trainer(form, path, model_dir, model, **settings)
    [split], found, report = result.splits, counts(result), trainer.length_reports["train"]

    assert split.dropped == report.dropped == report.rows - len(trainer.train_dataset) > 0
    assert found.get("D501", 0) + found.get("D502", 0) == split.dropped
    sides = ("chosen", "rejected") if form.method != "kto" else ("completion",)
    assert split.cut == report.cut == cut_by_collator(trainer, sides)
    assert found.get("D504", 0) == (report.one_sided if len(sides) == 2 else 0)
    if overlong == "truncate":
        assert any(split.cut.values())
        assert max(split.cut.values()) <= found["D503"] <= sum(split.cut.values())
    else:
        assert "D503" not in found
    assert set(found) - {"D501", "D502", "D503", "D504", "D505"} <= {"D208"}  # histories differ in some of these rows


@pytest.mark.parametrize("name", ["chat", "kto-chat"])
def test_under_overlong_error_the_rows_that_would_stop_the_run_are_errors(name, model_dir, model, tmp_path):
    form = FORMS[name]
    path = write(ragged(form), tmp_path / "rows.jsonl")
    settings = {"max_length": LIMIT, "overlong": "error"}
    result = preflight(open_toy(model_dir, str(path), form.method, **settings), EVERYTHING)
    found = counts(result)
    assert {f.code: f.severity for f in result.findings} == {"D501": Severity.ERROR, "D502": Severity.ERROR}
    with pytest.raises(ValueError, match=f"{found['D501'] + found['D502']} of {ROWS} rows are longer"):
        real_trainer(form, path, model_dir, model, **settings)


@pytest.mark.parametrize("name", ["chat", "text", "ultrafeedback"])
def test_keep_end_drops_no_row(name, model_dir, model, tmp_path):
    form = FORMS[name]
    path = write(ragged(form), tmp_path / "rows.jsonl")
    settings = {"max_length": LIMIT, "truncation_mode": "keep_end"}
    result = preflight(open_toy(model_dir, str(path), form.method, **settings), EVERYTHING)
    trainer = real_trainer(form, path, model_dir, model, **settings)
    [split] = result.splits
    assert split.dropped == ROWS - len(trainer.train_dataset) == 0
    assert split.cut == cut_by_collator(trainer, form.sides)
    assert "D504" not in counts(result)  # the end, and the stop token with it, stays


@pytest.fixture(scope="module")
def chat_row():
    """chat_row(prompt, chosen, rejected) -> a row whose parts have that many tokens, those of the template included."""
    tokenizer = build_toy()
    empty = tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)["input_ids"]

    def make(prompt, *sides):
        said = zip("qz", sides, strict=True)  # neither letter merges with itself
        return {
            "prompt": [{"role": "user", "content": "q" * (prompt - len(empty))}],
            **{side: [{"role": "assistant", "content": letter * (size - 2)}]  # <|im_end|> and a line break
               for side, (letter, size) in zip(("chosen", "rejected"), said, strict=True)},
        }  # fmt: skip

    return make


def of_lengths(result):
    return {code: rows for code, rows in first_rows(result).items() if code.startswith("D5")}


# lengths of prompt, chosen and rejected in tokens -> what a limit of 100 does
EDGES = {
    (100, 40, 40): {"D501"},
    (99, 40, 40): {"D503", "D505"},  # one token of each response is left
    (50, 50, 50): set(),
    (50, 51, 50): {"D503", "D504"},
    (50, 50, 51): {"D503", "D504"},
    (50, 60, 80): {"D503"},
    (84, 60, 60): {"D503"},  # 16 tokens are left
    (85, 60, 60): {"D503", "D505"},
    (85, 15, 60): {"D503", "D504", "D505"},
}


@pytest.mark.parametrize("sizes", EDGES, ids=str)
def test_the_limit_to_the_token(sizes, chat_row, model_dir, tmp_path):
    rows = [chat_row(40, 30 + number, 36 - number) for number in range(6)]
    rows.insert(3, chat_row(*sizes))
    path = write(rows, tmp_path / "rows.jsonl")
    result = preflight(open_toy(model_dir, str(path), "dpo", max_length=100), EVERYTHING)
    lengths = {part.part: part.quantiles["1"] for part in result.splits[0].lengths}
    assert (lengths["prompt"], max(lengths["chosen"], lengths["rejected"])) == (max(sizes[0], 40), max(*sizes[1:], 36))
    assert of_lengths(result) == {code: [3] for code in EDGES[sizes]}


def test_which_limit_is_named_for_each_row(chat_row, model_dir, tmp_path):
    path = write([chat_row(120, 30, 31), chat_row(40, 90, 20), chat_row(40, 30, 31)], tmp_path / "rows.jsonl")
    result = preflight(open_toy(model_dir, str(path), "dpo", max_length=100, overlong="drop"), EVERYTHING)
    assert of_lengths(result) == {"D501": [0], "D502": [1]}
    assert result.splits[0].dropped == 2
