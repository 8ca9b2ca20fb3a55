"""Runs on converted rows, mixtures and precomputed references: the same training as on the rows themselves."""

import json

import pytest

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import load_recipe
from trl_plus.training.run import run


def execute(path, resume=None, *overrides):
    said = []
    report = run(load_recipe(path, overrides), resume, said.append)
    return report, said


@pytest.fixture
def transcripts(recipe_file, tmp_path):
    """The folder ./data with Anthropic's transcripts of the same pairs, one of them broken."""
    for path in (tmp_path / "data").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        texts = [
            {side: f"\n\nHuman: {row['prompt'][0]['content']}\n\nAssistant: {row[side][0]['content']}" for side in row
             if side != "prompt"}
            for row in rows
        ]  # fmt: skip
        path.with_suffix(".plain").write_text(path.read_text())
        path.write_text("".join(json.dumps(row) + "\n" for row in [*texts, {**texts[0], "chosen": "cut"}]))


def test_converted_rows_train_like_the_rows_themselves(recipe_file, transcripts, tmp_path):
    report, said = execute(recipe_file(converter="hh", num_train_epochs=1))
    assert any("16 of 17 rows converted, 1 left out: row 16: " in str(text) for text in said)
    for path in (tmp_path / "data").glob("*.plain"):
        path.with_suffix(".jsonl").write_text(path.read_text())
    plain, _ = execute(recipe_file(num_train_epochs=1, output_dir="plain"))
    assert report.train["train_loss"] == plain.train["train_loss"]
    assert report.after["eval_loss"] == plain.after["eval_loss"]


def test_a_mixture_of_local_files_trains(recipe_file, transcripts, tmp_path):
    (tmp_path / "plain.jsonl").write_text((tmp_path / "data" / "train.plain").read_text())
    entries = [{"path": "data/train.jsonl", "converter": "hh"}, {"path": "plain.jsonl"}]
    report, said = execute(
        recipe_file(dataset_name=None, datasets=entries, eval_fraction=0.25, num_train_epochs=1, method="kto")
    )
    assert "The mixture holds 16 of 16 rows of data/train.jsonl, 16 of 16 rows of plain.jsonl." in said
    assert report.held_out_rows == 16  # 8 of 32 pairs


def test_another_converter_is_another_run(recipe_file, transcripts):
    execute(recipe_file(converter="hh", num_train_epochs=1, save_steps=2))
    with pytest.raises(RecipeError, match="converter: hh -> None"):
        execute(recipe_file(num_train_epochs=1, save_steps=2), "newest")


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_precomputed_reference_of_rows_in_a_file(method, recipe_file):
    """Rows that were filtered are written out before columns can stand beside them: into another file than theirs."""
    keys = {"method": method, "max_steps": 2, "num_train_epochs": None, "save_strategy": "no", "save_steps": None}
    losses = []
    for precompute in (False, True):
        report, _ = execute(recipe_file(**keys, precompute_ref_log_probs=precompute))
        losses.append(report.train["train_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
