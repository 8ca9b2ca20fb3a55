"""Which reference a run has is said, and the first step warns when the policy is not it."""

import pytest
import torch
from peft import LoraConfig


def lora(init):
    return {"peft_config": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=init)}


@pytest.mark.parametrize("method", ["DPO", "KTO"])
@pytest.mark.parametrize("kind", ["instance", "path", "adapter", "given", "changed", "nonzero adapter"])
def test_said_and_checked(method, kind, make_trainer, pair_rows, unpaired_rows, tiny_model_dir, caplog):
    rows = (unpaired_rows if method == "KTO" else pair_rows)(4)
    extra = {"path": {"model": tiny_model_dir}, "adapter": lora(True), "nonzero adapter": lora(False)}.get(kind, {})
    trainer = make_trainer(method, rows, reference=kind == "given", trainer=extra)
    if kind == "changed":
        with torch.no_grad():
            trainer.model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    said = {"given": "`ref_model` that was given", "adapter": "switched off", "nonzero adapter": "switched off"}
    assert f"Reference: {'' if kind in said else 'a second, frozen model'}" in caplog.text
    assert said.get(kind, "frozen") in caplog.text
    trainer.train()
    warned = "not its reference at the first step" in caplog.text
    assert warned == (kind in ("changed", "nonzero adapter"))
