"""Tokens that the model has no row for are refused with the fix by trainers, preflight and `train`."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.data.token_ids import Vocabulary, vocabulary_of

FIX = "Fix: use the model's own tokenizer"


@pytest.fixture(scope="module")
def larger(tmp_path_factory, tiny_model_dir):
    """The tiny model with a tokenizer that has two tokens more than it has rows."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("larger") / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.save_pretrained(folder)
    return folder


def with_thoughts(rows, *places, side="chosen"):
    for place in places:
        rows[place][side][-1]["content"] = "<think> well </think> yes"
    return rows


@pytest.fixture
def trainer_on(make_trainer, larger, pair_rows):
    """trainer_on(method, rows, ...) with the larger tokenizer and a model that has its rows only if `resized`."""

    def make(method, rows, resized=False, peft_config=None, **trainer):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(larger), AutoTokenizer.from_pretrained(larger)
        if resized:
            model.resize_token_embeddings(len(tokenizer))
        extra = {"model": model, "processing_class": tokenizer, "peft_config": peft_config, **trainer}
        import trl_plus

        args = make_trainer(method, pair_rows(1), reference=False).args
        return getattr(trl_plus, f"{method}Trainer")(
            args=args, train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows, **extra
        )

    return make


@pytest.mark.parametrize("method", ["SimPO", "DPO"])
def test_refused_at_the_start(method, trainer_on, pair_rows):
    with pytest.raises(ValueError, match=r"Row 2 of the train dataset holds token 40\d \('<think>'\), but") as caught:
        trainer_on(method, with_thoughts(pair_rows(4), 2))
    assert FIX in str(caught.value)


def test_refused_in_an_evaluation_set_and_a_stream(trainer_on, pair_rows):
    held_out = Dataset.from_list(with_thoughts(pair_rows(4), 1))
    with pytest.raises(ValueError, match="Row 1 of the eval dataset holds token"):
        trainer_on("SimPO", pair_rows(4), eval_dataset=held_out)
    trainer = trainer_on("SimPO", pair_rows(4))
    with pytest.raises(ValueError, match="Row 1 of the eval dataset holds token"):
        trainer.evaluate(held_out)
    rows = with_thoughts(pair_rows(4), 0)
    streamed = trainer_on("SimPO", Dataset.from_list(rows).to_iterable_dataset())
    with pytest.raises(ValueError, match="A row of the stream holds token"):
        streamed.train()


def test_the_fix_works(trainer_on, pair_rows):
    trainer = trainer_on("SimPO", with_thoughts(pair_rows(4), 2), resized=True)
    trainer.train()
    lora = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["embed_tokens", "lm_head"])
    trainer = trainer_on("DPO", with_thoughts(pair_rows(4), 2), resized=True, peft_config=lora)
    trainer.train()
    assert trainer.state.global_step == 1


def test_added_tokens_that_no_row_holds_are_no_error(trainer_on, pair_rows):
    trainer_on("SimPO", pair_rows(4)).train()


def test_prompts_need_embeddings_and_responses_a_row_of_the_head_too(build_tiny_model):
    assert Vocabulary(10, 8).rows_for("prompt_ids") == 10
    assert Vocabulary(10, 8).rows_for("chosen_ids") == 8
    assert Vocabulary(None, None).rows_for("chosen_ids") is None
    assert vocabulary_of(build_tiny_model(0)) == Vocabulary(400, 400)


def test_a_head_that_peft_ties_has_a_row_for_every_token(tiny_model_dir):
    """PEFT makes it a layer with its features the wrong way round, whose weight is right."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, tie_word_embeddings=True)
    tied = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    model = get_peft_model(model, tied).get_base_model()
    rows = model.get_output_embeddings().weight.shape[0]
    assert vocabulary_of(model) == Vocabulary(rows, rows)


@pytest.mark.parametrize("command", ["preflight", "train"])
@pytest.mark.parametrize("found", [True, False])
def test_recipes(command, found, larger, pair_rows, tmp_path):
    rows = with_thoughts(pair_rows(6), 3) if found else pair_rows(6)
    data, recipe = tmp_path / "rows.jsonl", tmp_path / "r.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe.write_text(
        f"method: simpo\nmodel_name_or_path: {larger}\ndataset_name: {data}\noutput_dir: {tmp_path / 'out'}\n"
        "max_steps: 1\nuse_cpu: true\nbf16: false\n"
    )
    words = [command, str(recipe), *(["--no-preflight"] if command == "train" and not found else [])]
    result = CliRunner().invoke(app, words)
    if found:
        assert result.exit_code == 2, result.output
        assert "Row 3 of train holds token 40" in result.output
        assert FIX in " ".join(result.output.split())
    else:
        assert result.exit_code in (0, 3), result.output
        assert "holds token" not in result.output
