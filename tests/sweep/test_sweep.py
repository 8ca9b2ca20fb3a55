"""Sweeps that train: shared rows, stopped and continued, failed runs, successive halving, processes side by side."""

import json
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.sweep import runs
from trl_plus.sweep.results import as_object
from trl_plus.sweep.run import sweep
from trl_plus.trainers.rows import PreferenceRows

WORDS = ["learning_rate=1e-3,5e-2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model_dir, pair_rows):
    work = tmp_path_factory.mktemp("sweep")
    for split, rows in (("train", pair_rows(8)), ("test", pair_rows(30, 5))):
        (work / f"rows_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "method": "simpo",
        "model_name_or_path": tiny_model_dir,
        "dataset_name": str(work / "rows"),
        "output_dir": str(work / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "use_peft": True,
        "lora_r": 4,
        "gradient_checkpointing": False,
        "report_generations": 0,
        "save_strategy": "steps",
        "save_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    (work / "r.yaml").write_text(yaml.safe_dump(values))
    return str(work / "r.yaml")


class Whole:
    """A sweep that nothing stopped: its results, what it printed, and how often rows were tokenized."""

    def __init__(self, recipe, folder):
        self.said, self.tokenized = [], []
        finish = PreferenceRows.finish
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                PreferenceRows, "finish", lambda *a: (self.tokenized.append((a[0]._owner, a[2])), finish(*a))[1]
            )
            self.found = sweep(recipe, WORDS, 2, folder, None, 1, self.said.append)
        self.folder = folder


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    return Whole(recipe, tmp_path_factory.mktemp("whole") / "s")


def test_runs_and_figures(whole):
    folders = sorted(path.name for path in whole.folder.iterdir())
    assert folders == [f"learning_rate-{rate}_seed-{seed}" for rate in ("0.001", "0.05") for seed in (42, 43)]
    found = whole.found
    assert (found.pairs, found.prompts, found.failed) == (30, 30, {})
    assert len(found.differences) == 1
    assert found.differences[0].seeds == 2
    for place, row in enumerate(found.rows):
        for run, accuracy in zip([r for r in found.plan.runs if r.place == place], row.accuracies, strict=True):
            metrics = json.loads((whole.folder / run.name / "metrics.json").read_text())
            assert accuracy == pytest.approx(metrics["after"]["eval_rewards/accuracies"])
    assert found.sentences


def test_rows_are_tokenized_once_for_all_runs(whole):
    """Four runs: their trainers share the two sets; the evaluation, which numbers rows, has its own held-out set."""
    names = [name for _, name in whole.tokenized]
    assert names.count("train") == 1
    assert names.count("eval") <= 2
    assert sum("Preflight" in str(line) for line in whole.said) == 1


def test_a_run_is_a_run(whole, tmp_path):
    folder = whole.folder / whole.found.plan.runs[0].name
    done = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    assert "learning_rate=0.001" in (tmp_path / "r.html").read_text()  # the command that makes it again


def test_stopped_and_continued_to_the_same_table(whole, recipe, tmp_path, monkeypatch):
    def stop_at_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*args)

    calls, score = [], runs.score
    monkeypatch.setattr(runs, "score", stop_at_second)
    with pytest.raises(KeyboardInterrupt, match="The same command continues"):
        sweep(recipe, WORDS, 2, tmp_path / "s", None, 1, lambda line: None)
    monkeypatch.undo()
    said = []
    found = sweep(recipe, WORDS, 2, tmp_path / "s", None, 1, said.append)
    assert "1 of 4 runs are there already." in said
    assert as_object(found) == as_object(whole.found)


def test_finished_runs_are_left_and_another_recipe_is_refused(whole, recipe):
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*.safetensors")}
    call = [*WORDS, "--seeds", "2", "--out", str(whole.folder)]
    done = CliRunner().invoke(app, ["sweep", recipe, *call])
    assert done.exit_code == 0, done.output
    assert before == {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*.safetensors")}
    kept = json.loads((whole.folder / "sweep.json").read_text())
    assert kept == as_object(whole.found)
    page = (whole.folder / "sweep.html").read_text()
    assert "learning_rate 0.05" in page
    assert kept["sentences"][0].split("<")[0][:40] in page
    other = CliRunner().invoke(app, ["sweep", recipe, *call, "lora_r=2"])
    assert other.exit_code == 2
    assert "holds a run of another recipe (lora_r: 4 -> 2)" in other.output


def test_a_run_that_fails_is_told_and_the_others_go_on(whole, recipe, tmp_path, monkeypatch):
    def fails_once(job, made, *args):
        if made["seed"] == 43 and made["learning_rate"] == 0.05:
            raise RuntimeError("a fault of this run")
        return train(job, made, *args)

    train = runs.train
    monkeypatch.setattr(runs, "train", fails_once)
    done = CliRunner().invoke(app, ["sweep", recipe, *WORDS, "--seeds", "2", "--out", str(tmp_path / "s")])
    assert done.exit_code == 1
    kept = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert kept["failed"] == {"learning_rate 0.05, seed 43": "RuntimeError: a fault of this run"}
    assert kept["values"][1]["accuracies"] == [whole.found.rows[1].accuracies[0], None]
    assert "a fault of this run" in (tmp_path / "s" / "sweep.html").read_text()


def test_successive_halving_goes_on_from_checkpoints(recipe, tmp_path):
    said = []
    words = ["learning_rate=1e-3,5e-2,1e-1", "save_strategy=no", "save_steps=null"]
    found = sweep(recipe, words, 1, tmp_path / "s", 8, 1, said.append)
    left = [row for row in found.rows if row.left is not None]
    assert len(left) == 1
    assert left[0].left == 1
    assert len(found.differences) == 1
    for run in found.plan.runs:
        assert runs.is_finished(tmp_path / "s" / run.name) == (found.rows[run.place].left is None)
        assert (tmp_path / "s" / run.name / "checkpoint-1").is_dir()
    assert as_object(sweep(recipe, words, 1, tmp_path / "s", 8, 1, said.append)) == as_object(found)


@pytest.mark.slow
def test_killed_and_continued_to_the_same_table(whole, recipe, tmp_path):
    words = ["sweep", recipe, *WORDS, "--seeds", "2", "--out", str(tmp_path / "s")]
    command = [sys.executable, "-m", "trl_plus.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("s/*/checkpoint-1"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "s" / "sweep.json").read_text()) == as_object(whole.found)


@pytest.mark.slow
def test_side_by_side_is_the_same_table(whole, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    found = sweep(recipe, WORDS, 2, tmp_path / "s", None, 2, lambda line: None)
    assert as_object(found) == as_object(whole.found)
