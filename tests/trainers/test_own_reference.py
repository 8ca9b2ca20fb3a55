"""The trainers with a PEFT model that is its own reference, against a frozen copy that is scored in plain torch."""

import copy
import math

import independent
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_plus.trainers.outside import FILE

LN2 = pytest.approx(math.log(2), abs=1e-5)


def lora(**options):
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options)


def shaken(model, by=0.05):
    """Trainable weights that are not where they started."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * by)
    return model


@pytest.fixture
def given(tiny_model_dir):
    """given(config, name) -> a PEFT model with an adapter that was trained before."""

    def make(config, name="default", by=0.05):
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        return shaken(get_peft_model(base, config, adapter_name=name), by)

    return make


def scores(model, rows, sides=("chosen_ids", "rejected_ids")):
    """(rows, sides): summed log-probabilities of the completions, each from one unpadded row's own logits."""
    with torch.no_grad():
        found = [independent.row(model, row["prompt_ids"], row[side]).logps.sum() for row in rows for side in sides]
    return torch.stack(found).view(-1, len(sides))


def reference_scores(trainer):
    trainer.model.train()
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    found = trainer.reference_log_probs(trainer.data_collator(rows))
    return torch.stack([side for side in found if side is not None], 1)


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def check(trainer, frozen, sides=("chosen_ids", "rejected_ids")):
    """Before and after training the reference scores as `frozen` does, which never trains."""
    expected = scores(frozen.eval(), trainer.train_dataset, sides)
    torch.testing.assert_close(reference_scores(trainer), expected, atol=1e-4, rtol=1e-5)
    trainer.train()
    torch.testing.assert_close(reference_scores(trainer), expected, atol=1e-4, rtol=1e-5)
    assert abs(losses(trainer)[-1] - losses(trainer)[0]) > 1e-5


def copy_of_policy(trainer, frozen):
    """The policy's weights in a model without any of the trainer's patches."""
    policy = copy.deepcopy(frozen)
    mine = dict(trainer.model.named_parameters())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.copy_(mine[name])
    return policy.eval()


KINDS = {
    "LoRA named sft": (lora(), "sft"),
    "biases": (lora(bias="all"), "default"),
    "tokens": (lora(trainable_token_indices={"embed_tokens": [5, 6, 7]}), "default"),
    "IA3": (IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"), "sft"),
    "prompt tuning": (PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "default"),
}
SGD = {"max_steps": 3, "learning_rate": 0.5, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_adapter_is_the_reference(kind, given, make_trainer, pair_rows):
    config, name = KINDS[kind]
    model = given(config, name)
    frozen = copy.deepcopy(model)
    trainer = make_trainer(
        "DPO", pair_rows(4), reference=False, trainer={"model": model}, **SGD | {"learning_rate": 5.0}
    )
    check(trainer, frozen)
    assert losses(trainer)[0] == LN2


def test_kto_and_simpo_take_an_adapter_of_any_name(given, make_trainer, unpaired_rows, pair_rows):
    model = given(lora(bias="all"), "sft")
    frozen = copy.deepcopy(model)
    trainer = make_trainer("KTO", unpaired_rows(6), reference=False, trainer={"model": model}, **SGD)
    check(trainer, frozen, ("completion_ids",))
    trainer = make_trainer("SimPO", pair_rows(4), trainer={"model": given(lora(), "sft")})
    assert set(trainer.model.peft_config) == {"sft"}
    trainer.train()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize(
    "options", [{}, {"f_divergence_type": "js_divergence"}, {"precompute_ref_log_probs": True}], ids=str
)
def test_trained_biases_do_not_move_the_reference(bias, options, make_trainer, pair_rows, tiny_model_dir, caplog):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    extra = {"model": copy.deepcopy(base), "peft_config": lora(bias=bias)}
    trainer = make_trainer("DPO", pair_rows(4), reference=False, trainer=extra, **SGD, **options)
    assert "first values of" in caplog.text
    assert "base_layer.bias" in caplog.text
    check(trainer, base)
    assert losses(trainer)[0] == LN2


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"loss_type": ["ipo"]}], ids=str)
def test_one_step_is_that_of_plain_torch(options, given, make_trainer, pair_rows):
    """Values that are swapped between forward and backward leave the gradient alone, checkpointed or not."""
    model = given(lora(bias="all"))
    frozen = copy.deepcopy(model).eval()
    trainer = make_trainer("DPO", pair_rows(4), reference=False, trainer={"model": model}, **options)
    shaken(trainer.model, 0.1)
    loss, expected = independent.loss_and_gradient(
        "DPO",
        copy_of_policy(trainer, frozen),
        trainer.train_dataset,
        reference=frozen,
        beta=0.1,
        loss_type=options.get("loss_type", ["sigmoid"]),
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    step = {n: before[n] - p.detach() for n, p in trainer.model.named_parameters() if n in before}
    assert losses(trainer)[0] == pytest.approx(loss, abs=1e-5)
    assert independent.distance(step, expected) < 1e-4


def test_autocast_does_not_hand_the_reference_the_policys_weights(given, make_trainer, pair_rows):
    """Within one autocast context PyTorch keeps 16-bit copies of trainable weights, by parameter."""
    trainer = make_trainer(
        "DPO", pair_rows(4), reference=False, trainer={"model": given(lora(bias="all"))}, bf16=True, **SGD
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    before = reference_scores(trainer)
    shaken(trainer.model, 0.5)
    trainer.model.train()
    with trainer.compute_loss_context_manager():
        trainer.score(trainer.model, dict(batch))
        after = torch.stack(trainer.reference_log_probs(dict(batch)), 1)
        policy = trainer.score(trainer.model, dict(batch)).logps.sum()
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    with trainer.compute_loss_context_manager():
        assert torch.equal(trainer.score(trainer.model, dict(batch)).logps.sum(), policy)


def unfreeze_norms(model):
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.requires_grad_(True)


@pytest.mark.parametrize("when", ["before", "after"])
def test_unfrozen_norms_stay_out_of_the_reference_and_are_saved(
    when, make_trainer, pair_rows, tiny_model_dir, tmp_path, caplog
):
    """Unfrozen before or after the trainer was built; a resumed run ends with the same bits."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)

    def run(resume=None):
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(base), lora())
        if when == "before":
            unfreeze_norms(model)
        trainer = make_trainer(
            "DPO", pair_rows(8), reference=False, trainer={"model": model} if when == "before" else
            {"model": copy.deepcopy(base), "peft_config": lora()},
            max_steps=4, save_strategy="steps", save_steps=2, learning_rate=0.05,
        )  # fmt: skip
        unfreeze_norms(trainer.model)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    trainer = run()
    assert f"are written to {FILE}" in caplog.text
    assert "modules_to_save" in caplog.text
    torch.testing.assert_close(
        reference_scores(trainer), scores(base.eval(), trainer.train_dataset), atol=1e-4, rtol=1e-5
    )
    again = run(str(tmp_path / "out" / "checkpoint-2"))
    mine, theirs = dict(trainer.model.named_parameters()), dict(again.model.named_parameters())
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    (tmp_path / "out" / "checkpoint-2" / FILE).unlink()
    with pytest.raises(ValueError, match=f"{FILE} is missing"):
        run(str(tmp_path / "out" / "checkpoint-2"))


def test_precomputed_references_are_named_by_the_first_values(given, make_trainer, pair_rows):
    keys = []
    for by in (0.05, 0.05, 0.1):
        model = given(IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"), by=by)
        trainer = make_trainer("DPO", pair_rows(4), reference=False, trainer={"model": model}, **SGD)
        keys.append(trainer.reference_cache.key(trainer.train_dataset))
        trainer.train()
        assert trainer.reference_cache.key(trainer.train_dataset) == keys[-1]
    assert keys[0] == keys[1] != keys[2]


# -- refused, in words ------------------------------------------------------------------------------------------------


def test_an_adapter_for_inference_is_refused(given, make_trainer, pair_rows, tiny_model_dir, tmp_path):
    given(lora()).save_pretrained(tmp_path / "sft")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "sft")
    for method in ("DPO", "SimPO"):
        with pytest.raises(ValueError, match=r"loaded for inference.*is_trainable=True"):
            make_trainer(method, pair_rows(4), reference=False, trainer={"model": model})


def test_a_merged_adapter_is_refused(given, make_trainer, pair_rows):
    model = given(lora())
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        make_trainer("DPO", pair_rows(4), reference=False, trainer={"model": model})


def test_an_adapter_called_ref_is_not_taken_for_ours(given, make_trainer, pair_rows):
    model = given(lora())
    model.add_adapter("ref", lora())
    with pytest.raises(ValueError, match="already has an adapter called 'ref'"):
        make_trainer("DPO", pair_rows(4), reference=False, trainer={"model": model})
    assert set(make_trainer("SimPO", pair_rows(4), trainer={"model": model}).model.peft_config) == {"default", "ref"}


def test_a_second_trainer_takes_the_adapter_as_it_is_then(given, make_trainer, pair_rows):
    model = given(lora())
    for _ in range(2):
        frozen = copy.deepcopy(model)
        trainer = make_trainer("DPO", pair_rows(4), reference=False, trainer={"model": model}, **SGD)
        expected = scores(copy_of_policy(trainer, frozen), trainer.train_dataset)
        torch.testing.assert_close(reference_scores(trainer), expected, atol=1e-4, rtol=1e-5)
        trainer.train()
        assert losses(trainer)[0] == LN2
        model = trainer.model


def test_sharded_weights_are_refused_by_name(make_trainer, pair_rows, tiny_model_dir, monkeypatch):
    from trl_plus.trainers.outside import OutsideWeights

    monkeypatch.setattr(OutsideWeights, "shards_weights", lambda self: True)
    extra = {"model": tiny_model_dir, "peft_config": lora(bias="all")}
    with pytest.raises(ValueError, match=r"shard the weights.*bias.*Fix: .*bias='none'"):
        make_trainer("DPO", pair_rows(4), reference=False, trainer=extra)
    make_trainer("DPO", pair_rows(4), reference=False, trainer=extra | {"peft_config": lora()})
