"""A resumed run has the reference that the run began with, wherever the model came from, precomputed or not."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def loaded(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **kwargs)


def edited(path):
    model = loaded(path)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    return {"model": model}


def built(path):
    torch.manual_seed(5)
    return {"model": AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)}


def trained_adapter(path):
    torch.manual_seed(5)
    model = get_peft_model(loaded(path), LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return {"model": model}


def qlora(path):
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return {"model": loaded(path, quantization_config=four_bits), "peft_config": LORA}


SOURCES = {
    "path": lambda path: {"model": path},
    "edited in memory": edited,
    "built in memory": built,
    "fresh adapter": lambda path: {"model": loaded(path), "peft_config": LORA},
    "trained adapter": trained_adapter,
    "QLoRA": qlora,
}


@pytest.fixture
def run(make_trainer, tiny_model_dir, tmp_path):
    def once(source, method, rows, resume=None, **config):
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.05} | config
        trainer = make_trainer(method, rows, reference=False, trainer=SOURCES[source](tiny_model_dir), **settings)
        trainer.train(resume_from_checkpoint=resume)
        weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        return weights, [log for log in trainer.state.log_history if "loss" in log]

    return once


@pytest.mark.parametrize("method", ["DPO", "KTO"])
@pytest.mark.parametrize("source", SOURCES)
def test_resumed(source, method, run, pair_rows, unpaired_rows, tmp_path):
    rows = (unpaired_rows if method == "KTO" else pair_rows)(8)
    weights, logs = run(source, method, rows)
    again, resumed_logs = run(source, method, rows, resume=str(tmp_path / "out" / "checkpoint-2"))
    assert weights.keys() == again.keys()
    gap = max(float((weights[name] - again[name]).abs().max()) for name in weights)
    assert gap == 0
    for mine, other in zip(logs, resumed_logs, strict=True):
        for name in ("loss", "rewards/chosen"):
            assert other[name] == pytest.approx(mine[name], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("source", SOURCES)
def test_precomputed_is_the_same(source, run, pair_rows):
    _, logs = run(source, "DPO", pair_rows(8))
    _, precomputed = run(source, "DPO", pair_rows(8), precompute_ref_log_probs=True)
    assert logs[-1]["loss"] != pytest.approx(logs[0]["loss"], rel=1e-3)
    for mine, other in zip(logs, precomputed, strict=True):
        assert other["loss"] == pytest.approx(mine["loss"], rel=1e-6, abs=1e-6)
