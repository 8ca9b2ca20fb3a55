"""Micro-batches that are filled to a number of tokens make up the same step."""

import pytest
import torch

from trl_plus.step.exact_step import cut, merge, select

BAR = 1e-5
METHODS = [
    ("DPO", {}),
    ("DPO", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}),
    ("DPO", {"f_divergence_type": "js_divergence"}),
    ("SimPO", {}),
    ("CPO", {}),
    ("ORPO", {}),
    ("KTO", {}),
]


@pytest.mark.parametrize("method, config", METHODS, ids=[f"{m}-{'-'.join(c)}" for m, c in METHODS])
@pytest.mark.parametrize("batch, accumulation", [(8, 1), (4, 2), (1, 8)])
def test_the_step_is_the_same(method, config, batch, accumulation, update_of, difference, pair_rows, unpaired_rows):
    rows = unpaired_rows(7) if method == "KTO" else pair_rows(7)
    whole = update_of(method, rows, 8, **config)
    assert difference(whole, update_of(method, rows, batch, accumulation, tokens_per_device=90, **config)) < BAR


def test_micro_batches_are_filled(make_trainer, pair_rows):
    trainer = make_trainer("DPO", pair_rows(8), per_device_train_batch_size=8, tokens_per_device=120)
    seen = []
    loss = trainer.micro_batch_loss
    trainer.micro_batch_loss = lambda model, inputs: seen.append(inputs["attention_mask"].shape) or loss(model, inputs)
    trainer.train()
    assert len(seen) > 2
    assert sum(rows for rows, _ in seen) == 16
    log = trainer.state.log_history[0]
    assert log["padding_ratio"] == 0
    assert log["tokens_per_second"] > 0


def test_weights_and_references_go_along(update_of, difference, pair_rows):
    rows = [row | {"weight": (i % 4) * 0.5} for i, row in enumerate(pair_rows(7))]
    config = {"precompute_ref_log_probs": True}
    whole = update_of("DPO", rows, 8, **config)
    assert difference(whole, update_of("DPO", rows, 4, 2, tokens_per_device=90, **config)) < BAR


def test_memory_of_a_long_row_is_its_own():
    assert cut([40, 30, 50, 200, 10], 100) == [[0, 1], [2], [3], [4]]
    assert cut([10, 10, 10], 100, at_least=2) == [[0], [1, 2]]
    assert cut([10], 100, at_least=2) == [[0]]


def test_merging_and_selecting_are_inverse():
    a = {"input_ids": torch.tensor([[1, 2], [3, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    b = {"input_ids": torch.tensor([[4, 5, 6], [7, 8, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    whole = merge([a, b])
    assert whole["input_ids"].tolist() == [[1, 2, 0], [4, 5, 6], [3, 0, 0], [7, 8, 0]]
    ends = torch.tensor([2, 3, 1, 2])
    for row, batch in enumerate((a, b)):
        part = select(whole, [row], ends)
        assert all(torch.equal(part[name], batch[name]) for name in batch)


def test_what_is_no_row_is_refused():
    with pytest.raises(ValueError, match="pixel_values"):
        merge([{"input_ids": torch.ones(2, 3), "pixel_values": torch.ones(1, 3, 4, 4)}])


@pytest.mark.parametrize("value", [0, -5])
def test_a_budget_is_positive(value, make_trainer, pair_rows):
    with pytest.raises(ValueError, match="tokens_per_device"):
        make_trainer("DPO", pair_rows(4), tokens_per_device=value)


@pytest.mark.parametrize("method", ["DPO", "KTO"])
def test_a_resumed_run_makes_the_same_weights(method, make_trainer, pair_rows, unpaired_rows, tmp_path):
    rows = unpaired_rows(24) if method == "KTO" else pair_rows(24)
    kwargs = {"tokens_per_device": 90, "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.1}
    whole = make_trainer(method, rows, save_strategy="steps", save_steps=2, **kwargs)
    whole.train()
    resumed = make_trainer(method, rows, **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
