"""The memory of a step: parameters by hand, adapters as PEFT counts them, and how the peak moves."""

import pytest
import torch

from trl_plus.errors import RecipeError
from trl_plus.estimate.model import build_model, quantized_bytes, read_config
from trl_plus.estimate.run import estimate
from trl_plus.setup.objects import build

LORA = ("use_peft=true", "lora_target_modules=all-linear")
# embeddings and head 2*1280*16; per layer q, o 16*16, k, v 16*8, three of the MLP 16*48, two norms; last norm
PARAMETERS = 2 * 1280 * 16 + 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 48 + 2 * 16) + 16


def peak(loaded, **kwargs):
    return estimate(loaded, device="cpu", **kwargs).peak


def test_parameters_weights_and_states_by_hand(recipe):
    found = estimate(recipe(), device="cpu")
    assert found.parameters == (PARAMETERS, PARAMETERS)
    buffers = found.components["weights"] - 4 * PARAMETERS
    assert 0 <= buffers < 100  # inverse frequencies
    assert found.components["optimizer"] == 8 * PARAMETERS  # two float32 moments
    assert found.components["gradients"] == 4 * PARAMETERS  # of the micro-batches before


@pytest.mark.parametrize("target", ["all-linear", "[q_proj,v_proj]"])
@pytest.mark.parametrize("more", [(), ("lora_modules_to_save=[embed_tokens]",), ("use_dora=true",)])
def test_adapters_are_what_peft_makes(recipe, model_folder, target, more):
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import get_peft_config

    objects = build(recipe("use_peft=true", f"lora_target_modules={target}", *more))
    real = get_peft_model(
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder)), get_peft_config(objects.model)
    )
    trained = sum(p.numel() for p in real.parameters() if p.requires_grad)
    found = estimate(recipe("use_peft=true", f"lora_target_modules={target}", *more), device="cpu")
    assert found.parameters[1] == trained
    assert found.components["adapter"] == 4 * trained


def test_four_bit_weights_by_hand(recipe):
    # 2 * (512 + 256 + 2304) linear weights; 100 of them: 50 bytes and 2 blocks
    assert quantized_bytes(100, 10, 4, nested=False) == (50, 8)
    assert quantized_bytes(100, 10, 4, nested=True) == (50, 2 + 4)
    assert quantized_bytes(100, 10, 8, nested=False) == (100, 40)
    linear = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 48)
    found = estimate(recipe(*LORA, "load_in_4bit=true"), device="cpu")
    rest = 4 * (PARAMETERS - linear)
    assert found.components["weights"] - rest - linear / 2 - linear / 16 == pytest.approx(0, abs=100)
    assert found.parameters[0] - found.parameters[1] == PARAMETERS
    lora = estimate(recipe(*LORA), device="cpu")
    assert found.components["adapter"] * 2 == lora.components["adapter"]  # bfloat16 instead of float32


@pytest.mark.parametrize(
    ("method", "more", "second"),
    [
        ("simpo", (), False), ("orpo", (), False), ("cpo", (), False), ("dpo", (), True), ("kto", (), True),
        ("dpo", LORA, False), ("kto", LORA, False), ("dpo", ("precompute_ref_log_probs=true",), False),
        ("kto", ("precompute_ref_log_probs=true",), True),
    ],
)  # fmt: skip
def test_who_keeps_a_reference(recipe, method, more, second):
    found = estimate(recipe(f"method={method}", *more), device="cpu")
    assert ("reference" in found.components) is second
    if second:
        assert found.components["reference"] == found.components["weights"]


def test_the_peak_grows_with_batch_and_length_and_shrinks_with_checkpointing(recipe):
    sizes = [peak(recipe(f"per_device_train_batch_size={n}")) for n in (1, 2, 4, 8)]
    lengths = [peak(recipe(f"max_length={n}")) for n in (32, 48, 64)]
    assert sizes == sorted(set(sizes))
    assert lengths == sorted(set(lengths))
    assert peak(recipe("gradient_checkpointing=true", "per_device_train_batch_size=8")) < sizes[-1]


def test_attention_implementations(recipe):
    kinds = ["sdpa", "eager", "flash_attention_2"]
    activations = {
        kind: estimate(
            recipe(f"attn_implementation={kind}", "layout=rows", "per_device_train_batch_size=8"), device="cpu"
        ).components["activations"]
        for kind in kinds
    }
    assert activations["flash_attention_2"] < activations["sdpa"] < activations["eager"]


def test_the_largest_micro_batch_keeps_the_effective_batch(recipe):
    found = estimate(recipe(), device="cpu", memory=1000).fit
    assert (found.batch, found.accumulation) == (8, 1)
    limit = estimate(recipe("per_device_train_batch_size=4", "gradient_accumulation_steps=2"), device="cpu").peak
    fit = estimate(recipe(), device="cpu", memory=(limit + 1) / 2**30).fit
    assert (fit.batch, fit.accumulation) == (4, 2)
    assert fit.peak <= limit + 1


def test_a_cure_is_what_the_changed_recipe_needs(recipe):
    one = ("per_device_train_batch_size=1", "gradient_checkpointing=false")
    whole = estimate(recipe(*one), device="cpu").peak
    fit = estimate(recipe("gradient_checkpointing=false"), device="cpu", memory=0.001).fit
    assert fit.batch is None
    cures = {cure.overrides: cure.peak for cure in fit.cures}
    for words in ("gradient_checkpointing=true", "use_peft=true"):
        assert cures[words] == estimate(recipe(one[0], words), device="cpu").peak < whole
    assert fit.cures[-1].peak <= min(cures.values())


def test_nothing_of_the_model_is_allocated(recipe):
    """The same architecture with 8 billion parameters: its weights would not fit, and only its shapes are made."""
    objects = build(recipe())
    config = read_config(objects)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 4096, 14336, 32
    model = build_model(objects, config, torch.float32)
    assert all(p.device.type == "meta" for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) > 5e9


def test_mixed_precision_on_a_gpu(recipe):
    """On CUDA bf16 is the default; linear layers then keep their inputs in two bytes."""
    options = ("per_device_train_batch_size=8", "bf16=null")
    assert estimate(recipe(*options, "fp16=false"), device="cuda").components["activations"] > 0
    half, full = (estimate(recipe(o), device="cuda").components["activations"] for o in ("bf16=true", "bf16=false"))
    assert half < full


def test_a_model_that_cannot_be_read_is_one_sentence(recipe):
    with pytest.raises(RecipeError, match=r"could not be read.*model_name_or_path=FOLDER"):
        estimate(recipe("model_name_or_path=org/nowhere"), device="cpu")


def test_without_data_max_length_is_the_bound(recipe):
    found = estimate(recipe("dataset_name=org/data"), device="cpu")
    assert (found.shape.rows, found.shape.tokens, found.plan.steps) == (4, 64, None)
    assert "max_length 64" in " ".join(found.notes)
    with pytest.raises(RecipeError, match="set `max_length`"):
        estimate(recipe("dataset_name=org/data", "max_length=null"), device="cpu")


def test_shards(recipe):
    one = estimate(recipe(), device="cuda").components
    four = estimate(recipe(), device="cuda", accelerate_config="engines/fsdp2", num_processes=4).components
    for name in ("weights", "gradients", "optimizer"):
        assert four[name] == -(-one[name] // 4)
    assert four["engine"] > 0
    zero = estimate(recipe("bf16=true"), device="cuda", accelerate_config="engines/zero3", num_processes=4).components
    assert zero["optimizer"] == 12 * PARAMETERS // 4  # two moments and the float32 weights
    assert zero["gradients"] == 2 * PARAMETERS // 4
    assert zero["activations"] <= estimate(recipe("bf16=true"), device="cuda").components["activations"]
    ddp = estimate(recipe(), device="cuda", num_processes=4).components
    assert ddp["weights"] == one["weights"]
    assert ddp["engine"] == 4 * PARAMETERS


def test_dtype_of_the_weights(recipe):
    half = estimate(recipe("dtype=bfloat16"), device="cpu").components["weights"]
    assert half < 2 * PARAMETERS + 100
    assert torch.bfloat16.itemsize == 2
