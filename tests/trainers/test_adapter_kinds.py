"""Every kind of adapter that PEFT registers: the policy as its own reference is right, or the kind is refused in words.

The expected logits are those of a model that never trains: the base built again, or a copy of the adapter as given.
"""

import copy
import importlib

import peft
import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import LlamaConfig, LlamaForCausalLM

from trl_plus.trainers.adapters import adapter_layers, adapter_tensors, check_kind
from trl_plus.trainers.construction import own_reference_adapter
from trl_plus.trainers.reference import OwnReference

IDS = torch.arange(3, 23)[None]
VIRTUAL = {"num_virtual_tokens": 3}
NORMS = {"target_modules": ["input_layernorm", "norm"]}
DOWN = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
TOKENS = {"target_modules": ["embed_tokens"], "token_indices": [3, 4, 9]}
# What a kind needs beside a task, or instead of the target q_proj and a rank of 4
OPTIONS = {
    "PROMPT_TUNING": VIRTUAL,
    "MULTITASK_PROMPT_TUNING": VIRTUAL | {"num_tasks": 1},
    "P_TUNING": VIRTUAL | {"encoder_hidden_size": 16},
    "PREFIX_TUNING": VIRTUAL,
    "CARTRIDGE": VIRTUAL,
    "CPT": {"cpt_token_ids": [5, 6], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 2},
    "ADALORA": {"init_r": 6, "target_r": 4, "total_step": 10, "tinit": 1, "tfinal": 2},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "BEFT": {"target_modules": ["v_proj"]},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 8},
    "IA3": DOWN,
    "LN_TUNING": NORMS,
    "OFT": {"oft_block_size": 4},
    "POLY": {"r": 4, "n_tasks": 1, "n_skills": 2},
    "ROAD": {"group_size": 8},
    "TINYLORA": {"r": 2, "u": 4},
    "TRAINABLE_TOKENS": TOKENS,
    "UNILORA": {"r": 2, "theta_d_length": 16},
    "VBLORA": {"r": 2, "num_vectors": 8, "vector_length": 8},
    "WAVEFT": {"n_frequency": 20},
}
NO_TARGETS = {*(kind for kind, options in OPTIONS.items() if options is VIRTUAL), "MULTITASK_PROMPT_TUNING", "P_TUNING"}
NO_TARGETS |= {"CPT", "ADAPTION_PROMPT"}
REFUSED = {"POLY", "MULTITASK_PROMPT_TUNING", "CPT", "SHADOW"}
ELSEWHERE = {"XLORA", "MIXED"}  # built of adapters that are on the disk; not a kind of its own


def llama(**options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, **options,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model


def moved(model, by=0.05, seed=7):
    """Every trainable weight changed, as by training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * by)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits[:, -IDS.size(1) :]


def of_trainer(model, given):
    """What a trainer makes of a PEFT model: TRL's constructor asks for a copy of a given adapter."""
    if given:
        with own_reference_adapter(model, reference=True):
            model.add_adapter("ref", model.peft_config["default"])
    check_kind(model)
    return OwnReference(model, given)


def check(config, given, base=llama, name="default"):
    model = get_peft_model(base(), copy.deepcopy(config), adapter_name=name)
    frozen = base()
    if given:
        frozen = copy.deepcopy(moved(model))
    elif config.peft_type == "LORA" and str(config.init_lora_weights).startswith("pissa"):
        frozen = copy.deepcopy(model)
    expected = logits(frozen.eval())
    own = of_trainer(model.train(), given)
    flags = {n: (p.requires_grad, p.data_ptr()) for n, p in model.named_parameters()}
    for step in range(2):
        with own.active():
            torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
        assert {n: (p.requires_grad, p.data_ptr()) for n, p in model.named_parameters()} == flags
        assert all(module.training for module in model.modules())
        if step == 0:
            assert own.differences() == []
            moved(model, 0.3, seed=8)
            policy = logits(model.eval())
            assert not torch.allclose(policy, expected, atol=1e-3)
            model.train()
    assert torch.equal(logits(model.eval()), policy)
    return model, own


def config_of(kind):
    options = OPTIONS.get(kind, {})
    if kind not in NO_TARGETS:
        options = {"target_modules": ["q_proj"]} | options
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    if "r" in cls.__dataclass_fields__ and kind not in ("OFT", "SUPERTUNING", "ADALORA"):
        options = {"r": 4} | options
    return cls(task_type="CAUSAL_LM", **options)


@pytest.mark.parametrize("given", [True, False], ids=["given", "new"])
@pytest.mark.parametrize("kind", [k.value for k in PeftType if k in PEFT_TYPE_TO_CONFIG_MAPPING and k not in ELSEWHERE])
def test_every_kind(kind, given):
    if kind == "ADAMSS" and importlib.util.find_spec("sklearn") is None:
        with pytest.raises(ImportError, match="pip install scikit-learn"):
            get_peft_model(llama(), config_of(kind))
        return
    config = config_of(kind)
    if kind in REFUSED:
        with pytest.raises(ValueError, match=f"type {kind} do not work here: .* Fix: "):
            of_trainer(get_peft_model(llama(), config), given=False)
    else:
        check(config, given)


def lora(**options):
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options)


def with_biases():
    return moved(llama(attention_bias=True))


VARIANTS = {
    "plain": lora(),
    "embeddings": lora(target_modules=["q_proj", "embed_tokens"]),
    "trainable tokens": lora(trainable_token_indices={"embed_tokens": [3, 4, 9]}),
    "trainable tokens, tied": lora(trainable_token_indices=[3, 4, 9]),
    "modules_to_save": lora(modules_to_save=["embed_tokens", "lm_head", "norm"]),
    "DoRA": lora(use_dora=True),
    "bias of each layer": lora(lora_bias=True),
    "rsLoRA": lora(use_rslora=True, rank_pattern={"v_proj": 2}),
    "PiSSA": lora(init_lora_weights="pissa"),
    "bias all": lora(bias="all"),
    "bias lora_only": lora(bias="lora_only"),
    "dropout": lora(lora_dropout=0.5),
    "layers replicated": lora(layer_replication=[[0, 2], [1, 2]]),
}


@pytest.mark.parametrize("given", [True, False], ids=["given", "new"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_lora(variant, given):
    if variant == "layers replicated" and not given:
        return  # the model without the adapter is the deeper one, which PEFT alone can build
    tied = variant == "trainable tokens, tied"
    base = with_biases if "bias " in variant else lambda: llama(tie_word_embeddings=tied)
    model, own = check(VARIANTS[variant], given, base)
    copied = given and variant not in ("bias all", "bias lora_only", "layers replicated")
    assert ("ref" in model.peft_config) == own.copied == copied
    assert bool(own.outside) == variant.startswith("bias ") - (variant == "bias of each layer")


def test_a_copy_equals_the_adapter_tensor_by_tensor():
    config = lora(
        target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"], use_dora=True, alpha_pattern={"q_proj": 3}
    )
    model, given = get_peft_model(llama(), config, adapter_name="sft"), 0
    of_trainer(moved(model), given=True)
    for layer in adapter_layers(model):
        tensors = adapter_tensors(layer)
        for name, tensor in tensors.items():
            if "sft" in name.split("."):
                given += 1
                twin = tensors[".".join("ref" if part == "sft" else part for part in name.split("."))]
                assert torch.equal(twin, tensor)
                assert not twin.requires_grad
    assert given == 3 * (2 + 1) + 5  # A, B and magnitude of q_proj and of the embeddings; every layer named *norm


def test_a_scale_that_was_set_by_hand_is_copied():
    model = moved(get_peft_model(llama(), lora()))
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scale_layer(3.0)
    expected = logits(model.eval())
    own = of_trainer(model, given=True)
    with own.active():
        torch.testing.assert_close(logits(model), expected)


def test_other_adapters_of_the_model_are_left_alone():
    model = get_peft_model(llama(), lora(), adapter_name="sft")
    model.add_adapter("other", lora(r=2))
    model.add_adapter("default", lora(r=3))  # TRL copies this one
    moved(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    expected = logits(model.eval())
    own = of_trainer(model, given=True)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    moved(model, 0.3, seed=8)
    with own.active():
        torch.testing.assert_close(logits(model), expected)
    assert set(model.peft_config) == {"sft", "other", "default", "ref"}
    assert model.active_adapters == ["sft"]
