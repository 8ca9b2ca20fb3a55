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


def changed(trainer):
    with torch.no_grad():
        trainer.model.model.layers[0].mlp.down_proj.weight.mul_(1.5)


@pytest.mark.parametrize(
    "options", [{"f_divergence_type": "js_divergence"}, {"loss_type": "aot"}, {"ld_alpha": 0.5}], ids=str
)
@pytest.mark.parametrize("act", [None, changed], ids=["same", "changed"])
def test_checked_where_the_loss_is_trls(options, act, make_trainer, pair_rows, caplog):
    trainer = make_trainer("DPO", pair_rows(4), reference=False, **options)
    if act:
        act(trainer)
    trainer.train()
    assert caplog.text.count("not its reference at the first step") == bool(act)


@pytest.mark.parametrize("act", [None, changed], ids=["same", "changed"])
def test_z_ref_is_zero_at_the_first_step(act, make_trainer, unpaired_rows, caplog):
    """The rows of z_ref are looked at before its clamp at 0, which would hide half of all faults."""
    trainer = make_trainer("KTO", unpaired_rows(4), reference=False)
    if act:
        act(trainer)
    trainer.train()
    assert caplog.text.count("z_ref) is") == caplog.text.count("not its reference") == bool(act)
    assert (trainer.state.log_history[0]["z_ref"] == pytest.approx(0, abs=1e-5)) or act


@pytest.mark.parametrize("tokens, gap, warns", [(1, 0.25, False), (1, 0.5, True), (16, 0.02, False), (400, 0.03, True)])
def test_sixteen_bits_are_allowed_their_rounding(tokens, gap, warns, make_trainer, pair_rows, caplog):
    """Nats per token; the small ones were measured (trl_plus/trainers/reference.py)."""
    trainer = make_trainer("DPO", pair_rows(4), reference=False)
    trainer.model.train().to(torch.bfloat16)
    trainer.start_check.look(torch.tensor([0.0, gap * tokens]), torch.tensor([5.0, tokens]))
    assert ("not its reference" in caplog.text) == warns
