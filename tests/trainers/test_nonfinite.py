"""A loss or gradient that is not finite: the run stops before the step and names the rows, or leaves the step out."""

import math
import re

import pytest
import torch

from trl_plus.step.nonfinite import NonFiniteError

BAD = 5
MARK = "zzzz QQQQ"


@pytest.fixture
def marked(pair_rows, unpaired_rows, tokenizer):
    """rows(method) with one whose chosen side holds a token that no other row has, and that token."""

    def build(method, n=8):
        rows = unpaired_rows(n) if method == "KTO" else pair_rows(n)
        side = "completion" if method == "KTO" else "chosen"
        rows[BAD] = rows[BAD] | {side: [{"role": "assistant", "content": MARK}]}
        return rows, tokenizer.encode("Q")[0]

    return build


def poison(trainer, token):
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[token] = float("nan")
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def same(trainer, before):
    return all(torch.equal(p.nan_to_num(9.0), before[n].nan_to_num(9.0)) for n, p in trainer.model.named_parameters())


@pytest.mark.parametrize("method", ["SimPO", "ORPO", "DPO", "KTO"])
@pytest.mark.parametrize("norm", [0.0, 1.0], ids=["unclipped", "clipped"])
def test_a_bad_row_stops_before_the_step(method, norm, marked, make_trainer):
    rows, token = marked(method)
    trainer = make_trainer(
        method,
        rows,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_grad_norm=norm,
        optim="adamw_torch",
    )
    before = poison(trainer, token)
    with pytest.raises(NonFiniteError, match=rf"^Step 1: not finite: .*loss of row {BAD} \(nan, sha256") as caught:
        trainer.train()
    assert same(trainer, before)
    assert "no checkpoint was saved yet" in str(caught.value)
    assert ("z_ref" in str(caught.value)) == (method == "KTO")


def test_a_bad_gradient_names_the_parameter(pair_rows, make_trainer):
    trainer = make_trainer("SimPO", pair_rows(3))
    name, parameter = list(trainer.model.named_parameters())[3]
    parameter.register_hook(lambda g: g * float("inf"))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    with pytest.raises(NonFiniteError, match=re.escape(f"the gradient of {name}, in a step on row")):
        trainer.train()
    assert same(trainer, before)


def test_the_last_checkpoint_is_named(pair_rows, make_trainer, tmp_path):
    trainer = make_trainer("SimPO", pair_rows(8), max_steps=4, save_strategy="steps", save_steps=1, learning_rate=1e-3)
    seen = []

    def hook(gradient):
        seen.append(1)
        return gradient * (float("nan") if len(seen) > 2 else 1.0)

    next(trainer.model.parameters()).register_hook(hook)
    with pytest.raises(NonFiniteError, match=r"^Step 3: .*checkpoint-2, from which"):
        trainer.train()
    assert (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").is_file()


def faulty(make_trainer, rows, bad_steps, **config):
    """A trainer whose gradient is NaN in these steps (counted from 1)."""
    trainer = make_trainer(
        "SimPO", rows, nonfinite="skip", learning_rate=1e-3, optim="adamw_torch", lr_scheduler_type="linear", **config
    )
    calls = []

    def hook(gradient):
        calls.append(1)
        return gradient * (float("nan") if len(calls) in bad_steps else 1.0)

    next(trainer.model.parameters()).register_hook(hook)
    return trainer


def test_skip_leaves_the_step_out(pair_rows, make_trainer):
    trainer = faulty(make_trainer, pair_rows(8), {2, 3}, max_steps=4, max_nonfinite_skips=2)
    trainer.train()
    assert trainer.state.global_step == 4
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {2}
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]
    logs = [log for log in trainer.state.log_history if "learning_rate" in log]
    assert [log.get("nonfinite_skips") for log in logs] == [None, 1, 2, 2]
    assert ["loss" in log for log in logs] == [True, False, False, True]
    assert all(math.isfinite(value) for log in trainer.state.log_history for value in log.values())


def test_the_logged_loss_is_the_mean_of_the_steps_made(pair_rows, make_trainer):
    one = faulty(make_trainer, pair_rows(8), set(), max_steps=1)
    one.train()
    two = faulty(make_trainer, pair_rows(8), {2}, max_steps=2, logging_steps=2)
    two.train()
    assert two.state.log_history[0]["loss"] == pytest.approx(one.state.log_history[0]["loss"])


def test_a_resumed_run_counts_the_steps_left_out_before(pair_rows, make_trainer):
    """Between two logs: the loss, the count and the cap are those of the run that was never interrupted."""
    common = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2, "max_nonfinite_skips": 1}
    whole = faulty(make_trainer, pair_rows(8), {2}, **common)
    whole.train()
    checkpoint = f"{whole.args.output_dir}/checkpoint-2"
    resumed = faulty(make_trainer, pair_rows(8), set(), **common)
    resumed.train(resume_from_checkpoint=checkpoint)
    mine, other = ([log for log in t.state.log_history if "loss" in log] for t in (resumed, whole))
    assert len(mine) == len(other) == 1
    assert mine[0]["loss"] == pytest.approx(other[0]["loss"], rel=1e-6)
    assert mine[0]["nonfinite_skips"] == other[0]["nonfinite_skips"] == 1
    with pytest.raises(NonFiniteError, match=r"max_nonfinite_skips \(1\)"):
        faulty(make_trainer, pair_rows(8), {1}, **common).train(resume_from_checkpoint=checkpoint)


def test_the_cap_stops(pair_rows, make_trainer):
    trainer = faulty(make_trainer, pair_rows(8), {1, 2}, max_steps=4, max_nonfinite_skips=1)
    with pytest.raises(NonFiniteError, match=r"^Step 2: .*max_nonfinite_skips \(1\)"):
        trainer.train()


def test_a_scaler_may_meet_infinite_gradients(pair_rows, make_trainer):
    trainer = make_trainer("SimPO", pair_rows(8), max_steps=2)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    assert same(trainer, before)
    assert trainer.accelerator.scaler.get_scale() < 2.0**127


def test_configuration():
    from trl_plus import SimPOConfig

    with pytest.raises(ValueError, match="no effect without `nonfinite: skip`"):
        SimPOConfig(output_dir="out", max_nonfinite_skips=5, bf16=False)
    with pytest.raises(ValueError, match="`nonfinite` must be"):
        SimPOConfig(output_dir="out", nonfinite="ignore", bf16=False)
