"""A fresh run moves an earlier one as a whole: nothing is written over, and what was moved is a run."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import load_recipe
from trl_plus.runs.folder import holds_run, refuse_moved, set_aside
from trl_plus.training.run import run

ADAPTER = (
    "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "evaluation.json",
    "journal.jsonl", "metrics.json", "metrics.jsonl", "preflight.json", "recipe.resolved.yaml", "report.html",
    "tokenizer.json", "tokenizer_config.json", "training_args.bin", "checkpoint-9/weights", "ref/adapter_config.json",
    "runs/out-20260102-030405/events.out.tfevents.1",
)  # fmt: skip
MOVES = len(ADAPTER) + 1  # and the folder of all gets its name
MODEL = ("config.json", "generation_config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors")
OTHERS = ("notes.md", "journal.txt", "data/train.jsonl", "runs/other/recipe.resolved.yaml", "page.html", "model.py")
TEXTS = {
    "README.md": "<!-- weights -->",
    "report.html": "<head><title>Report: out</title>",
    "journal.jsonl": '{"event": "begin", "time": "2026-01-02T03:04:05+00:00"}\n',
    "recipe.resolved.yaml": "method: simpo\nuse_peft: true  # recipe\n",
}


def put(folder, names, **texts):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts.get(name, TEXTS.get(name, name)))


def tree(folder):
    """The text of every file, by its path."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_run_is_moved_and_nothing_else(tmp_path):
    put(tmp_path, (*ADAPTER, *MODEL, *OTHERS))  # beside an adapter, a model is somebody's
    before = tree(tmp_path)
    assert set_aside(tmp_path, full=False) == tmp_path / "_earlier-1"
    assert set(tree(tmp_path / "_earlier-1")) == set(ADAPTER)
    left = {name for name in tree(tmp_path) if not name.startswith("_earlier-1")}
    assert left == {*MODEL, *OTHERS}
    assert sorted(tree(tmp_path).values()) == sorted(before.values())
    assert set_aside(tmp_path, full=False) is None
    put(tmp_path, ("metrics.json",))
    assert set_aside(tmp_path, full=True).name == "_earlier-2"


@pytest.mark.parametrize("recipe, full", [("method: simpo\n", False), (TEXTS["recipe.resolved.yaml"], True)])
def test_a_model_is_moved_where_a_run_wrote_it_or_will(recipe, full, tmp_path):
    put(tmp_path, (*MODEL, "recipe.resolved.yaml"), **{"recipe.resolved.yaml": recipe})
    assert set(tree(set_aside(tmp_path, full))) == {*MODEL, "recipe.resolved.yaml"}


def test_what_a_user_wrote_under_our_names_stays(tmp_path):
    mine = {"README.md": "# Mine", "report.html": "<title>Mine</title>"}
    put(tmp_path, ("metrics.json", *mine), **mine)
    assert set(tree(set_aside(tmp_path, full=False))) == {"metrics.json"}


def test_a_folder_without_a_run_is_left_alone(tmp_path):
    put(tmp_path, ("journal.jsonl", *MODEL, *OTHERS))  # the journal of a run that was refused
    before = tree(tmp_path)
    assert not holds_run(tmp_path)
    assert set_aside(tmp_path, full=True) is None
    assert tree(tmp_path) == before


@pytest.mark.parametrize("done", range(MOVES + 1))
def test_killed_in_the_middle_of_the_move(done, tmp_path, monkeypatch):
    put(tmp_path, ADAPTER)
    before, renames, rename = tree(tmp_path), [], os.rename

    def killed(source, target, *rest, **more):
        if len(renames) == done:
            raise KeyboardInterrupt
        renames.append(source)
        rename(source, target, *rest, **more)

    monkeypatch.setattr(os, "rename", killed)
    with suppress(KeyboardInterrupt):
        set_aside(tmp_path, full=False)
    assert len(renames) == min(done, MOVES)
    assert sorted(tree(tmp_path).values()) == sorted(before.values())
    monkeypatch.undo()
    assert holds_run(tmp_path) == (done < MOVES)
    set_aside(tmp_path, full=False)
    assert tree(tmp_path / "_earlier-1") == before
    assert [path.name for path in tmp_path.iterdir()] == ["_earlier-1"]


def test_a_run_between_two_halves_of_a_move_costs_neither(tmp_path):
    put(tmp_path / "_earlier.part", ("metrics.json",))
    put(tmp_path, ("metrics.json", "recipe.resolved.yaml"), **{"metrics.json": "newer"})
    set_aside(tmp_path, full=False)
    assert tree(tmp_path / "_earlier-1") == {"metrics.json": "metrics.json"}
    assert tree(tmp_path / "_earlier-2")["metrics.json"] == "newer"


# -- runs -----------------------------------------------------------------------------------------------------------


def execute(path, resume=None, said=None):
    return run(load_recipe(path), resume, (said if said is not None else []).append, preflight=False)


def test_the_earlier_run_is_still_a_run(recipe_file, tmp_path):
    from trl_plus.report.write import write_report
    from trl_plus.runs.weights import open_run

    short = {"num_train_epochs": None, "report_generations": 0}
    execute(recipe_file(max_steps=2, save_steps=2, **short))
    write_report(["out"], None, None)
    before, said = {name: (tmp_path / "out" / name).read_bytes() for name in os.listdir("out") if "." in name}, []
    assert "report.html" in before
    execute(recipe_file(max_steps=1, seed=7, save_steps=1, **short), said=said)
    assert "Moved the earlier run in out to out/_earlier-1." in said
    moved = tmp_path / "out" / "_earlier-1"
    assert {name: (moved / name).read_bytes() for name in before} == before
    assert (moved / "checkpoint-2").is_dir()
    assert not (tmp_path / "out" / "report.html").exists()
    assert Path("out/journal.jsonl").read_text().count('"event": "begin"') == 1

    recipe, weights = open_run("out/_earlier-1")
    assert (recipe["max_steps"], weights.path) == (2, "out/_earlier-1")
    assert write_report(["out/_earlier-1"], None, None) == Path("out/_earlier-1/report.html")
    said.clear()
    execute("r.yaml", "newest", said)
    assert "Resuming from out/checkpoint-1." in said


def test_a_refused_run_leaves_no_trace_in_an_earlier_one(recipe_file, tmp_path):
    execute(recipe_file(max_steps=1, num_train_epochs=None, max_eval_rows=0))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match="nope"):
        execute(recipe_file(lora_target_modules=["nope"]))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_refused_run_in_a_new_folder_says_why(recipe_file, tmp_path):
    with pytest.raises(RecipeError, match="nope"):
        execute(recipe_file(lora_target_modules=["nope"]))
    end = json.loads((tmp_path / "out" / "journal.jsonl").read_text().splitlines()[-1])
    assert (end["event"], end["outcome"]) == ("end", "failed")


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"model_name_or_path": "out"}, "`model_name_or_path` is `output_dir`"),
        ({"model_name_or_path": "out/checkpoint-9"}, "`model_name_or_path` is out/checkpoint-9, a part of"),
        ({"chat_template_path": "./out/chat_template.jinja"}, "`chat_template_path` is ./out/chat_template.jinja"),
        ({"datasets": [{"path": "out/metrics.jsonl"}], "dataset_name": None}, "`datasets` is"),
    ],
)
def test_what_would_be_moved_cannot_be_read(keys, message, recipe_file, tmp_path):
    put(tmp_path / "out", (*ADAPTER, *MODEL))
    recipe = load_recipe(recipe_file(**keys), needs_data=False)
    with pytest.raises(RecipeError, match=message):
        refuse_moved(recipe, Path("out"))


def test_what_stays_can_be_read(recipe_file, tmp_path):
    put(tmp_path / "out", (*ADAPTER, "base/config.json"))
    refuse_moved(load_recipe(recipe_file(model_name_or_path="out/base")), Path("out"))
