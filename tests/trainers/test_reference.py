"""The reference is what the policy was when training began; methods without one never load it."""

import math

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import trl_plus

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=True)


def step_zero_loss(trainer):
    return trainer.evaluate()["eval_loss"]


def edited(tiny_model_dir):
    """A model that no longer is what its path says."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    return model


@pytest.mark.parametrize("kind", ["path", "edited", "in memory", "fresh adapter", "pretrained adapter", "precomputed"])
def test_dpo_loss_is_ln2_before_the_first_step(kind, make_trainer, pair_rows, tiny_model_dir, build_tiny_model):
    config = {"precompute_ref_log_probs": True} if kind == "precomputed" else {}
    extra = {"eval_dataset": Dataset.from_list(pair_rows(4))}
    if kind == "path":
        extra["model"] = tiny_model_dir
    elif kind == "edited":
        extra["model"] = edited(tiny_model_dir)
    elif kind == "in memory":
        extra["model"] = build_tiny_model(9)
    elif kind == "fresh adapter":
        extra["peft_config"] = LORA
    elif kind == "pretrained adapter":
        model = get_peft_model(edited(tiny_model_dir), LORA)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        extra["model"] = model
    trainer = make_trainer("DPO", pair_rows(4), reference=False, trainer=extra, **config)
    assert step_zero_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)
    trainer.train()
    assert step_zero_loss(trainer) != pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("method", ["SimPO", "CPO", "ORPO"])
@pytest.mark.parametrize("as_path", [True, False])
def test_reference_free_methods_load_nothing_else(
    method, as_path, make_trainer, pair_rows, tiny_model_dir, monkeypatch
):
    loads, hashes = [], []
    model = tiny_model_dir if as_path else edited(tiny_model_dir)
    original = transformers.Qwen2ForCausalLM.from_pretrained.__func__

    def counted(cls, *args, **kwargs):
        loads.append(args)
        return original(cls, *args, **kwargs)

    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "from_pretrained", classmethod(counted))
    monkeypatch.setattr("trl.trainer.dpo_trainer.hash_module", lambda module: hashes.append(module))
    from trl.trainer import dpo_trainer

    loader = dpo_trainer.create_model_from_path
    trainer = make_trainer(method, pair_rows(4), trainer={"model": model})
    own = 1 if as_path else 0
    # make_trainer itself loads a model, which `trainer=` then replaces
    assert len(loads) <= own + 1
    assert trainer.ref_model is None
    assert not hashes
    assert dpo_trainer.create_model_from_path is loader
    trainer.train()


def test_reference_free_keeps_one_adapter(make_trainer, pair_rows, tiny_model_dir):
    model = get_peft_model(edited(tiny_model_dir), LORA)
    trainer = make_trainer("SimPO", pair_rows(4), trainer={"model": model})
    assert set(trainer.model.peft_config) == {"default"}
    trainer.train()


def test_the_copy_is_frozen_and_apart(make_trainer, pair_rows):
    trainer = make_trainer("DPO", pair_rows(4), reference=False)
    before = [p.detach().clone() for p in trainer.ref_model.parameters()]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.ref_model.parameters(), strict=True))
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())


def test_public_names():
    for name in ("DPO", "SimPO", "ORPO", "CPO", "KTO"):
        assert getattr(trl_plus, f"{name}Trainer").__name__ == f"{name}Trainer"
        assert getattr(trl_plus, f"{name}Config").__name__ == f"{name}Config"
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = trl_plus.NoSuchTrainer
