"""Checkpoints of a real trainer: saved on a signal whatever the strategy, kept as the best one, gone on from."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from trl_plus.runs import checkpoint_files as files
from trl_plus.training.callbacks import StopOnSignal, Stopped
from trl_plus.upstream import libraries
from trl_plus.upstream.signatures import VersionError


class At(TrainerCallback):
    """Does something at the beginning of a step, counted from 1."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.act()


@pytest.fixture
def evaluated(make_trainer, pair_rows):
    """A SimPO trainer that evaluates after every step, and whose first evaluation stays the best one."""

    def make(**config):
        settings = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss",
                    "learning_rate": 1e-3} | config  # fmt: skip
        held_out = {"eval_dataset": Dataset.from_list(pair_rows(4, 5))}
        trainer = make_trainer("SimPO", pair_rows(8), trainer=held_out, **settings)
        evaluate, losses = trainer.evaluation_loop, iter(range(1, 100))

        def worse_and_worse(*args, **kwargs):
            output = evaluate(*args, **kwargs)
            output.metrics["eval_loss"] = float(next(losses))
            return output

        trainer.evaluation_loop = worse_and_worse
        return trainer

    return make


def test_a_signal_saves_although_no_evaluation_is_a_new_best(evaluated, tmp_path):
    trainer = evaluated(save_strategy="best", save_total_limit=2)
    stop = StopOnSignal(str(tmp_path / "out"), print)
    trainer.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    trainer.add_callback(stop)
    with stop, pytest.raises(Stopped, match=r"step 3: saved .*checkpoint-3"):
        trainer.train()
    found = files.find(tmp_path / "out")
    assert found.newest == tmp_path / "out" / "checkpoint-3"
    assert not found.passed_over
    assert files.problem_of(tmp_path / "out" / "checkpoint-1") is None  # the best one is kept


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_model_is_loaded_at_the_end(limit, evaluated, tmp_path):
    """Under its final name, although it was saved under a temporary one; kept by the limit; and found by a resume."""
    trainer = evaluated(save_strategy="steps", save_steps=1, load_best_model_at_end=True, save_total_limit=limit)
    trainer.train()
    out = tmp_path / "out"
    assert trainer.state.best_model_checkpoint == str(out / "checkpoint-1")
    assert [path.name for path in files.checkpoints(out)] == ["checkpoint-6", "checkpoint-1"][-limit:]
    assert not (out / files.UNFINISHED).exists()
    best = load_file(out / "checkpoint-1" / "model.safetensors")
    weights = trainer.model.state_dict()
    assert all(torch.equal(best[name], weights[name]) for name in best)

    again = evaluated(save_strategy="steps", save_steps=1, load_best_model_at_end=True, save_total_limit=limit)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert again.state.best_global_step == 1
    weights = again.model.state_dict()
    assert all(torch.equal(best[name], weights[name]) for name in best)


def test_train_loss_of_a_resumed_run_is_that_of_its_steps(make_trainer, pair_rows):
    settings = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    whole = make_trainer("SimPO", pair_rows(8), **settings | {"logging_steps": 1})
    whole.train()
    losses = [log["loss"] for log in whole.state.log_history if "loss" in log]
    first = make_trainer("SimPO", pair_rows(8), **settings)
    assert first.train().training_loss == pytest.approx(sum(losses) / 4)
    resumed = make_trainer("SimPO", pair_rows(8), **settings)
    result = resumed.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-2")
    assert result.training_loss == pytest.approx(sum(losses[2:]) / 2)
    (logged,) = [log["loss"] for log in resumed.state.log_history if "loss" in log]
    assert logged == pytest.approx(sum(losses) / 4)


def test_a_checkpoint_is_pushed_under_its_final_name(make_trainer, pair_rows, monkeypatch):
    trainer = make_trainer("SimPO", pair_rows(8), max_steps=2, save_strategy="steps", save_steps=1)
    trainer.args.push_to_hub, pushed = True, []  # set late: the constructor would ask the hub for the repository
    monkeypatch.setattr(
        trl.DPOTrainer,
        "_push_from_checkpoint",
        lambda self, folder: pushed.append((folder, files.problem_of(Path(folder)))),
    )
    trainer.train()
    assert pushed == [(f"{trainer.args.output_dir}/checkpoint-{step}", None) for step in (1, 2)]


@pytest.mark.parametrize("installed, adapter, shards, needed", [
    ("1.10.1", False, False, None), ("1.10.1", False, True, "1.13"), ("1.12.0", False, True, "1.13"),
    ("1.13.0", False, True, None), ("1.12.0", True, False, "1.15"), ("1.14.0", True, False, "1.15"),
    ("1.14.0", True, True, "1.15"), ("1.15.0", True, True, None), ("1.16.0.dev0", True, True, None),
])  # fmt: skip
def test_versions_that_resume_under_fsdp2(installed, adapter, shards, needed, monkeypatch):
    monkeypatch.setattr(libraries, "version", lambda name: installed)
    if needed is None:
        libraries.check_fsdp2(adapter, shards)
        return
    with pytest.raises(VersionError, match=rf"^accelerate {installed} .* pip install 'accelerate>={needed}'\.$"):
        libraries.check_fsdp2(adapter, shards)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_run_under_fsdp2_is_refused_before_its_first_step(adapter, make_trainer, pair_rows, monkeypatch):
    extra = {"peft_config": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")} if adapter else {}
    trainer = make_trainer("SimPO", pair_rows(4), trainer=extra)
    monkeypatch.setattr(type(trainer.accelerator), "is_fsdp2", True)
    kind = SimpleNamespace(state_dict_type=SimpleNamespace(name="FULL_STATE_DICT" if adapter else "SHARDED_STATE_DICT"))
    monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", kind, raising=False)
    monkeypatch.setattr(libraries, "version", lambda name: "1.12.0")
    with pytest.raises(VersionError, match="under FSDP2"):
        trainer.train()
    assert trainer.state.global_step == 0
