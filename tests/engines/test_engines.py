"""FSDP2, ZeRO-2 and ZeRO-3 on two CPU processes make the updates of one process, and save what can be loaded.

Importing TRL costs more than a run, so one launch makes all runs of an engine, in one process group.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import build_model
from tests.engines import cells
from trl_plus.runs.checkpoint_files import UNFINISHED, find

WORKER = Path(__file__).parent / "worker.py"
LIMIT = 900  # seconds for the runs of one engine: about 60 on two idle cores, ten times as many on busy ones
EXACT = 1e-5
SKIPPED = re.compile("tokens_per_second|epoch|runtime|per_second|padding_ratio|model_preparation_time")
# Token means that TRL takes per micro-batch, where its own loss is used
UPSTREAM_MEANS = re.compile("entropy|mean_token_accuracy|logits/")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is installed on Linux only"),
    pytest.mark.timeout(LIMIT + 300),
]


def table(names):
    """(engine, cell) of each; what takes longer is slow."""
    return [
        pytest.param(engine, name, marks=[] if name in cells.QUICK else pytest.mark.slow, id=f"{engine}-{name}")
        for engine in cells.ENGINES
        for name in names
        if cells.made_under(name, engine)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer, tiny_model_dir, other_model_dir):
    found = {"model": tiny_model_dir, "other": other_model_dir}
    for name, seed in (("tied", 0), ("tied_other", 4)):
        model = build_model(tokenizer, seed)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        found[name] = str(tmp_path_factory.mktemp("tied") / name)
        model.save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    return found


def launch(engine, specs, folder):
    """Makes all runs, one after the other; the end of what was printed."""
    (folder / "cells.json").write_text(json.dumps(specs), encoding="utf-8")
    ranks = 1 if engine == "single" else 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    processes = []
    for rank in range(ranks):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2} if ranks > 1 else {}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if own else {}
        with (folder / f"{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), engine, str(folder / "cells.json")],
                    env=inherited | {name: str(value) for name, value in own.items()},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    end = time.monotonic() + LIMIT
    while None in [process.poll() for process in processes] and time.monotonic() < end:
        if any(process.poll() for process in processes):  # one failed: the other may wait for it
            end = min(end, time.monotonic() + 20)
        time.sleep(0.2)
    for process in processes:
        process.kill()
        process.wait()
    return "\n".join((folder / f"{rank}.log").read_text()[-3000:] for rank in range(ranks))


@pytest.fixture(scope="module")
def result(request, tmp_path_factory, models):
    """result(engine, name) -> what that run ended with; only runs that were selected are made."""
    chosen = {(p["engine"], p["name"]) for p in map(_params, request.session.items) if "engine" in p}
    chosen |= {("single", name) for _, name in chosen if cells.CELLS[name].get("do") in (None, "nonfinite", "late")}
    order, folders, printed = list(cells.CELLS), {}, {}

    def of(engine, name):
        if engine not in folders:
            folders[engine] = tmp_path_factory.mktemp(engine)
            names = sorted((n for e, n in chosen if e == engine), key=order.index)
            specs = [cells.spec_of(n, models, str(folders[engine])) for n in names]
            printed[engine] = launch(engine, specs, folders[engine])
        path = folders[engine] / name
        assert path.exists(), printed[engine]
        found = torch.load(path, weights_only=False)
        assert "error" not in found, found["error"]
        return {"folder": str(folders[engine])} | found

    return of


def _params(item):
    return item.callspec.params if item.path == Path(__file__) and hasattr(item, "callspec") else {}


def gap(several, one, name, models):
    """The distance of two updates, over the length of one."""
    cell = cells.CELLS[name]
    start = one["start"]
    if not cell.get("lora") and not cell.get("kind"):
        start = load_file(models["tied" if cell.get("tied") else "model"] + "/model.safetensors")
    compared = [n for n in one["weights"] if n in start]
    assert compared
    assert several["weights"].keys() == one["weights"].keys()
    scale = 1.1 if cell.get("edited") else 1.0  # of the worker's edit
    distance = sum(((several["weights"][n] - one["weights"][n]).double() ** 2).sum() for n in compared) ** 0.5
    length = sum(((one["weights"][n] - scale * start[n]).double() ** 2).sum() for n in compared) ** 0.5
    assert length > 0
    return float(distance / length)


def same_numbers(several, one, skipped):
    names = {name for name in one if not skipped.search(name)}
    assert names == {name for name in several if not skipped.search(name)}
    if any(abs(value) < 1e-5 for name, value in one.items() if name.endswith("margins")):
        skipped = re.compile(f"{skipped.pattern}|accuracies")  # who wins is rounding: the policy is its reference yet
    for name in [name for name in names if not skipped.search(name)]:
        assert several[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("engine, name", table(cells.SAME))
def test_update_of_one_process(engine, name, result, models):
    """Weights, logs and evaluation; 13 rows in steps of 8 divide by nothing. The layout stays packed."""
    several, one = result(engine, name), result("single", name)
    distance = gap(several, one, name, models)
    print(f"update: {engine} {name} {distance:.1e}")
    assert distance < EXACT
    assert len(several["logs"]) == len(one["logs"]) == 3
    skipped = SKIPPED
    if "f_divergence_type" in cells.CELLS[name].get("config", {}):
        skipped = re.compile(f"{SKIPPED.pattern}|{UPSTREAM_MEANS.pattern}")
    for mine, other in zip(
        [*several["logs"], several["evaluation"], several["before"] or {}],
        [*one["logs"], one["evaluation"], one["before"] or {}],
        strict=True,
    ):
        same_numbers(mine, other, skipped)
    assert set(several["layouts"]) == {"packed"}
    assert several["sharded"] == (engine != "zero2")


@pytest.mark.parametrize("engine, name", table(cells.FAILING))
def test_all_ranks_fall_back_where_one_fails_its_proof(engine, name, result, models):
    """A rank that fails in a layer leaves no other waiting for its shards. Plain rows make the same update."""
    several = result(engine, name)
    assert set(several["layouts"]) == {"rows"}
    assert gap(several, result("single", name), name, models) < EXACT


@pytest.mark.parametrize("engine, name", table(cells.OWN_LOGITS))
def test_all_ranks_take_the_models_own_logits(engine, name, result, models):
    """Whether every rank finds the fused head wrong or one does; one process takes the head where it is right."""
    several, one = result(engine, name), result("single", name)
    alone = "fail" in cells.CELLS[name]
    assert all((reason is None) == alone for head in one["reasons"][0] for reason in head.values())
    for rank in several["reasons"]:
        assert all(reason is not None for head in rank for reason in head.values())
    assert set(several["layouts"]) == {"packed"}
    assert gap(several, one, name, models) < EXACT


@pytest.mark.parametrize("engine, name", table(cells.LATE))
def test_a_kernel_that_fails_later_on_one_rank(engine, name, result, models):
    """All take plain rows, or the run ends in words: other ranks wait for the shards of one that starts anew."""
    several = result(engine, name)
    if engine == "zero2":
        assert several["layouts"] == [["rows", "rows"]] * 2
        assert gap(several, result("single", name), name, models) < EXACT
        return
    said = Path(several["folder"], f"{name}.1.txt").read_text()
    assert re.fullmatch(r"The packed layout does not work here: .*no kernel on this rank.* Set `layout: rows`\.", said)
    assert several["said"]  # that a process is gone


@pytest.mark.parametrize("engine, name", table(cells.POISONED))
def test_a_loss_that_is_not_finite(engine, name, result, models):
    """A row of rank 1 stops all before its step, or all leave the step out. DeepSpeed cannot, and its stop says so."""
    several, one = result(engine, name), result("single", name)
    if name == "DPO-gradient":  # every loss is finite
        assert several["steps"] == one["steps"] == 2
        assert "Step 3: not finite: the gradient" in several["said"]
        assert ("the weights in memory are lost. No checkpoint" in several["said"]) == (engine != "fsdp2")
        return
    if name == "SimPO-skip" and engine != "fsdp2":
        assert several["steps"] == 2
        assert "`nonfinite: skip` cannot leave it out" in several["said"]
        return
    assert several["steps"] == one["steps"] == (4 if name == "SimPO-skip" else 2)
    assert ("Step 3: not finite: the loss of row" in several["said"]) == (name == "DPO-stop")
    assert gap(several, one, name, models) < EXACT


@pytest.mark.parametrize("engine, name", table(cells.RESUMED))
def test_resumed_run_makes_the_same_bits(engine, name, result):
    found = result(engine, name)
    assert found["whole"].keys() == found["resumed"].keys()
    for parameter, value in found["whole"].items():
        assert torch.equal(value, found["resumed"][parameter]), parameter
    assert [log["loss"] for log in found["whole logs"]] == [log["loss"] for log in found["resumed logs"]]
    # three are kept of four, each complete; nothing half-written is left
    for run, steps in (("whole", (2, 3, 4)), ("resumed", (3, 4))):
        saved = {file for file in found[f"{run} files"] if file.startswith("checkpoint-")}
        assert saved == {f"checkpoint-{step}" for step in steps}
        assert UNFINISHED not in found[f"{run} files"]
        assert find(Path(found[f"{run} folder"])).newest.name == "checkpoint-4"


@pytest.mark.parametrize("engine, name", table(cells.RECIPES))
def test_what_a_recipe_saved_is_evaluated_and_merged(engine, name, result, tmp_path):
    """Whole weights give the margin that the engine itself measured; shards are refused with what makes them whole."""
    from trl_plus.errors import RecipeError
    from trl_plus.evaluation.run import evaluate
    from trl_plus.merging.run import merge
    from trl_plus.runs.weights import open_run

    folder = Path(result(engine, name)["folder"])
    resolved = folder / "recipe.resolved.yaml"
    resolved.write_text(re.sub("(?m)^accelerator_config:.*\n", "", resolved.read_text()))  # of this test's processes
    margin = json.loads((folder / "metrics.json").read_text())["after"]["eval_rewards/margins"]
    places = [folder, folder / "checkpoint-3"]
    if name == "recipe-SimPO-shards":
        with pytest.raises(RecipeError, match=r"in shards of (FSDP|DeepSpeed)\. Fix: "):
            open_run(str(places[1]))
        if engine == "fsdp2":
            places = places[:1]  # the end of a run is saved whole
        else:
            from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

            with pytest.raises(RecipeError, match=r"in shards of DeepSpeed\. Fix: "):
                open_run(str(folder))
            assert not (folder / UNFINISHED).exists()
            for place in places:
                convert_zero_checkpoint_to_fp32_state_dict(str(place), str(place), safe_serialization=True)
    for place in places:
        recipe, weights = open_run(str(place))
        tuned = evaluate(recipe, weights, None, None, lambda *_: None).pairs.models["tuned"]["reward"]
        assert tuned.margin.value == pytest.approx(margin, rel=1e-4, abs=1e-5)
    if weights.adapter:
        said = []
        merged = merge(recipe, weights, str(tmp_path / "merged"), None, "2GB", None, said.append)
        assert (merged.path / "model.safetensors").is_file()
