"""Recipes that put an adapter where it cannot be: refused with a fix, and the fix works."""

import re

import pytest
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import trl_plus
from trl_plus.cli import app
from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import load_recipe


@pytest.fixture
def write(tmp_path, simpo_run):
    """write(**keys) -> a recipe like that of the run, with its own folder."""
    resolved = yaml.safe_load((simpo_run / "recipe.resolved.yaml").read_text())

    def _write(**keys):
        values = resolved | {"output_dir": str(tmp_path / "out"), "save_strategy": "no", "save_steps": None} | keys
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
        return str(path)

    return _write


def run(*words):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("lora", [True, None])
def test_an_adapter_as_the_model_is_merged_first(lora, write, simpo_run, tmp_path):
    given = {} if lora else {"use_peft": None, "lora_r": None, "lora_target_modules": None}
    with pytest.raises(RecipeError, match=f"`model_name_or_path`: {simpo_run} is an adapter of") as caught:
        load_recipe(write(model_name_or_path=str(simpo_run), method="dpo", **given))
    words = re.search(r"`trl-plus (merge \S+) (\S+)`", str(caught.value))
    assert words is not None
    merged = str(tmp_path / "merged")
    assert run(*words[1].split(), merged).exit_code == 0
    result = run("train", write(model_name_or_path=merged, method="dpo", **given), "--no-preflight")
    assert result.exit_code == 0, result.output


def test_an_adapter_of_another_tool(write, simpo_run, tmp_path, monkeypatch):
    """Without a recipe beside it `trl-plus merge` cannot know its base, so PEFT's own way is named."""
    folder = tmp_path / "adapter"
    AutoPeftModelForCausalLM.from_pretrained(simpo_run).save_pretrained(folder)
    with pytest.raises(RecipeError, match="is an adapter of") as caught:
        load_recipe(write(model_name_or_path=str(folder)))
    code = re.search(r'python -c "([^"]+)"', str(caught.value))
    assert code is not None
    exec(code[1])
    assert AutoModelForCausalLM.from_pretrained(f"{folder}-merged") is not None


def test_python_refuses_it_too(simpo_run, tmp_path, pair_rows, make_adapter_model):
    args = trl_plus.SimPOConfig(str(tmp_path), bf16=False, use_cpu=True)
    with pytest.raises(ValueError, match="is an adapter of"):
        trl_plus.SimPOTrainer(model=str(simpo_run), args=args, train_dataset=pair_rows(2))
    with pytest.raises(ValueError, match="is an adapter that was loaded as a model"):
        make_adapter_model(args, pair_rows(2))


@pytest.fixture
def make_adapter_model(simpo_run, tokenizer):
    from datasets import Dataset

    def make(args, rows):
        model = AutoModelForCausalLM.from_pretrained(simpo_run)  # the base, with the adapter frozen inside
        return trl_plus.SimPOTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )

    return make


@pytest.mark.parametrize("kept", [None, ["embed_tokens"]])
def test_lora_on_the_head_is_refused_and_the_fix_trains_it(kept, write):
    with pytest.raises(RecipeError, match="`lora_target_modules`: LoRA on lm_head would not be trained") as caught:
        load_recipe(write(lora_target_modules=["q_proj", "lm_head"], lora_modules_to_save=kept))
    fix = re.search(r"`lora_modules_to_save: (\[.*?\])`", str(caught.value))
    assert fix is not None
    path = write(lora_target_modules=["q_proj"], lora_modules_to_save=yaml.safe_load(fix[1]))
    result = run("train", path, "--no-preflight")
    assert result.exit_code == 0, result.output
