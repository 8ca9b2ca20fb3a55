"""Runs that stop when the held-out metric stays the same: when, with which weights, and resumed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import load_recipe
from trl_plus.training.run import run

KEYS = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "rewards/accuracies",
    "early_stopping_patience": 3,
}
METRIC = "eval_rewards/accuracies"


@pytest.fixture
def recipe_file(recipe_of):
    """Writes a recipe of up to 20 steps."""
    steps = {"max_steps": 20, "learning_rate": 5e-3, "lr_scheduler_type": "constant", "report_generations": 0}
    return recipe_of(8, 8, **steps, **KEYS)


def train(path, resume=None, *overrides):
    said = []
    report = run(load_recipe(path, overrides), resume, said.append)
    return report, [text for text in said if isinstance(text, str)]


def evaluations():
    """step -> accuracy of the evaluations during training."""
    found = {}
    for line in map(json.loads, Path("out/metrics.jsonl").read_text().splitlines()):
        if METRIC in line and line["step"]:
            found.setdefault(line["step"], line[METRIC])
    return found


def expected_stop(accuracies, patience):
    """(step of the stop, step of the best evaluation) by the rule, counted by hand."""
    best = best_step = None
    waited = 0
    for step, value in sorted(accuracies.items()):
        if best is None or value > best:
            best, best_step, waited = value, step, 0
        else:
            waited += 1
        if waited == patience:
            return step, best_step
    raise AssertionError("the accuracy never stayed: no test of stopping")


def adapter(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_it_stops_and_ends_with_the_best_checkpoint(recipe_file, tmp_path):
    report, said = train(recipe_file())
    accuracies = evaluations()
    stop, best = expected_stop(accuracies, 3)
    assert max(accuracies) == stop < 20
    assert any(
        text.startswith(f"Stopped early at step {stop} of 20: {METRIC} was best at step {best} (") for text in said
    )
    assert any(text.startswith(f"The model is that of step {best}: ") for text in said)
    out = tmp_path / "out"
    kept = sorted(path.name for path in out.glob("checkpoint-*"))
    assert kept == [f"checkpoint-{best}"]  # save_total_limit 1: the best one alone
    assert adapter(out) == adapter(out / f"checkpoint-{best}")
    assert report.after[METRIC] == accuracies[best]
    assert json.loads((out / "metrics.json").read_text())["step"] == report.step == best
    assert f"At optimizer step {best}, on 8 rows" in (out / "README.md").read_text()


def test_the_threshold_is_asked_for(recipe_file):
    """No accuracy can rise by 2: the first evaluation is the best, and patience runs from there."""
    train(recipe_file(early_stopping_threshold=2.0))
    assert max(evaluations()) == 4


def test_a_resumed_run_has_waited_as_long(recipe_file, tmp_path):
    """Resumed one step before the stop it stops at the same step, with the same weights."""
    path = recipe_file(save_total_limit=None)
    train(path)
    stop, best = expected_stop(evaluations(), 3)
    whole = adapter(tmp_path / "out")
    shutil.rmtree(f"out/checkpoint-{stop}")
    report, _ = train(path, "newest")
    assert max(evaluations()) == stop
    assert report.step == best
    assert adapter(tmp_path / "out") == whole


def test_resumed_after_its_stop_it_makes_no_step_unless_it_may_wait_longer(recipe_file, tmp_path):
    path = recipe_file(save_total_limit=None)
    train(path)
    stop, best = expected_stop(evaluations(), 3)
    whole = adapter(tmp_path / "out")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    report, said = train(path, "newest")
    assert f"Already finished at step {stop}: no step is left to make." in said
    assert report.step == best
    assert adapter(tmp_path / "out") == whole
    assert max(evaluations()) == stop
    report, said = train(path, "newest", "early_stopping_patience=5")
    assert max(evaluations()) > stop
    assert any("early_stopping_patience: 3 -> 5" in text for text in said)


def test_the_best_checkpoint_without_stopping(recipe_file, tmp_path):
    report, said = train(recipe_file(early_stopping_patience=None, save_total_limit=None, max_steps=8))
    accuracies = evaluations()
    best = min(step for step, value in accuracies.items() if value == max(accuracies.values()))
    assert len(accuracies) == 8
    assert report.step == best
    assert not any("Stopped early" in text for text in said)
    assert adapter(tmp_path / "out") == adapter(tmp_path / "out" / f"checkpoint-{best}")


@pytest.mark.parametrize("method", ["simpo", "kto"])
def test_a_metric_that_nobody_logs_is_refused_before_the_first_step(recipe_file, method):
    with pytest.raises(RecipeError, match=r"`metric_for_best_model: accuracy` is no metric of this run: .*margins"):
        train(recipe_file(method=method, metric_for_best_model="accuracy"))
    assert not evaluations()


@pytest.mark.slow
def test_several_processes_stop_together(recipe_file, tmp_path):
    path = recipe_file(per_device_train_batch_size=2)
    command = [sys.executable, "-m", "trl_plus.cli", "train", path, "--num-processes", "2", "--no-preflight"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    stop, best = expected_stop(evaluations(), 3)
    assert max(evaluations()) == stop
    assert adapter(tmp_path / "out") == adapter(tmp_path / "out" / f"checkpoint-{best}")
