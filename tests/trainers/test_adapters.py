"""Full fine-tuning, LoRA, DoRA and QLoRA for every method; QLoRA on real NF4 weights: bitsandbytes runs on CPU."""

import bitsandbytes
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl.trainer.utils import use_adapter

from trl_plus.trainers.adapters import adapter_layers, reference_adapter
from trl_plus.upstream.models import base_model

METHODS = ["SimPO", "ORPO", "CPO", "DPO", "KTO"]
KINDS = ["full", "lora", "dora", "qlora", "qdora"]


def adapter(dora):
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=dora)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_trains_and_evaluates(method, kind, make_trainer, pair_rows, unpaired_rows, tiny_model_dir):
    rows = unpaired_rows if method == "KTO" else pair_rows
    extra = {"model": tiny_model_dir, "eval_dataset": Dataset.from_list(rows(4, 2))}
    if kind != "full":
        extra["peft_config"] = adapter(kind.endswith("dora"))
    if kind.startswith("q"):
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    trainer = make_trainer(
        method, rows(8), reference=False, trainer=extra, max_steps=3, learning_rate=1e-2, optim="adamw_torch"
    )
    if kind.startswith("q"):
        layers = [m for m in trainer.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
        assert layers
        assert all(layer.weight.quant_type == "nf4" for layer in layers)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    if kind != "full":
        assert all("lora" in name for name in changed)
        assert trainer.ref_model is None
    assert torch.isfinite(torch.tensor(last["eval_loss"]))
    assert last["eval_loss"] != first["eval_loss"]
    if kind.endswith("dora"):
        assert any("magnitude" in name for name in changed)


def test_gradient_checkpointing_changes_nothing(update_of, difference, pair_rows):
    plain = update_of("SimPO", pair_rows(4), 4)
    checkpointed = update_of("SimPO", pair_rows(4), 4, gradient_checkpointing=True)
    assert difference(plain, checkpointed) < 1e-5


def test_the_head_in_chunks_changes_nothing(update_of, difference, pair_rows, monkeypatch):
    import trl_plus.forward.lm_head

    whole = update_of("DPO", pair_rows(4), 4)
    monkeypatch.setattr(trl_plus.forward.lm_head, "CHUNK_ELEMENTS", 3 * 400)
    assert difference(whole, update_of("DPO", pair_rows(4), 4)) < 1e-5


def test_our_head_agrees_with_trls(make_trainer, pair_rows):
    """The same numbers as TRL's fused head, statistics included, and zero where no label asks."""
    import trl

    ours = make_trainer("DPO", pair_rows(4))
    theirs = make_trainer("DPO", pair_rows(4), module=trl)
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    a, b = (t.model(**inputs, labels=labels, use_cache=False, fused_lm_head=True) for t in (ours, theirs))
    for name in ("log_probs", "entropy", "mean_logits", "is_top1"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5)


def test_generation_still_works(make_trainer, pair_rows):
    trainer = make_trainer("SimPO", pair_rows(4))
    ids = torch.tensor([trainer.train_dataset[0]["prompt_ids"]])
    out = trainer.model.generate(ids, max_new_tokens=3, do_sample=False)
    assert out.shape[1] > ids.shape[1]


# -- the reference of an adapter ------------------------------------------------------------------------------------


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", ["DPO", "KTO"])
@pytest.mark.parametrize("kind", ["fresh", "trained"])
def test_the_reference_pass_leaves_requires_grad_alone(method, kind, make_trainer, pair_rows, unpaired_rows):
    """PEFT's contexts switch it off and on again: what was frozen on purpose is trainable after TRL's first one."""
    rows = unpaired_rows if method == "KTO" else pair_rows
    extra = {"peft_config": adapter(False)}
    if kind == "trained":  # TRL keeps a copy of it, as the reference
        base = make_trainer(method, rows(4), reference=False).model
        extra = {"model": get_peft_model(base, adapter(False))}
    trainer = make_trainer(method, rows(8), reference=False, trainer=extra, max_steps=2)
    assert ("ref" in trainer.model.peft_config) == (kind == "trained")
    for name, parameter in trainer.model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    before, seen = flags(trainer.model), []
    handle = base_model(trainer.model).register_forward_pre_hook(
        lambda module, inputs: seen.append(flags(trainer.model))
    )
    trainer.train()
    handle.remove()
    assert len(seen) >= 4  # policy and reference, two steps
    assert all(found == before for found in [*seen, flags(trainer.model)])


@pytest.mark.parametrize("kind", ["base", "saved module", "ref"])
def test_the_reference_is_what_peft_says_it_is(kind, make_trainer, pair_rows, tiny_model_dir):
    """The context that PEFT offers for it, on a model whose adapter has moved away."""
    config = adapter(False)
    if kind == "saved module":
        config.modules_to_save = ["norm"]
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32), config)
    if kind == "ref":
        model.add_adapter("ref", config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(12)[None]
    with torch.no_grad(), use_adapter(model, "ref" if kind == "ref" else None):
        expected = model(ids).logits
    policy = model(ids).logits
    with torch.no_grad(), reference_adapter(model, adapter_layers(model)):
        assert torch.equal(model(ids).logits, expected)
    assert torch.equal(model(ids).logits, policy)
    assert not torch.allclose(policy, expected, atol=1e-3)
