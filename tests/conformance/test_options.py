"""Options of TRL and transformers that reach into evaluation, batches or the reference: the same numbers as TRL's."""

import pytest
import torch
import trl
from datasets import Dataset
from transformers import EarlyStoppingCallback

import trl_plus

# Under accumulation and over evaluation batches TRL has means of means (docs/migrating.md)
TOKEN_MEANS = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")
EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1}
BEST = EACH_STEP | {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}


def held_out(pair_rows, seed=5):
    return Dataset.from_list(pair_rows(4, seed))


def sets(pair_rows):
    return {name: held_out(pair_rows, seed) for name, seed in (("a", 5), ("b", 6))}


# -- the steps --------------------------------------------------------------------------------------------------------

STEPS = [
    {"accelerator_config": {"split_batches": True}},
    {"accelerator_config": {"dispatch_batches": True}},
    {"accelerator_config": {"even_batches": False}},
    {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}, "per_device_train_batch_size": 2},
    {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.6, "steps": 3},
    {"neftune_noise_alpha": 5.0},
    {"padding_free": True},
    {"label_smoothing_factor": 0.1},
    {"average_tokens_across_devices": False, "torch_empty_cache_steps": 1},
    {"remove_unused_columns": False, "auto_find_batch_size": True},
]


@pytest.mark.parametrize("config", STEPS, ids=str)
def test_steps(config, both, pair_rows):
    both("DPO", pair_rows(8), absent=TOKEN_MEANS if "gradient_accumulation_kwargs" in str(config) else (), **config)


def test_the_last_batch_is_dropped(both, pair_rows):
    ours, _ = both("DPO", pair_rows(7), dataloader_drop_last=True, steps=3)
    assert len(ours.logs) == 3


# -- evaluation -------------------------------------------------------------------------------------------------------


class Seen:
    """A `compute_metrics` of `batch_eval_metrics`: rows, counted from batch to batch."""

    def __init__(self):
        self.rows = 0

    def __call__(self, prediction, compute_result=False):
        self.rows += len(prediction.predictions)
        return {"rows": float(self.rows)}


def with_inputs_and_losses(prediction):
    return {"tokens": float((prediction.inputs > 0).sum()), "loss_again": float(prediction.losses.mean())}


EVALUATIONS = [
    (lambda: Seen(), {"batch_eval_metrics": True}, "eval_rows"),
    (lambda: with_inputs_and_losses, {"include_for_metrics": ["inputs", "loss"]}, "eval_tokens"),
    (lambda: lambda p: {"rows": float(len(p.predictions))}, {"eval_accumulation_steps": 1}, "eval_rows"),
    (lambda: lambda p: {"batches": float(len(p.predictions))}, {"eval_do_concat_batches": False}, "eval_batches"),
    (lambda: lambda p: {"never": 1.0}, {"prediction_loss_only": True}, "eval_loss"),
    (lambda: lambda p: {"rows": 1.0}, {"label_names": ["basil"]}, "eval_rows"),
]


@pytest.mark.parametrize("metrics, config, name", EVALUATIONS, ids=[str(config) for _, config, _ in EVALUATIONS])
def test_evaluations(metrics, config, name, both, pair_rows):
    held = {"eval_rows": held_out(pair_rows), "per_device_eval_batch_size": 2, "trainer": {"compute_metrics": metrics}}
    ours, theirs = both("DPO", pair_rows(4), steps=1, absent=TOKEN_MEANS, **held, **config)
    assert ours.evaluation[name] == pytest.approx(theirs.evaluation[name], rel=1e-6)


def test_a_schedule_that_reads_a_metric(both, pair_rows):
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.1}}
    plateau |= EACH_STEP | {"metric_for_best_model": "rewards/margins", "greater_is_better": False}
    ours, theirs = both("DPO", pair_rows(8), steps=3, eval_rows=held_out(pair_rows), **plateau)
    assert [log["learning_rate"] for log in ours.logs] == [log["learning_rate"] for log in theirs.logs]


# -- several evaluation sets ------------------------------------------------------------------------------------------

# TRL logs the metrics of every set under the same names; the last set is what these mean in the end
METRICS = ["eval_rewards/margins", "rewards/margins", "eval_b_loss", "a_loss"]


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_model_by_trls_names(metric, run, pair_rows):
    runs = [
        run(module, "DPO", pair_rows(8), steps=3, eval_rows=sets(pair_rows), metric_for_best_model=metric,
            greater_is_better="loss" not in metric, **BEST)
        for module in (trl_plus, trl)
    ]  # fmt: skip
    ours, theirs = (made.update for made in runs)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6) for name in theirs)


@pytest.mark.parametrize("metric", ["eval_b_rewards/margins", "eval_rewards/margins"])
def test_the_best_model_and_early_stopping_by_our_names_and_theirs(metric, make, pair_rows):
    """Of a metric that only falls the first is the best, and the run stops one evaluation later."""
    trainer = make(
        trl_plus, "DPO", pair_rows(8), steps=4, eval_rows=sets(pair_rows), metric_for_best_model=metric,
        greater_is_better=True, learning_rate=0.0, trainer={"callbacks": lambda: [EarlyStoppingCallback(1)]}, **BEST
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert trainer.state.global_step == 2
    evaluated = [log for log in trainer.state.log_history if "eval_b_loss" in log]
    assert trainer.state.best_metric == pytest.approx(evaluated[0]["eval_b_rewards/margins"])
    assert not any("eval_rewards/margins" in log for log in trainer.state.log_history)


# -- a reference that is compiled -------------------------------------------------------------------------------------


def test_a_reference_without_a_truth_value(make, pair_rows):
    """`torch.compile` makes modules that have `__len__`, which raises unless the module inside has one."""
    trainer = make(trl_plus, "DPO", pair_rows(4), steps=1)
    unsized = {"__len__": lambda self: (_ for _ in ()).throw(TypeError("no len"))}
    trainer.ref_model.__class__ = type("Compiled", (type(trainer.ref_model),), unsized)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.slow
def test_torch_compile(both, pair_rows):
    both("DPO", pair_rows(4), steps=1, torch_compile=True, torch_compile_backend="eager")
