"""Log-probabilities of the reference that the data brings are used, checked, and loaded no model for."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

import trl_plus
from tests.conftest import make_pairs, make_unpaired

ROWS = 12
KEYS = {
    "per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True,
    "bf16": False, "save_strategy": "no", "disable_tqdm": True, "seed": 3, "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture
def make(tmp_path, build_tiny_model, tokenizer):
    """make(method, rows, peft, model, **keys) -> trainer"""

    def _make(method, rows, peft=False, model=None, ref_model=None, eval_rows=None, **keys):
        args = getattr(trl_plus, f"{method}Config")(str(tmp_path / "out"), **KEYS | keys)
        return getattr(trl_plus, f"{method}Trainer")(
            model=build_tiny_model(0) if model is None else model,
            ref_model=ref_model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=None if eval_rows is None else Dataset.from_list(eval_rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules="all-linear") if peft else None,
        )

    return _make


@pytest.fixture
def with_reference(make):
    """with_reference(method, rows) -> the rows with the model's log-probabilities as columns."""

    def _with(method, rows, **keys):
        found = make(method, rows, precompute_ref_log_probs=True, **keys).train_dataset
        names = [name for name in found.column_names if name.startswith("ref_")]
        by_row = {repr(row["prompt"]) + repr(row.get("completion")): row for row in found.to_list()}
        chosen = [by_row[repr(row["prompt"]) + repr(row.get("completion"))] for row in rows]
        return [{**row, **{name: known[name] for name in names}} for row, known in zip(rows, chosen, strict=True)]

    return _with


def trained(trainer):
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_pairs_train_as_with_the_reference_itself(peft, make, with_reference, caplog):
    rows = make_pairs(ROWS)
    given = with_reference("DPO", rows)
    expected = trained(make("DPO", rows, peft))
    trainer = make("DPO", given, peft)
    assert trainer.ref_model is None
    assert "Reference: its log-probabilities are in the data, so no model is loaded for it." in caplog.text
    found = trained(trainer)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    assert "not its reference at the first step" not in caplog.text


def test_another_reference_is_used_and_said(make, with_reference, build_tiny_model, caplog):
    """Log-probabilities of a model near by: what is trained is what that model as `ref_model` gives."""
    rows, other = make_pairs(ROWS), build_tiny_model(0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    given = with_reference("DPO", rows, model=copy.deepcopy(other))
    expected = trained(make("DPO", rows, ref_model=other))
    trainer = make("DPO", given)
    assert "nats per token from the model before training" in caplog.text
    for name, value in trained(trainer).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)


def test_labelled_rows(make, with_reference):
    rows = make_unpaired(ROWS)
    given = with_reference("KTO", rows, loss_type="apo_zero_unpaired")
    expected = trained(make("KTO", rows, loss_type="apo_zero_unpaired"))
    trainer = make("KTO", given, loss_type="apo_zero_unpaired")
    assert trainer.ref_model is None
    for name, value in trained(trainer).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)


def test_kto_needs_the_reference_for_its_mismatched_rows(make, with_reference, caplog):
    given = with_reference("KTO", make_unpaired(ROWS), loss_type="apo_zero_unpaired")
    trainer = make("KTO", given)
    assert "`ref_logps` of the train dataset are not used".replace("`", "") in caplog.text.replace("`", "")
    assert "ref_logps" not in trainer.train_dataset.column_names
    assert make("KTO", given, peft=True).precompute_ref_logps


def test_pairs_of_a_method_on_single_completions(make, with_reference):
    given = with_reference("DPO", make_pairs(ROWS))
    found = make("KTO", given, loss_type="apo_zero_unpaired").train_dataset
    known = {(repr(row["prompt"]), side): row[f"ref_{side}_logps"] for row in given for side in ("chosen", "rejected")}
    for row in found:
        assert row["ref_logps"] == known[repr(row["prompt"]), "chosen" if row["label"] else "rejected"]


def test_precompute_leaves_what_the_data_brings(make, with_reference):
    """With `precompute_ref_log_probs` the columns stay; a held-out set without them gets the model's."""
    given = with_reference("DPO", make_pairs(ROWS))
    for keys in ({"precompute_ref_log_probs": True}, {}):
        trainer = make("DPO", given, eval_rows=make_pairs(4, 5), **keys)
        assert list(trainer.train_dataset["ref_chosen_logps"]) == [row["ref_chosen_logps"] for row in given]
        assert "ref_chosen_logps" in trainer.eval_dataset.column_names
        assert trainer.evaluate()["eval_loss"] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c, r: (float("nan"), r), "`ref_chosen_logps` of row 1 of the train dataset is nan"),
        (lambda c, r: (c, float("-inf")), "`ref_rejected_logps` of row 1 of the train dataset is -inf"),
        (lambda c, r: (0.5, r), "`ref_chosen_logps` of row 1 of the train dataset is 0.5"),
        (lambda c, r: (None, r), "`ref_chosen_logps` of row 1 of the train dataset is None"),
    ],
)
def test_values_that_are_no_log_probabilities(change, words, make, with_reference):
    given = with_reference("DPO", make_pairs(ROWS))
    given[1]["ref_chosen_logps"], given[1]["ref_rejected_logps"] = change(
        given[1]["ref_chosen_logps"], given[1]["ref_rejected_logps"]
    )
    with pytest.raises(ValueError, match=words):
        make("DPO", given)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda row, c, r: (r, c), "are swapped"),
        (lambda row, c, r: (c * 3 - 50, r * 3 - 50), "nats per token from the model before training"),
    ],
)
def test_values_that_cannot_be_this_models(change, words, make, with_reference):
    given = with_reference("DPO", make_pairs(ROWS))
    for row in given:
        row["ref_chosen_logps"], row["ref_rejected_logps"] = change(
            row, row["ref_chosen_logps"], row["ref_rejected_logps"]
        )
    with pytest.raises(ValueError, match=words):
        make("DPO", given)


def test_means_per_token_are_refused(make, with_reference):
    rows = make_pairs(ROWS)
    given, tokens = with_reference("DPO", rows), make("DPO", rows).train_dataset
    for row, known in zip(given, tokens, strict=True):
        row["ref_chosen_logps"] /= len(known["chosen_ids"])
        row["ref_rejected_logps"] /= len(known["rejected_ids"])
    with pytest.raises(ValueError, match="means per token"):
        make("DPO", given)


def test_two_references_and_half_a_reference_are_refused(make, with_reference, build_tiny_model):
    given = with_reference("DPO", make_pairs(ROWS))
    with pytest.raises(ValueError, match="another reference"):
        make("DPO", given, ref_model=build_tiny_model(1))
    with pytest.raises(ValueError, match="moves the reference"):
        make("DPO", given, sync_ref_model=True)
    for row in given:
        del row["ref_rejected_logps"]
    with pytest.raises(ValueError, match="no `ref_rejected_logps`"):
        make("DPO", given)


def test_a_method_without_a_reference_does_not_use_them(with_reference, build_tiny_model, tokenizer, tmp_path, caplog):
    given = Dataset.from_list(with_reference("DPO", make_pairs(ROWS)))
    args = trl_plus.SimPOConfig(str(tmp_path / "out"), **KEYS)
    trainer = trl_plus.SimPOTrainer(
        build_tiny_model(0), args, train_dataset=given, eval_dataset=given, processing_class=tokenizer
    )
    assert (
        "ref_chosen_logps and ref_rejected_logps of the train dataset are not used: SimPOTrainer has no" in caplog.text
    )
    assert not {"ref_chosen_logps", "ref_rejected_logps"} & {
        *trainer.train_dataset.column_names,
        *trainer.eval_dataset.column_names,
    }
