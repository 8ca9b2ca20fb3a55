"""Making a trainer of any method on the tiny model, and taking one plain SGD step with it."""

from importlib.metadata import version

import pytest
import torch
import trl
from datasets import Dataset
from packaging.version import Version
from transformers import AutoModelForCausalLM

import trl_plus

# TRL 1.15's LM head needs Triton, so on a CPU there is nothing to compare with, nor a loss of TRL's to use
TRL_RUNS = Version(version("trl")) >= Version("1.16") or torch.cuda.is_available()
TRLS_OWN = {"f_divergence_type", "ld_alpha", "use_weighting"}
WITH_REFERENCE = ("DPO", "KTO")


@pytest.fixture
def make_trainer(tmp_path, tiny_model_dir, other_model_dir, tokenizer):
    """make_trainer("SimPO", rows, beta=2.0, trainer={...}) -> trainer; keywords are fields of its configuration."""

    def make(method, rows, *, trainer=None, module=trl_plus, reference=True, **config):
        uses_trl = module is trl or TRLS_OWN & config.keys() or "aot" in str(config.get("loss_type"))
        if uses_trl and not TRL_RUNS:
            pytest.skip("TRL 1.15 does not run on a CPU without Triton")
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "max_steps": 1,
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "report_to": [],
            "save_strategy": "no",
            "logging_steps": 1,
            "seed": 3,
            "disable_tqdm": True,
            "max_length": 128,
        } | config
        extra = {"model": AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)}
        if method in WITH_REFERENCE and reference:
            extra["ref_model"] = AutoModelForCausalLM.from_pretrained(other_model_dir, dtype=torch.float32)
        extra |= trainer or {}
        return getattr(module, f"{method}Trainer")(
            args=getattr(module, f"{method}Config")(**settings),
            train_dataset=rows if not isinstance(rows, list) else Dataset.from_list(rows),
            processing_class=tokenizer,
            **extra,
        )

    return make


@pytest.fixture
def update_of(make_trainer):
    """update_of("SimPO", rows, batch=4, accumulation=2, ...) -> {parameter: change} of one SGD step with rate 1."""

    def update(method, rows, batch, accumulation=1, **kwargs):
        trainer = make_trainer(
            method,
            rows,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **kwargs,
        )
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        return {n: (p.detach() - before[n]).double() for n, p in trainer.model.named_parameters() if n in before}

    return update


def difference(a, b):
    """Relative L2 distance of two updates."""
    gap = sum(((a[n] - b[n]) ** 2).sum() for n in a) ** 0.5
    size = sum((a[n] ** 2).sum() for n in a) ** 0.5
    assert size > 0
    return float(gap / size)


@pytest.fixture(name="difference")
def difference_fixture():
    return difference
