"""Merged models: the adapter's logits, whatever the adapter; a folder that is whole or not there."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.cli.arguments import normalise
from trl_plus.errors import RecipeError, RunFault
from trl_plus.merging.destination import check_destination, check_space, shard_size, whole
from trl_plus.merging.run import Gap

FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "dtype": "float32"}
TEXT = "anchor basil cedar dune elm"


def call(*words):
    return CliRunner().invoke(app, normalise([str(word) for word in words]))


def logits(model, folder):
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.float().eval()(ids).logits


def adapter_logits(run, base, **options):
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options)
    return logits(PeftModel.from_pretrained(model, run), run)


def merged_logits(folder):
    return logits(AutoModelForCausalLM.from_pretrained(folder), folder)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 64},
        {"lora_modules_to_save": ["lm_head"]},
        {"lora_modules_to_save": ["embed_tokens", "norm"]},
    ],
    ids=["lora", "dora", "rslora", "lm_head", "embed_tokens"],
)
def test_logits_are_the_adapters(keys, train_tiny, pair_rows, tiny_model_dir, tmp_path):
    run = train_tiny("simpo", pair_rows(8), pair_rows(6, 2), **keys)
    done = call("merge", run, tmp_path / "merged")
    assert done.exit_code == 0, done.output
    want = adapter_logits(run, tiny_model_dir)
    assert (merged_logits(tmp_path / "merged") - want).abs().max() < 1e-4
    assert (logits(AutoModelForCausalLM.from_pretrained(tiny_model_dir), run) - want).abs().max() > 1e-2


@pytest.fixture(scope="module")
def tied_model_dir(tmp_path_factory, build_tiny_model, tokenizer):
    """The tiny model with tied embeddings, in several weight files."""
    folder = tmp_path_factory.mktemp("tied") / "model"
    model = build_tiny_model(0)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return str(folder)


@pytest.mark.parametrize(
    "keys, tied",
    [
        ({}, True),
        ({"lora_modules_to_save": ["lm_head"]}, False),
        ({"lora_modules_to_save": ["embed_tokens"]}, False),
        ({"lora_target_modules": ["embed_tokens", "q_proj"]}, False),
    ],
    ids=["neither", "lm_head", "embed_tokens", "low-rank embed_tokens"],
)
def test_tied_embeddings_in_a_sharded_base(keys, tied, train_tiny, pair_rows, tied_model_dir, tmp_path):
    """Trained as one matrix they stay one; where an adapter changes one of the two, they become two."""
    run = train_tiny("dpo", pair_rows(8), pair_rows(6, 2), model_name_or_path=tied_model_dir, **keys)
    done = call("merge", run, tmp_path / "merged", "--max-shard-size", "60KB")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    assert (merged_logits(tmp_path / "merged") - adapter_logits(run, tied_model_dir)).abs().max() < 1e-4
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] == tied


def test_what_is_written(simpo_run, tokenizer, tmp_path):
    done = call("merge", simpo_run, tmp_path / "a" / "merged", "--dtype", "bfloat16")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "a" / "merged"
    assert [path.name for path in folder.parent.iterdir()] == ["merged"]  # no half-written folder beside it
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())  # a server is another user
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
    assert "Rounding the weights to bfloat16" in done.output
    assert f"vllm serve {folder}" in done.output
    assert "convert_hf_to_gguf.py" in done.output


def test_a_checkpoint_is_merged_as_it_is(simpo_run, tiny_model_dir, tmp_path):
    early = simpo_run / "checkpoint-1"
    assert call("merge", early, tmp_path / "merged").exit_code == 0
    assert (merged_logits(tmp_path / "merged") - adapter_logits(early, tiny_model_dir)).abs().max() < 1e-4
    assert (merged_logits(tmp_path / "merged") - adapter_logits(simpo_run, tiny_model_dir)).abs().max() > 1e-3


@pytest.fixture(scope="module")
def four_bit_run(train_tiny, pair_rows):
    return train_tiny("simpo", pair_rows(8), pair_rows(12, 2), **FOUR_BIT)


@pytest.mark.parametrize("base", [None, "dequantized", "original"])
def test_a_four_bit_base(base, four_bit_run, tiny_model_dir, tmp_path):
    """By default the weights are those that the adapter was trained around; a table compares all three."""
    from peft import PeftModel
    from transformers import BitsAndBytesConfig

    from trl_plus.trainers.adapters import keep_trainable

    done = call("merge", four_bit_run, tmp_path / "merged", *(["--base", base] if base else []))
    assert done.exit_code == 0, done.output
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, quantization_config=config)
    keep_trainable(model)
    ids = AutoTokenizer.from_pretrained(four_bit_run)(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        as_trained = PeftModel.from_pretrained(model, four_bit_run).eval()(ids).logits
    original = adapter_logits(four_bit_run, tiny_model_dir)
    gaps = {"four bits": as_trained, "original": original}
    got = merged_logits(tmp_path / "merged")
    near, far = ("original", "four bits") if base == "original" else ("four bits", "original")
    assert (got - gaps[near]).abs().max() < 1e-4
    assert (got - gaps[far]).abs().max() > 1e-2
    for line in ("adapter, as trained", "merged, dequantized base", "merged, original base"):
        assert line in " ".join(done.output.split())
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "trained on the base in 4 bits" in (four_bit_run / "README.md").read_text()
    assert ("dequantized first" in (tmp_path / "merged" / "README.md").read_text()) == (base != "original")


@pytest.mark.parametrize("broken", ["logits", "disk"])
def test_a_merge_that_fails_leaves_nothing(broken, simpo_run, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    from trl_plus.merging import run

    if broken == "logits":
        monkeypatch.setattr(run, "gap_between", lambda a, b: Gap(0.5, 3.0))
    else:
        save = PreTrainedModel.save_pretrained

        def fill(self, folder, **kwargs):
            save(self, folder, **kwargs)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(PreTrainedModel, "save_pretrained", fill)
    done = call("merge", simpo_run, tmp_path / "merged")
    assert done.exit_code == 1
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in done.output
    assert ("differs from the adapter" if broken == "logits" else "No space left") in done.output


def test_a_full_model_has_nothing_to_merge(train_tiny, pair_rows, tmp_path):
    run = train_tiny("simpo", pair_rows(8), pair_rows(4, 2), use_peft=False, lora_r=None)
    done = call("merge", run, tmp_path / "merged")
    assert done.exit_code == 2
    assert "nothing has to be merged" in done.output
    assert not (tmp_path / "merged").exists()


def test_what_is_refused(simpo_run, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for words, said in [
        ((simpo_run, tmp_path / "taken"), "is not empty"),
        ((simpo_run, tmp_path / "file"), "is a file"),
        ((simpo_run, tmp_path / "new", "--base", "dequantized"), "was not quantized"),
        ((simpo_run, tmp_path / "new", "--max-shard-size", "big"), "such as 500MB"),
        ((tmp_path / "none", tmp_path / "new"), "There is no folder"),
        ((tmp_path / "empty", tmp_path / "new"), "holds no recipe.resolved.yaml"),
    ]:
        done = call("merge", *words)
        assert (done.exit_code, said in done.output) == (2, True), done.output
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"


def test_a_destination_gets_its_name_last(tmp_path):
    path = check_destination(str(tmp_path / "new"))
    with whole(path) as part:
        (part / "config.json").write_text("{}")
        assert not path.exists()
    assert (path / "config.json").is_file()
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "other") as part:
        raise KeyboardInterrupt
    assert [item.name for item in tmp_path.iterdir()] == ["new"]


def test_sizes():
    assert shard_size("2 GB") == "2GB"
    for text in ("", "0GB", "2", "GB", "-1GB"):
        with pytest.raises(RecipeError):
            shard_size(text)
    with pytest.raises(RunFault, match="bfloat16"):
        check_space(Path("merged"), 10**18, halves=True)
    with pytest.raises(RunFault, match="on another disk\\."):
        check_space(Path("merged"), 10**18, halves=False)


@pytest.mark.parametrize(
    "gap, passes",
    [((9e-5, 0.5), True), ((2e-4, 0.5), False), ((1e-3, 20.0), True), ((float("nan"), 20.0), False)],
)
def test_the_tolerance(gap, passes):
    assert Gap(*gap).passes == passes


def test_the_base_may_have_moved_and_the_data_gone(simpo_run, tiny_model_dir, tmp_path):
    run, base = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(simpo_run, run)
    shutil.copytree(tiny_model_dir, base)
    recipe = run / "recipe.resolved.yaml"
    text = recipe.read_text().replace(tiny_model_dir, "gone/model")
    recipe.write_text(re.sub(r"(?m)^dataset_name: .*$", "dataset_name: ./gone", text))
    done = call("merge", run, tmp_path / "merged")
    assert (done.exit_code, "name its folder with model_name_or_path=PATH" in done.output) == (2, True), done.output
    done = call("merge", run, tmp_path / "merged", f"model_name_or_path={base}")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "compared on a fixed text: ./gone does not exist" in said
    assert f"is put on {base} here" in said
    assert (merged_logits(tmp_path / "merged") - adapter_logits(simpo_run, tiny_model_dir)).abs().max() < 1e-4
