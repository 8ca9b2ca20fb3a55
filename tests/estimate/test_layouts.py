"""An estimate computes the rows in the layout that the run will use."""

import json

import pytest

from trl_plus.data.loading import load
from trl_plus.errors import RecipeError
from trl_plus.estimate.run import estimate
from trl_plus.estimate.step import Row, Rows
from trl_plus.forward.layouts import make_plan
from trl_plus.setup.objects import build
from trl_plus.setup.trainer import build_trainer, load_processor
from trl_plus.trainers.layouts import reason_of_run

ROWS = 4
LONG_PROMPTS = ("max_length=128", f"per_device_train_batch_size={ROWS}", "gradient_accumulation_steps=1")


@pytest.fixture
def pairs(tmp_path):
    """Four pairs of long prompts and short responses of different lengths, two of which begin alike."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": "please thank you " * (10 + 3 * i)}],
            "chosen": [{"role": "assistant", "content": "thank you " * (1 + i)}],
            "rejected": [{"role": "assistant", "content": ("the " if i % 2 else "thank you ") * (2 + i)}],
        }
        for i in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"dataset_name={path}"


def real_plan(loaded):
    """The layout of the first training micro-batch of a real run."""
    objects = build(loaded)
    trainer = build_trainer(objects, load(objects.data), load_processor(objects), [])
    trainer.train()
    return trainer.row_layouts[0].plan


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_tokens_are_those_of_the_real_plan(recipe, pairs, layout, model_folder, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    weights = tmp_path / "weights"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder)).save_pretrained(weights)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(weights)
    words = (pairs, *LONG_PROMPTS, f"layout={layout}", f"model_name_or_path={weights}")
    found = estimate(recipe(*words), device="cpu")
    quiet = ("max_steps=1", "report_to=none", "save_strategy=no", "use_cpu=true")
    plan = real_plan(recipe(*words, *quiet))
    assert found.shape.computed == plan.computed
    assert sorted(found.shape.plan.runs) == sorted(plan.runs)


def test_shared_prompts_need_less_than_rows(recipe, pairs):
    rows = estimate(recipe(pairs, *LONG_PROMPTS, "layout=rows"), device="cpu")
    for layout, lowest in (("packed", 0.2), ("auto", 0.2), ("shared", 0.3)):
        found = estimate(recipe(pairs, *LONG_PROMPTS, f"layout={layout}"), device="cpu")
        assert found.shape.computed < 0.7 * rows.shape.computed
        assert lowest < found.components["activations"] / rows.components["activations"] < 0.8
        assert found.peak < rows.peak
        assert found.shape.scored == rows.shape.scored
        assert found.mean_tokens < rows.mean_tokens


def test_cuda_gathers_the_shared_keys_of_packed_rows_only(recipe, pairs):
    """Per token they keep more than `shared`: keys and values of a prompt once for each response."""
    options = (pairs, *LONG_PROMPTS, "bf16=false")
    packed, shared, rows = (
        estimate(recipe(*options, f"layout={name}"), device="cuda") for name in ("packed", "shared", "rows")
    )
    assert packed.components["activations"] < rows.components["activations"]
    per_token = [found.components["activations"] / found.shape.computed for found in (packed, shared)]
    assert per_token[0] > per_token[1]


def test_a_budget_of_tokens(recipe, pairs):
    whole = estimate(recipe(pairs, *LONG_PROMPTS), device="cpu")
    half = estimate(recipe(pairs, *LONG_PROMPTS, f"tokens_per_device={whole.shape.computed // 2}"), device="cpu")
    assert 0 < half.shape.computed <= whole.shape.computed // 2
    assert half.peak < whole.peak
    alone = estimate(recipe(pairs, *LONG_PROMPTS, "tokens_per_device=1"), device="cpu")
    assert alone.shape.rows == 2  # a longer row is computed alone
    padded = estimate(recipe(pairs, *LONG_PROMPTS, f"tokens_per_device={whole.shape.computed}", "layout=rows"), "cpu")
    assert padded.shape.rows == 2 * ROWS
    assert padded.shape.computed > whole.shape.computed


def test_the_largest_budget_that_fits(recipe):
    step = ("per_device_train_batch_size=16", "gradient_accumulation_steps=4")
    some = estimate(recipe(*step), device="cpu")
    fit = estimate(recipe(*step), device="cpu", memory=(some.peak + 1) / 2**30).fit
    assert fit.tokens_peak == estimate(recipe(*step, f"tokens_per_device={fit.tokens}"), device="cpu").peak
    assert fit.tokens_peak <= some.peak + 1
    more = estimate(recipe(*step, f"tokens_per_device={int(1.15 * fit.tokens)}"), device="cpu")
    assert more.peak > some.peak
    everything = estimate(recipe(*step), device="cpu", memory=1000).fit
    assert everything.tokens == estimate(recipe("per_device_train_batch_size=64"), device="cpu").shape.computed


def test_what_rules_a_layout_out_is_said_in_the_words_of_the_trainer(recipe):
    noisy = recipe("neftune_noise_alpha=5")
    found = estimate(noisy, device="cpu")
    assert (found.rows.layout, found.shape.plan) == ("rows", None)
    assert reason_of_run(None, build(noisy).args) in " ".join(found.notes)
    assert "neftune_noise_alpha depends on" in " ".join(found.notes)
    with pytest.raises(RecipeError, match="`layout: packed` does not work here: the noise of neftune_noise_alpha"):
        estimate(recipe("neftune_noise_alpha=5", "layout=packed"), device="cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_attention_that_no_layout_carries(recipe, model_folder, tmp_path, device):
    from transformers import AutoTokenizer, GptOssConfig

    folder = tmp_path / "sinks"
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    GptOssConfig(
        architectures=["GptOssForCausalLM"], vocab_size=1280, hidden_size=16, intermediate_size=16, head_dim=8,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1,
        pad_token_id=0, eos_token_id=2,
    ).save_pretrained(folder)  # fmt: skip
    found = estimate(recipe(f"model_name_or_path={folder}", "dtype=bfloat16"), device=device)
    assert found.rows.layout == "rows"
    assert "attention has sinks" in " ".join(found.notes)


@pytest.mark.parametrize("name, layout", [("ModernBertDecoder", "packed"), ("Bert", "packed"), ("Llama4Text", "rows")])
def test_a_model_that_is_scored_by_its_own_logits(name, layout, recipe, pairs, model_folder, tmp_path):
    """Its own forward makes the logits; one whose backbone is not apart from its head has no layout but rows."""
    import transformers
    from odd_models import SIZES, THEIRS

    folder = tmp_path / name
    transformers.AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    settings = SIZES | THEIRS[f"{name}Config"] | {"vocab_size": 1280, "architectures": [f"{name}ForCausalLM"]}
    getattr(transformers, f"{name}Config")(**settings).save_pretrained(folder)
    found = estimate(recipe(f"model_name_or_path={folder}", pairs, *LONG_PROMPTS), device="cpu")
    assert found.rows.layout == layout
    assert found.components["logits" if layout == "packed" else "activations"] > 3 * 4 * 1280 * found.shape.scored / 2


def test_dropout_keeps_rows_whole(recipe, pairs):
    lora = ("use_peft=true", "lora_target_modules=all-linear")
    shared = estimate(recipe(pairs, *LONG_PROMPTS, *lora), device="cpu")
    whole = estimate(recipe(pairs, *LONG_PROMPTS, *lora, "lora_dropout=0.1", "disable_dropout=false"), device="cpu")
    assert whole.shape.computed == sum(t for row in whole.rows.sample for t, _ in row.sides) > shared.shape.computed
    assert "Dropout is on" in " ".join(whole.notes)


def test_without_data_nothing_is_shared(recipe):
    found = estimate(recipe("dataset_name=org/data"), device="cpu")
    assert (found.rows.layout, found.shape.computed) == ("packed", 2 * 2 * 64)


def test_passes_for_z_ref_by_hand():
    """Prompts 20 and 20, completions 10 and 5: the reference computes each prompt once, the policy has no pairs."""
    rows = Rows([Row(((30, 10),)), Row(((25, 5),))], 100, 1, layout="packed")
    policy, reference = rows.mismatched(2)
    assert (policy.rows, policy.computed, policy.scored) == (2, 30 + 25, 15)
    assert (reference.rows, reference.computed, reference.scored) == (4, 20 + 10 + 10 + 20 + 5 + 5, 30)
    plain, both = Rows(rows.sample, 100, 1, layout="rows").mismatched(2)
    assert (plain.computed, both.computed) == (60, 120)


def test_the_longest_rows_meet():
    sample = [Row(((40, 10), (45, 15)), 30), Row(((60, 5), (20, 6)), 10), Row(((12, 2), (12, 2)), 10)]
    packed = Rows(sample, 100, 2, layout="packed").worst(2)
    assert packed.computed == (60 + 20 - 10) + (40 + 45 - 30)
    assert packed.scored == 25 + 11
    assert packed.plan.computed == make_plan(*_tensors([60, 40, 20, 45], [10, 30]), 60).computed
    assert Rows(sample, 100, 2, layout="packed", share=False).worst(2).computed == 80 + 85
    assert Rows(sample, 100, 2, multiple=8).worst(2).computed == 4 * 64


def _tensors(*lists):
    import torch

    return tuple(map(torch.tensor, lists))
