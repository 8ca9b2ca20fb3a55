"""What is true of a split as a whole: labels, weights, lengths, prompts, held-out rows; and what cannot be read."""

import json

import pytest

from tests.preflight.corpus import FORMS, clean_samples, rendered, write
from tests.preflight.looks import EVERYTHING, counts, look, look_at
from tests.preflight.planters import PLANTERS
from tests.preflight.toys import build_toy, look_with, open_toy, save_toy, template
from trl_plus.preflight.findings import Severity
from trl_plus.preflight.registry import every_check
from trl_plus.preflight.run import preflight

CHAT, TEXT, KTO = FORMS["chat"], FORMS["text"], FORMS["kto-chat"]


def only(result, code):
    """The one finding there is."""
    assert [finding.code for finding in result.findings] == [code]
    return result.findings[0]


def labelled(labels):
    samples = clean_samples(KTO, len(labels), 4)
    for sample, label in zip(samples, labels, strict=True):
        sample.label = label
    return rendered(samples, KTO)


# -- D101, D199 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, method",
    [
        ([{"instruction": "a", "output": "b"}], CHAT),
        ([{"prompt": "a", "chosen": "b"}], TEXT),
        ([{"prompt": "a", "completion": "b", "label": True}], TEXT),
        ([{"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}], CHAT),
        ([{"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}}], CHAT),
        ([{"prompt": "a", "chosen": 1, "rejected": 2}], TEXT),
        ([{"completion": "b", "label": True}], FORMS["kto-text"]),
    ],
)
def test_columns_of_another_format(rows, method, tmp_path):
    finding = only(look(rows * 3, method, tmp_path / "rows.jsonl"), "D101")
    assert finding.severity is Severity.ERROR
    assert finding.cure


def test_what_only_the_trainer_refuses(tmp_path):
    samples = clean_samples(CHAT, 6)
    for side in CHAT.sides:
        samples[2].own[side] = [{"role": "assistant", "content": side}, {"role": "user", "content": "So?"}]
    path = write(rendered(samples, CHAT), tmp_path / "rows.jsonl")
    source = open_toy(save_toy(tmp_path / "toy", build_toy()), str(path), "dpo", truncation_mode="keep_end")
    result = preflight(source, EVERYTHING)
    assert counts(result) == {"D199": 0, "D208": 1}
    assert "keep_end" in result.findings[0].sentence


# -- D705 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_model", [False, True])
def test_rows_that_all_weigh_nothing(with_model, tmp_path):
    rows = [{**row, "weight": 0.0} for row in rendered(clean_samples(CHAT, 6), CHAT)]
    path = write(rows, tmp_path / "rows.jsonl")
    toy = save_toy(tmp_path / "toy", build_toy())
    result = preflight(open_toy(toy, str(path), "dpo"), EVERYTHING) if with_model else look_at(str(path), CHAT)
    assert only(result, "D705").severity is Severity.ERROR


def test_a_batch_of_rows_without_weight_is_no_dataset_without_weight(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_plus.preflight.source.BATCH", 10)
    rows = [
        {**row, "weight": float(number >= 10)} for number, row in enumerate(rendered(clean_samples(CHAT, 40), CHAT))
    ]
    path = write(rows, tmp_path / "rows.jsonl")
    result = preflight(open_toy(save_toy(tmp_path / "toy", build_toy()), str(path), "dpo"), EVERYTHING)
    assert not result.findings


# -- D510 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, longer", [("chat", "chosen"), ("text", "rejected"), ("kto-chat", "desirable")])
@pytest.mark.parametrize("with_model", [False, True], ids=["characters", "tokens"])
def test_responses_that_are_longer_on_one_side(name, longer, with_model, tmp_path):
    form = FORMS[name]
    samples = clean_samples(form, 120, 2)
    for sample in samples:
        side = {"desirable": "completion"}.get(longer, longer)
        if form.paired or sample.label:
            sample.responses[side] += " It took the whole afternoon and some of the evening, and nobody minded." * 3
    path = write(rendered(samples, form), tmp_path / "rows.jsonl")
    if with_model:
        source = open_toy(save_toy(tmp_path / "toy", build_toy()), str(path), form.method)
        result = preflight(source, EVERYTHING)
    else:
        result = look_at(str(path), form)
    finding = only(result, "D510")
    assert finding.severity is Severity.WARNING
    assert f"{longer} ones are longer" in finding.sentence
    assert ("tokens)" in finding.sentence) is with_model


# -- D604, D605 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_held_out_prompts_that_are_trained_on(form, tmp_path):
    train, held_out = clean_samples(form, 60, 1), clean_samples(form, 30, 2)
    for row in (4, 5, 17, 29):
        held_out[row].turns = train[2 * row].turns
    write(rendered(train, form), tmp_path / "data" / "train.jsonl")
    write(rendered(held_out, form), tmp_path / "data" / "test.jsonl")
    finding = only(look_at(str(tmp_path / "data"), form), "D604")
    assert (finding.split, finding.count, finding.checked) == ("eval", 4, 30)
    assert [(e.row, e.detail) for e in finding.examples] == [(r, f"as row {2 * r} of train") for r in (4, 5, 17)]


def test_scores_that_say_the_columns_are_swapped(tmp_path):
    samples = clean_samples(CHAT, 40)
    for number, sample in enumerate(samples):
        sample.extra = (
            {"score_chosen": 2.0, "score_rejected": 7.0}
            if number % 20
            else {"score_chosen": 7.0, "score_rejected": 2.0}
        )
    result = look(rendered(samples, CHAT), CHAT, tmp_path / "rows.jsonl")
    assert counts(result) == {"D305": 38, "D605": 0}


def test_chosen_responses_that_repeat_themselves(tmp_path):
    samples = clean_samples(CHAT, 60)
    for number, sample in enumerate(samples[:30]):
        word = f"again{number}"
        sample.responses["chosen"] = " ".join([word, "and"] * 20)
        sample.responses["rejected"] += " " + " ".join(f"w{i}" for i in range(35))
    assert counts(look(rendered(samples, CHAT), CHAT, tmp_path / "rows.jsonl")) == {"D605": 0}


# -- D7xx -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [True, False])
def test_one_label_only(label, tmp_path):
    finding = only(look(labelled([label] * 20), KTO, tmp_path / "rows.jsonl"), "D701")
    assert f"All 20 rows have the label {str(label).lower()}" in finding.sentence


def test_labels_in_words_throughout(tmp_path):
    rows = [{**row, "label": "good" if row["label"] else "bad"} for row in labelled([True, False] * 10)]
    assert counts(look(rows, KTO, tmp_path / "rows.jsonl")) == {"D105": 20}


@pytest.mark.parametrize(
    "desirable, undesirable, weights, found",
    [
        (50, 50, (1.0, 1.0), False),  # ratio 1, the lower bound of KTO's Eq. 8
        (60, 45, (1.0, 1.0), False),  # 4/3, the upper bound
        (45, 60, (1.0, 1.0), True),
        (70, 35, (1.0, 1.0), True),
        (70, 35, (0.5, 1.0), False),
        (35, 70, (1.0, 0.5), False),
        (50, 50, (3.0, 1.0), True),
    ],
)
def test_weights_that_do_not_balance_the_labels(desirable, undesirable, weights, found, tmp_path):
    labels = [True] * desirable + [False] * undesirable
    labels = [labels[17 * i % len(labels)] for i in range(len(labels))]  # no long runs
    path = write(labelled(labels), tmp_path / "rows.jsonl")
    source = open_toy(save_toy(tmp_path / "toy", build_toy()), str(path), "kto",
                      desirable_weight=weights[0], undesirable_weight=weights[1])  # fmt: skip
    result = preflight(source, EVERYTHING)
    assert ("D702" in counts(result)) is found
    if found:  # with the weight that is suggested nothing is found
        low = weights[1] * undesirable / desirable
        assert f"`desirable_weight` between {low:.2f} and {low * 4 / 3:.2f}" in only(result, "D702").sentence


@pytest.mark.parametrize("streaming, severity", [(False, Severity.INFO), (True, Severity.WARNING)])
def test_labels_in_long_runs(streaming, severity, tmp_path):
    path = write(labelled([True] * 60 + [False] * 55), tmp_path / "rows.jsonl")
    finding = only(look_at(str(path), KTO, streaming=streaming), "D703")
    assert finding.severity is severity
    assert "60 rows of one label" in finding.sentence


def test_rows_that_share_prompts(tmp_path):
    samples = clean_samples(CHAT, 40)
    for number, sample in enumerate(samples):
        sample.turns = samples[number - number % 4].turns
    assert (
        "40 rows have 10 different prompts"
        in only(look(rendered(samples, CHAT), CHAT, tmp_path / "r.jsonl"), "D704").sentence
    )


# -- every code -------------------------------------------------------------------------------------------------------


def test_every_code_has_a_test():
    import inspect
    from pathlib import Path

    planted = {planter.code for planter in PLANTERS}
    here = "".join(path.read_text(encoding="utf-8") for path in Path(inspect.getfile(only)).parent.glob("test_*.py"))
    codes = {*every_check(), "D101", "D111", "D199"}
    assert {code for code in codes if code not in planted and f'"{code}"' not in here} == set()
    assert planted <= codes


def test_what_no_check_foresaw_is_told_in_the_trainers_words(tmp_path):
    """TRL takes `chat_template_kwargs` as a mapping, and fails on a number."""
    form = FORMS["chat"]
    rows = [{**row, "chat_template_kwargs": 5} for row in rendered(clean_samples(form, 20, 3), form)]
    model = save_toy(tmp_path / "model", build_toy())
    result = look_with(model, rows, form, tmp_path / "rows.jsonl")
    assert [finding.code for finding in result.findings if finding.severity is Severity.ERROR] == ["D199"]
    assert result.findings[0].sentence.startswith("TypeError: ")


@pytest.mark.parametrize("broken", [False, True])
def test_messages_that_a_table_turned_into_text(tmp_path, broken):
    """They are read as the messages that they were, unless a row holds something else."""
    import csv

    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        for row in rendered(clean_samples(FORMS["chat"], 12, 3), FORMS["chat"]):
            writer.writerow([str(row["prompt"]), str(row["chosen"]), str(row["rejected"])])
        if broken:
            writer.writerow(["What is the capital of Peru?", "It is Lima, on the coast.", "It is Cusco, I think."])
    result = look_at(str(tmp_path / "rows.csv"), FORMS["text" if broken else "chat"])
    assert counts(result) == ({"D109": 12} if broken else {})
    assert ("conversational" in result.format) != broken


def test_text_for_a_model_with_a_chat_template(tmp_path):
    """The most common silent mistake with an instruction-tuned model."""
    form = FORMS["text"]
    rows = rendered(clean_samples(form, 20, 3), form)
    rows[4] |= {"prompt": f"<|im_start|>user\n{rows[4]['prompt']}<|im_end|>\n<|im_start|>assistant\n"}
    path = write(rows, tmp_path / "rows.jsonl")
    toy = save_toy(tmp_path / "toy", build_toy())
    found = counts(preflight(open_toy(toy, str(path), "dpo", keep_template=True), EVERYTHING))
    assert found["D413"] == 19
    assert "D413" not in counts(preflight(open_toy(toy, str(path), "dpo"), EVERYTHING))


def test_a_response_of_which_only_the_stop_token_is_left(tmp_path):
    form = FORMS["chat"]
    rows = rendered(clean_samples(form, 20, 3), form)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    rows[7]["chosen"] = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    found = counts(look_with(save_toy(tmp_path / "toy", build_toy(template())), rows, form, tmp_path / "rows.jsonl"))
    assert found["D412"] == 1
    assert found["D407"] == 1


def test_an_unknown_role_at_the_end_is_named_as_such(tmp_path):
    form = FORMS["chat"]
    rows = rendered(clean_samples(form, 20, 3), form)
    rows[3]["chosen"][-1]["role"] = "gpt"
    assert counts(look(rows, form, tmp_path / "rows.jsonl")) == {"D207": 1}


def test_scores_that_a_table_keeps_as_text(tmp_path):
    form = FORMS["chat"]
    rows = [
        {**row, "score_chosen": "1.0", "score_rejected": "9.0"} for row in rendered(clean_samples(form, 20, 3), form)
    ]
    assert set(counts(look(rows, form, tmp_path / "rows.jsonl"))) == {"D305", "D605"}


def test_labels_that_are_none_are_not_counted(tmp_path):
    form = FORMS["kto-chat"]
    rows = rendered(clean_samples(form, 20, 3), form)
    for number, row in enumerate(rows):
        row["label"] = 1 if number % 2 else -1
    assert set(counts(look(rows, form, tmp_path / "rows.jsonl"))) == {"D105"}


def test_a_file_in_another_encoding_is_one_sentence(tmp_path):
    from trl_plus.errors import DataError

    rows = rendered(clean_samples(FORMS["text"], 20, 3), FORMS["text"])
    text = "".join(json.dumps({**row, "prompt": "Où ? " + row["prompt"]}, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_bytes(text.encode("latin-1", "replace"))
    with pytest.raises(DataError, match="UTF-8"):
        look_at(str(tmp_path / "rows.jsonl"), FORMS["text"])
