"""`trl-plus train RECIPE --dry-run`: every bundled recipe passes, and says what the run would do."""

import json

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.recipes.package_data import recipe_names
from trl_plus.recipes.recipe import load_recipe
from trl_plus.setup.plan import plan


def dry_run(*words):
    return CliRunner().invoke(app, ["train", *words, "--dry-run"], env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", recipe_names())
def test_bundled_recipe(name):
    result = dry_run(name)
    assert result.exit_code == 0, result.output
    assert "The recipe is valid." in result.output
    assert "Effective batch size" in result.output


@pytest.mark.parametrize(
    "name, rows",
    [("simpo_lora", 128), ("simpo_qlora", 128), ("orpo_lora", 32), ("apo_zero_lora", 32), ("kto_lora", 64)],
)
def test_effective_batch(name, rows):
    assert plan(load_recipe(name)).effective_batch == rows


@pytest.mark.parametrize("name, rows", [("simpo_full", 128), ("orpo_full", 32), ("dpo_full", 128)])
def test_effective_batch_of_a_launch(name, rows):
    assert plan(load_recipe(name), "zero3").effective_batch == rows


@pytest.mark.parametrize(
    "words, steps",
    [
        ([], 3),  # 10 pairs in batches of 4
        (["num_train_epochs=2"], 6),
        (["gradient_accumulation_steps=3"], 1),
        (["max_steps=7"], 7),
        (["method=kto"], 5),  # 20 labelled rows
    ],
)
def test_steps(write, tmp_path, pair_rows, words, steps):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(10)))
    path = write(dataset_name=str(data))
    assert plan(load_recipe(path, ["per_device_train_batch_size=4", "num_train_epochs=1", *words])).steps == steps


def test_what_is_said(write, tmp_path):
    result = dry_run(write(), "beta=3")
    assert "org/data: it is on the hub and was not downloaded" in result.output
    assert "org/model: its weights and tokenizer were not loaded" in result.output
    assert "command line" in result.output
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "a"}\n')
    result = dry_run(write(dataset_name=str(data)))
    assert result.exit_code == 2
    assert "columns question" in result.output
    assert dry_run(write(), "sft_weight=-1").exit_code == 2


def test_an_evaluation_strategy_without_held_out_rows(write, tmp_path, pair_rows):
    """What the run would refuse, the dry run refuses in the same words."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(20)))
    path = write(dataset_name=str(data), eval_strategy="steps", eval_steps=5)
    result = dry_run(path)
    assert result.exit_code == 2
    assert "`eval_strategy: steps` needs held-out rows, but" in result.output
    assert "set `eval_fraction: 0.05`" in result.output
    assert dry_run(path, "eval_fraction=0.2").exit_code == 0


def test_nothing_held_out_and_a_batch_that_no_epoch_fills_are_said(write, tmp_path, pair_rows):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(20)))
    path = write(dataset_name=str(data), per_device_train_batch_size=2)
    held_out, batch = (
        "Nothing is held out",
        "batch of 24 rows is larger than the data (20 rows), so an epoch is one step",
    )
    output = dry_run(path, "gradient_accumulation_steps=12").output
    assert held_out in output
    assert batch in output
    output = dry_run(path, "gradient_accumulation_steps=9", "eval_fraction=0.1").output
    assert held_out not in output
    assert "larger than the data" not in output


@pytest.mark.parametrize(
    "word, said",
    [
        ("report_to=tensorbord", "`report_to` is 'tensorbord': did you mean `tensorboard`? It must be one of azure_ml"),
        ("report_to=[none,wandbb]", "`report_to` is 'wandbb': did you mean `wandb`?"),
        ("attn_implementation=flash", "`attn_implementation` must be one of eager, flash_attention_"),
        ("attn_implementation=spda", "`attn_implementation` is 'spda': did you mean `sdpa`?"),
        ("label_smoothing=0.7", "`label_smoothing` must be at least 0 and below 0.5, got 0.7."),
    ],
)
def test_what_only_the_libraries_know_is_refused_with_its_place(write, word, said):
    result = dry_run(write(), word)
    assert result.exit_code == 2
    assert f"error: command line: {said}" in result.output
    key, value = word.split("=")
    inner = [item.strip() for item in value.strip("[]").split(",")] if "[" in value else value
    inner = float(inner) if key == "label_smoothing" else inner
    result = dry_run(write(**{key: inner}))
    assert result.exit_code == 2
    assert f"r.yaml: {said}" in result.output


@pytest.mark.parametrize(
    "word", ["report_to=none", "report_to=all", "attn_implementation=org/kernel", "attn_implementation=sdpa"]
)
def test_known_names_pass(write, word, monkeypatch):
    monkeypatch.setattr("trl_plus.upstream.libraries.installed", lambda *modules: True)
    assert dry_run(write(), word).exit_code == 0


@pytest.mark.parametrize(
    "key, value, package",
    [
        ("optim", "grokadamw", "grokadamw"),
        ("report_to", "clearml", "clearml"),
        ("attn_implementation", "flash_attention_2", "kernels"),
    ],
)
def test_missing_packages_are_refused_with_the_command(key, value, package, write, monkeypatch):
    monkeypatch.setattr("trl_plus.upstream.libraries.installed", lambda *modules: False)
    result = dry_run(write(), f"{key}={value}")
    assert result.exit_code == 2
    assert f"`{key}: {value}` needs a package: pip install {package}" in result.output


def test_settings_that_an_optimizer_needs(write, monkeypatch):
    monkeypatch.setattr("trl_plus.upstream.libraries.installed", lambda *modules: True)
    result = dry_run(write(), "optim=galore_adamw")
    assert result.exit_code == 2
    assert "needs `optim_target_modules`" in result.output


def test_nothing_is_written(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dry_run(write(output_dir="out")).exit_code == 0
    assert not (tmp_path / "out").exists()
