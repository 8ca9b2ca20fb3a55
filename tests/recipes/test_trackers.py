"""Runs with TensorBoard, W&B and trackio hold what metrics.jsonl holds: once, and in one run, resumed or not."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import load_recipe
from trl_plus.setup.machine_errors import check_machine
from trl_plus.training.callbacks import run_id
from trl_plus.training.run import run

ONCE = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


@pytest.fixture
def recipe_file(recipe_of):
    """Writes a recipe of six steps."""
    return recipe_of(12, 4, max_steps=6, eval_strategy="steps", eval_steps=3, save_steps=4, report_generations=0)


def train(path, resume=None, *overrides):
    run(load_recipe(path, overrides), resume, lambda what: None)


def logged(folder="out"):
    """(tracker's name of a metric, step) -> the values of metrics.jsonl, in their order."""
    found = {}
    for line in map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines()):
        step = line.pop("step")
        for name, value in line.items():
            name = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
            found.setdefault((name, step), []).append(value)
    return found


def same(found, wanted):
    """Names and steps are the same, and the values in their order."""
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert found[key] == pytest.approx(values, rel=1e-6, nan_ok=True), key


# -- TensorBoard -----------------------------------------------------------------------------------------------------


def scalars(folder):
    """(name, step) -> values in every event file under a folder; and the folders that hold any."""
    found, folders = {}, {path.parent for path in folder.rglob("events.out.tfevents*")}
    for place in folders:
        events = EventAccumulator(str(place), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                found.setdefault((name, event.step), []).append(event.value)
    return found, folders


@pytest.mark.parametrize("method", ["simpo", "kto"])
def test_tensorboard_holds_what_metrics_jsonl_holds(recipe_file, method, tmp_path):
    train(recipe_file(method=method, report_to="tensorboard", run_name="my run"))
    found, folders = scalars(tmp_path / "out")
    same(found, logged())
    assert len(folders) == 1
    names = {name for name, _ in found}
    assert {"train/loss", "train/rewards/margins", "train/tokens_per_second", "eval/rewards/margins"} <= names
    assert ("train/z_ref" in names) == ("eval/z_ref" in names) == (method == "kto")
    assert {step for name, step in found if name == "eval/loss"} == {0, 3, 6}
    assert len(found["eval/loss", 6]) == 2  # the last step's, and the one after training
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_a_resumed_run_goes_on_in_tensorboard(recipe_file, tmp_path):
    """Killed at step 6 and resumed from step 4: one line, without the steps that were made twice."""
    path = recipe_file(report_to="tensorboard")
    train(path)
    for name in ("checkpoint-6", "metrics.json"):
        shutil.rmtree(f"out/{name}", ignore_errors=True)
    train(path, "newest")
    found, folders = scalars(tmp_path / "out")
    wanted = logged()
    assert len(folders) == 1
    for key in [key for key in wanted if key[0] in ("train/tokens_per_second", "train/padding_ratio")]:
        assert len(found.pop(key)) == len(wanted.pop(key))
    same(found, wanted)


def test_a_fresh_run_in_the_same_folder_is_another_one(recipe_file, tmp_path):
    path = recipe_file(report_to="tensorboard", max_steps=1, eval_strategy="no", eval_steps=None)
    train(path)
    time.sleep(1.1)  # runs are told apart by the second in which they began
    train(path)
    folders = scalars(tmp_path / "out")[1]
    assert {path.parents[1].name for path in folders} == {"out", "_earlier-1"}
    assert len({path.name for path in folders}) == 2


def test_any_folder_has_a_name_that_trackers_take(tmp_path):
    folder = tmp_path / "my run #1: 50%\u00e9"
    assert run_id(folder, datetime(2026, 1, 2, 3, 4, 5)) == "my-run--1--50---20260102-030405"


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_missing_tracker_is_named_before_anything_is_loaded(recipe_file, tracker, monkeypatch):
    monkeypatch.setattr("trl_plus.upstream.libraries.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=f"pip install {tracker}, or set `report_to: none`"):
        check_machine(load_recipe(recipe_file(report_to=tracker)))


@pytest.mark.slow
def test_several_processes_write_once(recipe_file, tmp_path):
    path = recipe_file(report_to="tensorboard", max_steps=2, per_device_train_batch_size=2)
    command = [sys.executable, "-m", "trl_plus.cli", "train", path, "--num-processes", "2", "--no-preflight"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    same(scalars(tmp_path / "out")[0], logged())


# -- W&B and trackio: in a process of their own, since they hold threads and global state ------------------------------


def in_a_process(path, *words, **environment):
    command = [sys.executable, "-m", "trl_plus.cli", "train", path, "--no-preflight", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def records(data):
    """The records of an offline run of W&B: LevelDB's log format after a header of seven bytes."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            yield record
            record = b""


@pytest.mark.skipif(find_spec("wandb") is None, reason="W&B is not installed")
def test_wandb_offline(recipe_file, tmp_path):
    from wandb.proto import wandb_internal_pb2

    path = recipe_file(report_to="wandb", run_name="my run", project="my-project")
    in_a_process(path, WANDB_MODE="offline")
    shutil.rmtree("out/checkpoint-6")
    first = logged()
    in_a_process(path, "--resume", WANDB_MODE="offline")
    ids, projects, names, found = set(), set(), set(), {}
    for file in sorted((tmp_path / "wandb").rglob("*.wandb")):
        found.clear()
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                projects.add(record.run.project)
                names.add(record.run.display_name)
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            step = items.get("train/global_step")
            for name in {name for name, _ in first} & items.keys():
                found.setdefault((name, step), []).append(items[name])
    assert len(ids) == 1
    assert projects == {"my-project"}
    assert names == {"my run"}
    wanted = {key: values for key, values in logged().items() if key[1] > 4 and key[0][6:] not in ONCE}
    same(found, wanted)  # of the resumed part


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio(recipe_file, tmp_path):
    import sqlite3

    path = recipe_file(report_to="trackio", project="my-project")
    in_a_process(path, TRACKIO_DIR=str(tmp_path / "tracks"))
    first = logged()
    shutil.rmtree("out/checkpoint-6")
    in_a_process(path, "--resume", TRACKIO_DIR=str(tmp_path / "tracks"))
    (database,) = (tmp_path / "tracks").glob("*.db")
    assert database.stem == "my-project"
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    assert len({name for name, _ in rows}) == 1
    found = {}
    for _, text in rows:
        values = json.loads(text)
        step = values.pop("train/global_step")
        for name, value in values.items():
            found.setdefault((name, step), []).append(value)
    wanted = {key: values for key, values in first.items() if key[0][6:] not in ONCE}
    for key, values in logged().items():
        if key[1] > 4 and key in wanted:
            wanted[key] = wanted[key] + values
    same(found, wanted)
