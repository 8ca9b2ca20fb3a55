"""The same inputs through TRL's trainer and ours, in one process."""

import copy
from types import SimpleNamespace

import pytest
import torch
import trl
import trl.trainer.utils
from datasets import Dataset
from transformers import AutoModelForCausalLM

import trl_plus

TIMES = {"runtime", "samples_per_second", "steps_per_second"}


class PlainHead:
    """TRL 1.15's fused LM head exists for Triton only. The same quantities, by plain matrix products."""

    @staticmethod
    def apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs):
        logits = torch.nn.functional.linear(hidden, weight, bias).float()
        logp = logits.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        chosen = logp.gather(1, targets[:, None])[:, 0]
        return (
            chosen,
            entropy,
            (2 * logp).logsumexp(-1).detach(),
            logits.mean(-1).detach(),
            logits.argmax(-1) == targets,
        )


STANDS_IN = getattr(trl.trainer.utils, "_ChunkedLogProbFunction", True) is None


@pytest.fixture(autouse=True)
def head_without_triton(monkeypatch):
    """Lets TRL 1.15 run on a CPU; a TRL whose head runs there by itself keeps it."""
    if STANDS_IN:
        monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", PlainHead)


@pytest.fixture
def make(tmp_path, tiny_model_dir, other_model_dir, tokenizer):
    """make(module, "DPO", rows, steps=2, eval_rows=..., trainer={...}, **config) -> a trainer."""

    # In float64, so that a bar of 1e-6 is far above rounding; both heads give their log-probabilities in float32
    def once(module, method, rows, *, steps=2, eval_rows=None, trainer=None, reference=True, dtype=torch.float64, **kw):
        settings = {
            "output_dir": str(tmp_path / module.__name__), "per_device_train_batch_size": 4, "max_steps": steps,
            "per_device_eval_batch_size": 4, "learning_rate": 0.1, "lr_scheduler_type": "constant", "optim": "sgd",
            "max_grad_norm": 0.0, "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": [],
            "save_strategy": "no", "logging_steps": 1, "seed": 3, "disable_tqdm": True, "max_length": 128,
            "train_sampling_strategy": "sequential",
        } | copy.deepcopy(kw)  # fmt: skip  # transformers writes into mappings
        extra = {"model": AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype)}
        if reference:
            extra["ref_model"] = AutoModelForCausalLM.from_pretrained(other_model_dir, dtype=dtype)
        extra |= {name: value() if callable(value) else value for name, value in (trainer or {}).items()}
        return getattr(module, f"{method}Trainer")(
            args=getattr(module, f"{method}Config")(**settings),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            eval_dataset=eval_rows,
            **{"processing_class": tokenizer} | extra,
        )

    return once


@pytest.fixture
def run(make):
    """run(module, "DPO", rows, steps=2, eval_rows=..., trainer={...}, **config) -> logs, evaluation and update."""

    def once(*args, eval_rows=None, **kwargs):
        made = make(*args, eval_rows=eval_rows, **kwargs)
        before = {n: p.detach().clone() for n, p in made.model.named_parameters() if p.requires_grad}
        made.train()
        logs = [log for log in made.state.log_history if "loss" in log]
        evaluation = made.evaluate() if eval_rows is not None else {}
        update = {n: (p.detach() - before[n]).double() for n, p in made.model.named_parameters() if n in before}
        return SimpleNamespace(logs=logs, evaluation=evaluation, update=update)

    return once


def assert_same_metrics(ours, theirs, rel=1e-6, absent=()):
    """Every metric that TRL logs is logged by us, and is the same number."""
    names = {n for n in theirs if not any(n.endswith(time) for time in TIMES)} - set(absent)
    assert not names - ours.keys()
    for name in names - {"grad_norm"}:
        assert ours[name] == pytest.approx(theirs[name], rel=rel, abs=rel), name


# Gradients run through log-probabilities that both heads round to float32
UPDATE_BAR = 1e-5


def assert_same(ours, theirs, rel=1e-6, absent=()):
    assert len(ours.logs) == len(theirs.logs) > 0
    for mine, other in zip(ours.logs, theirs.logs, strict=True):
        assert_same_metrics(mine, other, rel, absent)
    assert_same_metrics(ours.evaluation, theirs.evaluation, rel, [f"eval_{name}" for name in absent])
    assert ours.update.keys() == theirs.update.keys()
    gap = sum(((ours.update[n] - theirs.update[n]) ** 2).sum() for n in theirs.update) ** 0.5
    size = sum((theirs.update[n] ** 2).sum() for n in theirs.update) ** 0.5
    assert size > 0
    assert gap / size < max(rel, UPDATE_BAR)


# docs/migrating.md: TRL logs means of batch means, we log means over tokens; under accumulation these are two numbers
TOKEN_MEANS = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")


@pytest.fixture
def token_accuracy():
    """A `compute_metrics` of logits and labels: the share of tokens that the position before predicts best."""

    def compute(prediction):
        best, labels = prediction.predictions[:, :-1].argmax(-1), prediction.label_ids[:, 1:]
        return {"first_logit": float(prediction.predictions[0, 0, 0]), "hits": float((best == labels).mean())}

    return compute


@pytest.fixture
def both(run):
    """both("DPO", rows, ...) -> (ours, theirs), after asserting that they are the same."""

    def same(method, rows, *, rel=1e-6, absent=(), **kwargs):
        if STANDS_IN:  # it adds in another order than TRL's own head
            rel = max(rel, 1e-5)
        make = rows if callable(rows) else lambda: rows
        ours = run(trl_plus, method, make(), **kwargs)
        theirs = run(trl, method, make(), **kwargs)
        differing = TOKEN_MEANS if kwargs.get("gradient_accumulation_steps", 1) > 1 else ()
        assert_same(ours, theirs, rel, (*absent, *differing))
        return ours, theirs

    return same
