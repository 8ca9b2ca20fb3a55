"""What is logged of a run's speed."""

import pytest
import torch

from trl_plus.step import meters


def test_tokens_and_padding_by_hand(make_trainer, pair_rows, monkeypatch):
    """Two steps logged together: all tokens of both over the time since the first began."""
    clock = iter([100.0, 104.0, 104.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(clock))
    trainer = make_trainer("DPO", pair_rows(8), layout="rows", max_steps=2, logging_steps=2)
    seen = []
    loss = trainer.micro_batch_loss
    trainer.micro_batch_loss = lambda model, inputs: seen.append(inputs["attention_mask"]) or loss(model, inputs)
    trainer.train()
    log = trainer.state.log_history[0]
    tokens, places = sum(int(mask.sum()) for mask in seen), sum(mask.numel() for mask in seen)
    assert log["tokens_per_second"] == pytest.approx(tokens / 4)
    assert log["padding_ratio"] == pytest.approx(1 - tokens / places)
    assert "mfu" not in log  # the peak is measured on CUDA only


def test_what_a_log_on_cuda_has_besides(monkeypatch):
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(meters.torch.cuda, "max_memory_allocated", lambda: 3 * 2**29)
    throughput = meters.Throughput()
    throughput.begin_step()
    readings = {meters.TIMED_TOKENS: meters.Reading(40.0, 1.0), meters.COMPUTED_TOKENS: meters.Reading(50.0, 1.0)}
    found = throughput.take(readings, 2, lambda: (4.0, 100.0))
    assert found == {"tokens_per_second": 10.0, "mfu": 50 * 4 / 4 / 2 / 100, "peak_memory_gib": 1.5}
    assert readings == {}


def test_packed_rows_have_no_padding(make_trainer, pair_rows):
    trainer = make_trainer("DPO", pair_rows(8))
    trainer.train()
    assert trainer.state.log_history[0]["padding_ratio"] == 0


def test_shared_rows_have_some(make_trainer, pair_rows):
    trainer = make_trainer("DPO", pair_rows(8), layout="shared")
    trainer.train()
    assert 0 < trainer.state.log_history[0]["padding_ratio"] < 1


@pytest.mark.parametrize("method, passes", [("SimPO", 3), ("DPO", 4), ("KTO", 4)])
def test_flops_of_a_token(method, passes, make_trainer, pair_rows, unpaired_rows):
    trainer = make_trainer(method, unpaired_rows(4) if method == "KTO" else pair_rows(4))
    model = trainer.model
    weights = model.num_parameters() - model.get_input_embeddings().weight.numel()
    assert trainer.flops_per_token() == 2 * passes * weights


def test_the_peak_is_measured():
    assert meters.peak_flops(torch.device("cpu"), torch.float32, size=64, repeats=2) > 0
