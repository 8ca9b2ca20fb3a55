"""`trl-plus train RECIPE --dry-run`: every bundled recipe passes, and says what the run would do."""

import json

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.recipes import load_recipe
from trl_plus.recipes.dry_run import plan
from trl_plus.recipes.package_data import recipe_names


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


def test_nothing_is_written(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dry_run(write(output_dir="out")).exit_code == 0
    assert not (tmp_path / "out").exists()
