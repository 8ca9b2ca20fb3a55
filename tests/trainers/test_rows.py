"""The last assistant message is the response, and nothing is cut or dropped in silence."""

import logging

import pytest
from datasets import Dataset, IterableDataset

from trl_plus.data.lengths import LengthReport
from trl_plus.data.responses import split_response


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PAIRED = ("chosen", "rejected")
HISTORY = [user("amber?"), assistant("birch"), user("copper?")]


def trained_text(trainer, index=0):
    """What each side's completion mask covers, as text: chosen first, then rejected."""
    batch = trainer.data_collator([trainer.train_dataset[index]])
    return [
        trainer.processing_class.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": HISTORY, "chosen": [assistant("delta")], "rejected": [assistant("ember")]},
        {"chosen": [*HISTORY, assistant("delta")], "rejected": [*HISTORY, assistant("ember")]},
        {
            "prompt": HISTORY[:1],
            "chosen": [*HISTORY[1:], assistant("delta")],
            "rejected": [*HISTORY[1:], assistant("ember")],
        },
        {
            "prompt": HISTORY[:1],
            "chosen": [assistant("birch"), user("copper?"), assistant("delta")],
            "rejected": [assistant("beech"), user("copper?"), assistant("ember")],
        },
    ],
    ids=["explicit", "implicit", "split early", "histories differ"],
)
def test_only_the_last_assistant_turn_is_trained_on(row, make_trainer):
    trainer = make_trainer("SimPO", [row, row], per_device_train_batch_size=2)
    # this template closes a turn with a newline after the end token, which TRL counts to the completion
    assert trained_text(trainer) == ["delta<|im_end|>\n", "ember<|im_end|>\n"]
    trainer.train()


def test_histories_that_differ_are_masked_for_kto_too(make_trainer):
    rows = [{"prompt": HISTORY[:1], "completion": [*HISTORY[1:], assistant(w)], "label": w == "delta"} for w in
            ("delta", "ember")]  # fmt: skip
    trainer = make_trainer("KTO", rows, per_device_train_batch_size=2)
    assert trained_text(trainer) == ["delta<|im_end|>\n"]


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"prompt": HISTORY, "chosen": [assistant("a"), user("b")], "rejected": [assistant("c")]},
            "ends with a 'user'",
        ),
        ({"prompt": HISTORY, "chosen": [], "rejected": [assistant("c")]}, "ends with a 'user'"),
        ({"prompt": [], "chosen": [], "rejected": [assistant("c")]}, "is empty"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}, "same prompt"),
    ],
)
def test_rows_without_a_response_are_named(row, message):
    with pytest.raises(ValueError, match=message) as error:
        split_response(row, PAIRED, 17)
    assert "row 17" in str(error.value)


def long_rows(pair_rows):
    rows = pair_rows(6)
    words = " ".join(["anchor"] * 60)
    rows[0] = rows[0] | {"chosen": [assistant(words)]}
    rows[1] = rows[1] | {"chosen": [assistant(words)], "rejected": [assistant(words)]}
    rows[2] = rows[2] | {"prompt": [user(words)]}
    return rows


def test_truncation_is_counted_per_side_and_said(make_trainer, pair_rows, caplog):
    with caplog.at_level(logging.WARNING, "trl_plus"):
        trainer = make_trainer("SimPO", long_rows(pair_rows), max_length=64)
    report = trainer.length_reports["train"]
    assert (report.rows, report.dropped, report.cut, report.one_sided) == (6, 1, {"chosen": 2, "rejected": 1}, 1)
    assert "1 of 6 rows dropped" in caplog.text
    assert "2 chosen and 1 rejected completions cut" in caplog.text
    trainer.train()


def test_overlong_drop(make_trainer, pair_rows):
    trainer = make_trainer("SimPO", long_rows(pair_rows), max_length=64, overlong="drop")
    assert len(trainer.train_dataset) == 3
    assert trainer.length_reports["train"].dropped == 3
    assert trainer.length_reports["train"].cut == {"chosen": 0, "rejected": 0}


def test_overlong_error(make_trainer, pair_rows):
    with pytest.raises(ValueError, match="3 of 6 rows are longer than max_length 64"):
        make_trainer("SimPO", long_rows(pair_rows), max_length=64, overlong="error")


def test_paired_rows_under_kto_are_counted_after_unpairing(make_trainer, pair_rows):
    """TRL makes two rows of each pair: counting before it would hide what is dropped."""
    rows = long_rows(pair_rows)
    report = make_trainer("KTO", rows, max_length=64).length_reports["train"]
    assert (report.rows, report.dropped, report.cut) == (12, 2, {"completion": 3})
    assert make_trainer("KTO", pair_rows(6)).length_reports["train"].dropped == 0
    assert len(make_trainer("KTO", rows, max_length=64, overlong="drop").train_dataset) == 7
    with pytest.raises(ValueError, match="5 of 12 rows are longer"):
        make_trainer("KTO", rows, max_length=64, overlong="error")


@pytest.mark.parametrize("method", ["SimPO", "KTO"])
def test_group_by_length(method, make_trainer, pair_rows):
    """transformers cannot infer the length of a row without `input_ids`, and TRL's trainers fail on it."""
    rows = [row | {"length": "a column of the user's"} for row in pair_rows(8)]
    trainer = make_trainer(method, rows, train_sampling_strategy="group_by_length", max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("weight", float("nan"), "`weight` of row 1 of the train dataset is nan"),
        ("weight", -1.0, "at least 0"),
        ("weight", None, "`weight` of row 1"),
        ("chosen", None, "`chosen` of row 1 of the train dataset is null"),
        ("prompt", None, "`prompt` of row 1 of the train dataset is null"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(column, value, message, make_trainer, pair_rows):
    rows = [row | {"weight": 1.0} for row in pair_rows(3)]
    rows[1] = rows[1] | {column: value}
    with pytest.raises(ValueError, match=message):
        make_trainer("SimPO", rows)


def test_weights_that_are_all_zero_are_refused(make_trainer, pair_rows):
    with pytest.raises(ValueError, match="Every `weight`"):
        make_trainer("SimPO", [row | {"weight": 0.0} for row in pair_rows(3)])


def test_a_bad_weight_in_a_stream_stops_at_its_batch(make_trainer, pair_rows):
    rows = [row | {"weight": -1.0} for row in pair_rows(8)]
    trainer = make_trainer("SimPO", IterableDataset.from_generator(lambda: iter(rows)))
    with pytest.raises(ValueError, match="at least 0"):
        trainer.train()


def test_wrong_columns_labels_and_empty_sets_are_named(make_trainer, pair_rows, unpaired_rows):
    with pytest.raises(ValueError, match="SimPOTrainer needs chosen and rejected"):
        make_trainer("SimPO", unpaired_rows(4))
    with pytest.raises(ValueError, match="it must be true or false"):
        make_trainer("KTO", [row | {"label": "good"} for row in unpaired_rows(4)])
    with pytest.raises(ValueError, match="train dataset is empty"):
        make_trainer("SimPO", Dataset.from_list(pair_rows(1)).select([]))


def test_all_rows_dropped_is_an_error(make_trainer, pair_rows):
    with pytest.raises(ValueError, match="Raise max_length"):
        make_trainer("SimPO", pair_rows(3), max_length=4)


@pytest.mark.parametrize("method", ["SimPO", "KTO"])
def test_streams(method, make_trainer, pair_rows, unpaired_rows):
    rows = unpaired_rows(8) if method == "KTO" else pair_rows(8)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make_trainer(method, stream, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_streams_are_masked_and_filtered(make_trainer, pair_rows):
    rows = [
        {
            "prompt": HISTORY[:1],
            "chosen": [assistant("birch"), user("copper?"), assistant("delta")],
            "rejected": [assistant("beech"), user("copper?"), assistant("ember")],
        },
        *long_rows(pair_rows),
    ]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make_trainer("SimPO", stream, overlong="drop", max_length=64)
    kept = list(trainer.train_dataset)
    assert len(kept) == 4
    batch = trainer.data_collator(kept[:1])
    text = trainer.processing_class.decode(batch["input_ids"][0][batch["completion_mask"][0].bool()])
    assert text == "delta<|im_end|>\n"


def test_eval_loss_does_not_depend_on_the_batch_size(make_trainer, pair_rows):
    losses = []
    for size in (2, 3, 8):
        evaluation = {"eval_dataset": Dataset.from_list(pair_rows(7, 5))}
        trainer = make_trainer("ORPO", pair_rows(4), per_device_eval_batch_size=size, trainer=evaluation)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)


def test_several_evaluation_sets(make_trainer, pair_rows):
    sets = {"a": Dataset.from_list(pair_rows(3, 5)), "b": Dataset.from_list(pair_rows(3, 6))}
    trainer = make_trainer("SimPO", pair_rows(4), trainer={"eval_dataset": sets})
    metrics = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss", "eval_a_rewards/margins"} <= metrics.keys()
    assert metrics["eval_a_loss"] != metrics["eval_b_loss"]


def test_cut_completions_are_counted_in_words():
    of_pairs = LengthReport(5, 0, {"chosen": 2, "rejected": 1}, 1).sentence("train", 9)
    assert "2 chosen and 1 rejected completions cut" in of_pairs
    of_labelled_rows = LengthReport(5, 0, {"completion": 3}, 0).sentence("train", 9)
    assert ": 3 completions cut" in of_labelled_rows
