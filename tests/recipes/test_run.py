"""A recipe, run in this process on a tiny model: what it leaves behind, how it resumes, what it refuses first."""

import json
import shutil

import pytest

from trl_plus.errors import DataError, RecipeError
from trl_plus.recipes.recipe import load_recipe
from trl_plus.training.run import run


def execute(path, resume=None, *overrides):
    said = []
    report = run(load_recipe(path, overrides), resume, said.append)
    return report, said


def test_what_a_run_leaves(recipe_file, tmp_path):
    report, said = execute(recipe_file())
    out = tmp_path / "out"
    for name in (
        "adapter_model.safetensors",
        "tokenizer.json",
        "metrics.json",
        "metrics.jsonl",
        "recipe.resolved.yaml",
    ):
        assert (out / name).is_file(), name
    saved = json.loads((out / "metrics.json").read_text())
    assert saved["held_out_rows"] == 6
    assert saved["after"]["eval_rewards/margins"] > saved["before"]["eval_rewards/margins"]
    assert saved["versions"]["trl"]
    assert [set(sample) for sample in saved["generations"]] == [{"prompt", "before", "after"}] * 3
    assert report.generations[0].before is not None
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    assert any("bf16 is off" in str(line) for line in said)
    resolved = load_recipe(str(out / "recipe.resolved.yaml"))
    assert resolved["bf16"] is False
    assert resolved["learning_rate"] == 1e-2


def test_the_adapter_loads(recipe_file, tiny_model_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    execute(recipe_file(use_dora=True, report_generations=0, max_eval_rows=0))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), "out")
    assert model.peft_config["default"].use_dora


def test_four_bits(recipe_file):
    path = recipe_file(load_in_4bit=True, optim="paged_adamw_8bit", eval_strategy="steps", eval_steps=2, max_steps=4)
    report, _ = execute(path, None, "num_train_epochs=null")
    assert report.after["eval_loss"] != report.before["eval_loss"]


def test_resume_is_the_same_run(recipe_file, tmp_path):
    path = recipe_file()
    whole, _ = execute(path)
    shutil.copytree("out", "whole")
    shutil.rmtree("out/checkpoint-6")
    shutil.rmtree("out/checkpoint-8")
    resumed, said = execute(path, "newest")
    assert any("checkpoint-3" in str(line) for line in said)
    assert resumed.before == whole.before
    assert resumed.after["eval_loss"] == whole.after["eval_loss"]
    assert resumed.generations == whole.generations
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("out", "whole")]
    assert [json.loads(line)["step"] for line in lines[0]] == [json.loads(line)["step"] for line in lines[1]]


def test_resume_refused(recipe_file):
    path = recipe_file()
    with pytest.raises(RecipeError, match="does not exist"):
        execute(path, "newest")
    with pytest.raises(RecipeError, match="holds no checkpoint"):
        execute(path, "data")


def test_resume_of_a_finished_run_makes_no_step(recipe_file, tmp_path):
    """transformers would make one more step: a run killed between its last checkpoint and its model must not."""
    path = recipe_file(max_steps=3, num_train_epochs=None)
    execute(path)
    weights = tmp_path / "out" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    execute(path, "newest")
    assert weights.read_bytes() == before
    with pytest.raises(RecipeError, match="at step 3, beyond max_steps 2"):
        execute(path, "newest", "max_steps=2")


def test_resume_of_a_finished_run_says_so_and_evaluates_what_is_not_known(recipe_file, tmp_path, monkeypatch):
    from trl_plus import SimPOTrainer

    path, measured, evaluate = recipe_file(max_steps=2, num_train_epochs=None), [], SimPOTrainer.evaluate
    whole, said = execute(path)
    assert not any("Already finished" in str(line) for line in said)
    monkeypatch.setattr(SimPOTrainer, "evaluate", lambda *args, **keys: measured.append(1) or evaluate(*args, **keys))
    kept = [(tmp_path / "out" / name).read_text() for name in ("metrics.json", "README.md")]
    _, said = execute(path, "newest")
    assert "Already finished at step 2: no step is left to make." in said
    assert not measured
    assert [(tmp_path / "out" / name).read_text() for name in ("metrics.json", "README.md")] == kept
    for words, force in ((["max_eval_rows=3"], False), (["beta=9.0"], True)):
        report = run(load_recipe(path, words), "newest", said.append, force=force)
        assert len(measured) == 1
        assert report.after["eval_rewards/margins"] != whole.after["eval_rewards/margins"]
        measured.clear()


def test_resume_after_a_crash_while_writing(recipe_file, tmp_path):
    path = recipe_file()
    execute(path)
    shutil.rmtree("out/checkpoint-8")
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    (tmp_path / "out" / "metrics.json").write_text("")
    report, _ = execute(path, "newest")
    assert report.before is None
    assert report.after is not None
    assert [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]


def test_before_and_after_are_of_the_same_rows(recipe_file):
    path = recipe_file()
    execute(path)
    shutil.rmtree("out/checkpoint-8")
    assert execute(path, "newest", "max_eval_rows=2")[0].before is None


def test_no_batch_is_said(recipe_file):
    path = recipe_file(dataloader_drop_last=True, per_device_train_batch_size=64)
    with pytest.raises(DataError, match="16 rows, fewer than the 64 of a batch, so `dataloader_drop_last` drops"):
        execute(path)


def test_nulls_are_named_before_the_model_is_loaded(recipe_file, pair_rows, tmp_path):
    rows = pair_rows(6)
    rows[2] = rows[2] | {"rejected": None}
    (tmp_path / "nulls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="`rejected` of row 2"):
        execute(recipe_file(dataset_name="nulls.jsonl"))


def test_a_file_that_is_not_utf8(recipe_file, tmp_path):
    row = '{"prompt": "caf\u00e9?", "chosen": "ja", "rejected": "nein"}\n'
    (tmp_path / "latin.jsonl").write_bytes(row.encode("latin-1") * 3)
    with pytest.raises(DataError, match="UTF-8"):
        execute(recipe_file(dataset_name="latin.jsonl"))


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "dpo"},
        {"method": "cdpo", "use_peft": None, "lora_r": None},
        {"method": "orpo"},
        {"method": "cpo"},
        {"method": "kto"},
        {"method": "apo_zero_unpaired"},
        {"method": "ipo", "eval_strategy": "steps", "eval_steps": 1},
    ],
)
def test_methods(recipe_file, keys):
    report, said = execute(recipe_file(max_steps=2, num_train_epochs=None, save_strategy="no", save_steps=None, **keys))
    assert report.after["eval_loss"] > 0
    tables = [table for table in said if hasattr(table, "caption")]
    footnoted = keys["method"] not in ("orpo", "cpo")
    assert any("its own reference" in str(table.caption) for table in tables) == footnoted


def test_labelled_rows(recipe_file, unpaired_rows, tmp_path):
    (tmp_path / "kto.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unpaired_rows(12)))
    path = recipe_file(method="kto", dataset_name="kto.jsonl", eval_fraction=0.25, max_steps=1, num_train_epochs=None)
    report, said = execute(path)
    assert report.held_out_rows == 2  # a quarter of twelve, in whole prompts of two
    assert any("held out" in str(line) for line in said)
    with pytest.raises(DataError, match="use `method: kto`"):
        execute(path, None, "method=simpo")


def test_no_held_out_rows(recipe_file):
    path = recipe_file(dataset_name="data/train.jsonl", max_steps=1, num_train_epochs=None)
    report, said = execute(path)
    assert report.before is report.after is None
    assert sum("Nothing is held out" in str(line) for line in said) == 1
    _, said = execute(path, None, "max_eval_rows=0")  # asked for
    assert not [line for line in said if "Nothing is held out" in str(line)]
    with pytest.raises(DataError, match="eval_fraction"):
        execute(path, None, "eval_strategy=steps")


def test_refused_before_the_model_is_loaded(recipe_file, tiny_model_dir, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model_dir, bare)
    (bare / "chat_template.jinja").unlink()
    (bare / "model.safetensors").unlink()
    path = recipe_file(model_name_or_path=str(bare))
    with pytest.raises(DataError, match="chat_template_path"):
        execute(path)
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(RecipeError, match=r"safetensors|no file named"):  # past the template, to the missing weights
        execute(path, None, "chat_template_path=t.jinja")
    (tmp_path / "data" / "train.jsonl").write_text('{"a": "b"}\n')
    with pytest.raises(DataError, match="`chosen` and `rejected`"):
        execute(path)
    with pytest.raises(RecipeError, match="could not be loaded"):
        execute(recipe_file(model_name_or_path="trl-plus-tests/no-such-model"), None, "dataset_name=data/test.jsonl")


def test_what_the_command_line_gave_is_not_blamed_on_the_file(recipe_file):
    path = recipe_file(max_steps=1, num_train_epochs=None)
    with pytest.raises(RecipeError, match=r"^command line: Target modules .*nope"):
        execute(path, None, "lora_target_modules=nope")
    with pytest.raises(RecipeError, match=r"^command line: `eval_fraction` must be below 1"):
        execute(path, None, "eval_fraction=2")


def test_a_batch_that_no_epoch_fills_is_said(recipe_file):
    words = ("max_steps=1", "num_train_epochs=null", "max_eval_rows=0", "save_strategy=no", "save_steps=null")
    _, said = execute(recipe_file(), None, "gradient_accumulation_steps=5", *words)
    assert [line for line in said if "batch of 20 rows is larger than the data (16 rows)" in str(line)]
    _, said = execute(recipe_file(), None, "gradient_accumulation_steps=4", *words)
    assert not [line for line in said if "larger than the data" in str(line)]


def test_the_reference_is_said(recipe_file):
    """Also where the log-probabilities of a precomputed one are kept."""
    path = recipe_file(method="dpo", max_steps=1, num_train_epochs=None, precompute_ref_log_probs=True)
    _, said = execute(path)
    assert "Reference: the model with its adapter switched off, its log-probabilities precomputed." in said
    assert [line for line in said if str(line).startswith("Reference log-probabilities of the train dataset: ")]


def test_configurations_refuse(recipe_file):
    with pytest.raises(RecipeError, match="sft_weight"):
        execute(recipe_file(sft_weight=-1.0))
    with pytest.raises(RecipeError, match="eval_fraction"):
        execute(recipe_file(eval_fraction=1.5))


def test_no_row_fits(recipe_file):
    with pytest.raises((DataError, RecipeError), match="max_length"):
        execute(recipe_file(max_length=2, max_eval_rows=0))


def test_a_checkpoint_of_the_output_folder_is_no_model_of_a_fresh_run(recipe_file, tmp_path):
    """A fresh run moves the checkpoints of its output folder away, and with them its model."""
    path = recipe_file(max_steps=3)
    execute(path)
    with pytest.raises(RecipeError, match="name another `output_dir`"):
        execute(path, None, "model_name_or_path=out/checkpoint-3")
    assert (tmp_path / "out" / "checkpoint-3").is_dir()
