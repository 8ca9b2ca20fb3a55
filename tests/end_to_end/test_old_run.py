"""A run that an earlier version left behind is resumed, evaluated, reported and merged by this one.

`old_run/run` was made by commit db73402 with `trl-plus train quickstart` and the overrides that its journal names, then
evaluated. `old_run/three_steps.jsonl` holds the metrics of the same run with max_steps=3. `old_run/quickstart` has the
model and the pairs that this version bundled. Its path is written as PACKAGE; copies of tokenizer.json are left out.
"""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.recipes import package_data

STORED = Path(__file__).parent / "old_run"


def trl_plus_command(*words):
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output[-2000:]
    return done.output


def objects(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(value, path=""):
    """(path, number) of every number in a JSON value."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in numbers(item, f"{path}/{key}")]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in numbers(item, f"{path}/{index}")]
    return [(path, value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """The folder of the stored run, as it would lie on a machine whose package bundles the model of that version."""
    monkeypatch.setattr(package_data, "_PACKAGE", STORED)
    run = tmp_path / "run"
    shutil.copytree(STORED / "run", run)
    for folder in (run, run / "checkpoint-2"):
        shutil.copy(STORED / "quickstart" / "model" / "tokenizer.json", folder)
    for path in [*run.rglob("*.json"), run / "journal.jsonl"]:
        path.write_text(path.read_text(encoding="utf-8").replace("PACKAGE", str(STORED)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return run


def test_is_resumed(old_run):
    output = trl_plus_command("train", old_run / "recipe.resolved.yaml", "--resume=newest", "max_steps=3")
    assert "max_steps: 2 -> 3" in output
    expected = {line["step"]: line for line in objects(STORED / "three_steps.jsonl") if "loss" in line}
    found = {line["step"]: line for line in objects(old_run / "metrics.jsonl") if "loss" in line}
    assert list(found) == [1, 2, 3]
    for step, line in found.items():
        for name in ("loss", "grad_norm", "rewards/margins", "learning_rate", "num_tokens"):
            assert line[name] == pytest.approx(expected[step][name], rel=1e-3), (step, name)
    assert [event["event"] for event in objects(old_run / "journal.jsonl")].count("begin") == 2
    metrics = json.loads((old_run / "metrics.json").read_text())
    assert metrics["step"] == 3
    assert metrics["before"] == json.loads((STORED / "run" / "metrics.json").read_text())["before"]
    assert (old_run / "checkpoint-3" / "adapter_model.safetensors").is_file()


def test_is_evaluated(old_run):
    kept = json.loads((old_run / "evaluation.json").read_text())
    output = trl_plus_command("evaluate", old_run)
    assert "data has changed" not in output
    found = json.loads((old_run / "evaluation.json").read_text())
    for part in ("pairs", "lengths", "divergence", "sources", "rows"):
        assert dict(numbers(found[part])) == pytest.approx(dict(numbers(kept[part])), rel=1e-3, abs=1e-4), part
    assert found["weights"] == kept["weights"]


def test_is_reported(old_run):
    trl_plus_command("report", old_run)
    page = (old_run / "report.html").read_text(encoding="utf-8")
    for text in ("Finished.", "24 held-out rows", "Preflight looked at", "Accuracy by reward", "lora_target_modules"):
        assert text in page, text
    assert page.count("<polyline") >= 8
    for problem in ("cannot be read", "is left out", "holds others now"):
        assert problem not in page, problem


def test_is_merged(old_run):
    output = trl_plus_command("merge", old_run, "merged")
    assert "Merged and adapter differ by at most" in output
    assert (old_run.parent / "merged" / "model.safetensors").is_file()


def test_makes_room_for_a_new_run(old_run):
    output = trl_plus_command("train", old_run / "recipe.resolved.yaml", "max_steps=1", "--no-preflight")
    assert "Moved the earlier run in run to run/_earlier-1." in output
    assert (old_run / "_earlier-1" / "checkpoint-2" / "optimizer.pt").is_file()
