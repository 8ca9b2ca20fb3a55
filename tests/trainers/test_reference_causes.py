"""The warning about a policy that is not its reference at the first step names the cause that applies."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM


def lora(**options):
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize(
    "what, cause",
    [
        ("full model", "After the trainer was built 1 trainable weight (model.norm.weight) changed"),
        ("copied adapter", "After the trainer was built"),
        ("biases", "After the trainer was built"),
        ("new adapter", "The adapter was changed after the trainer was built"),
        ("init", "LORA does not start at zero (`init_lora_weights=False`)"),
        ("prompt tuning", "PROMPT_TUNING puts virtual tokens before every row"),
        ("attention dropout", "`attention_dropout: 0.4` in its configuration"),
    ],
)
def test_the_cause_that_applies_is_named(what, cause, make_trainer, pair_rows, tiny_model_dir, caplog):
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model_dir, dtype=torch.float32, attention_dropout=0.4 if what == "attention dropout" else 0.0
    )
    given = {"copied adapter": lora(), "biases": lora(bias="all")}
    if what in given:
        model = get_peft_model(model, given[what])
    extra = {
        "new adapter": {"model": model, "peft_config": lora()},
        "init": {"model": model, "peft_config": lora(init_lora_weights=False)},
        "prompt tuning": {
            "model": model,
            "peft_config": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        },
    }.get(what, {"model": model})
    trainer = make_trainer("DPO", pair_rows(4), reference=False, trainer=extra)
    if what == "full model":
        with torch.no_grad():
            trainer.model.model.norm.weight.mul_(1.5)
    elif what in ("copied adapter", "biases", "new adapter"):
        shaken(trainer.model)
    trainer.train()
    assert caplog.text.count("not its reference at the first step") == 1
    assert cause in caplog.text
