"""A run stopped in its final evaluation, and a second run into the folder of one that goes on."""

import json
import signal
import subprocess
import sys

import pytest

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import load_recipe
from trl_plus.training.callbacks import Stopped
from trl_plus.training.run import Run, run


def execute(path, resume=None):
    return run(load_recipe(path), resume, lambda text: None)


@pytest.fixture
def stopped_in_the_final_evaluation(recipe_file, monkeypatch):
    """Stops a run by SIGTERM when its final evaluation begins; gives the recipe and what the run said at last."""

    def _stop(**keys):
        path = recipe_file(**keys)
        with monkeypatch.context() as patch:
            patch.setattr(Run, "evaluate", lambda run: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(Stopped) as stopped:
                execute(path)
        return path, str(stopped.value)

    return _stop


def test_a_run_stopped_in_its_final_evaluation_is_saved_and_resumed(stopped_in_the_final_evaluation, tmp_path):
    path, text = stopped_in_the_final_evaluation(max_steps=1, num_train_epochs=None)
    out = tmp_path / "out"
    assert "the model is saved in out, but its evaluation is missing" in text
    assert "--resume" in text
    weights, kept = (out / "adapter_model.safetensors").read_bytes(), json.loads((out / "metrics.json").read_text())
    assert kept["train"]["train_loss"] > 0
    assert kept["before"] is not None
    assert kept["after"] is None
    assert json.loads((out / "journal.jsonl").read_text().splitlines()[-1])["outcome"] == "stopped"

    report = execute(path, "newest")
    assert report.after is not None
    assert report.before == kept["before"]
    assert report.train == kept["train"]
    assert [sample.before is not None for sample in report.generations] == [True] * 3
    assert (out / "adapter_model.safetensors").read_bytes() == weights
    assert json.loads((out / "journal.jsonl").read_text().splitlines()[-1])["outcome"] == "finished"


def test_without_a_last_checkpoint_evaluate_is_named(stopped_in_the_final_evaluation):
    _, text = stopped_in_the_final_evaluation(save_strategy="no", save_steps=None, max_steps=1, num_train_epochs=None)
    assert "`trl-plus evaluate out` makes up for it" in text


def test_a_stop_after_training_without_held_out_rows_misses_nothing(stopped_in_the_final_evaluation, tmp_path):
    _, text = stopped_in_the_final_evaluation(max_eval_rows=0, max_steps=1, num_train_epochs=None)
    assert text == "Interrupted after training: the model is saved in out."
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["train"]["train_loss"] > 0


def test_a_refused_run_leaves_the_earlier_one_resumable(recipe_file, tmp_path):
    """What only the trainer refuses is refused when the weights are loaded, and changes nothing of the earlier run."""
    execute(recipe_file(max_steps=1, num_train_epochs=None, max_eval_rows=0))
    kept = (tmp_path / "out" / "recipe.resolved.yaml").read_text()
    with pytest.raises(RecipeError, match="nope"):
        execute(recipe_file(max_steps=1, num_train_epochs=None, lora_target_modules=["nope"]))
    assert (tmp_path / "out" / "checkpoint-1").is_dir()
    assert (tmp_path / "out" / "recipe.resolved.yaml").read_text() == kept
    with pytest.raises(RecipeError, match="--resume= names no folder"):
        execute("r.yaml", "")


def test_a_folder_in_use_is_refused(recipe_file, tmp_path):
    hold = "import sys\nfrom pathlib import Path\nfrom trl_plus.runs.folder import claimed\n"
    hold += "with claimed(Path('out'), print):\n    print('held', flush=True)\n    sys.stdin.read()"
    words = [sys.executable, "-c", hold]
    path = recipe_file()
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for resume in (None, "newest"):
            with pytest.raises(RecipeError, match=f"another run is training in out .process {other.pid} on "):
                execute(path, resume)
        other.stdin.close()
    execute(path)
    assert not (tmp_path / "out" / "_running").exists()
