"""The main job, as a user runs it: `trl-plus train quickstart`, on the model and data that ship with the package."""

import json
import re
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def run(quickstart):
    """(folder of the run, its output, CPU seconds)."""
    return quickstart.folder, quickstart.output, quickstart.seconds


def test_takes_about_two_minutes_at_most(run, starts_of):
    assert starts_of(seconds=run[2]) < 10_000  # a bare interpreter starts in 10 to 15 ms of CPU time


def test_the_bar_ends_at_100_percent(run):
    """The bar must count optimizer steps."""
    counts = re.findall(r"(\d+)%\|[^|]*\| (\d+)/90 ", run[1])
    assert counts[-1] == ("100", "90")


def test_preferences_are_learned(run):
    metrics = json.loads((run[0] / "metrics.json").read_text())
    before, after = metrics["before"], metrics["after"]
    assert metrics["held_out_rows"] >= 100
    assert before["eval_rewards/accuracies"] < 0.8
    assert after["eval_rewards/accuracies"] > 0.85
    assert after["eval_rewards/margins"] > before["eval_rewards/margins"] + 0.3
    assert len(metrics["generations"]) == 3
    assert any(g["before"] != g["after"] for g in metrics["generations"])


def test_tables_are_printed(run):
    for text in ("reward accuracy", "mean reward margin", "before", "after", "Held-out prompts"):
        assert text in run[1]


def test_the_adapter_loads_and_answers(run):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model = AutoPeftModelForCausalLM.from_pretrained(run[0])
    tokenizer = AutoTokenizer.from_pretrained(run[0])
    messages = [{"role": "user", "content": "Hello, this is Georg. Where is the town hall? Be nice to me."}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "town hall" in answer or "square" in answer


def test_what_is_left_in_the_folder(run):
    from trl_plus.recipes.recipe import load_recipe

    names = {path.name for path in run[0].iterdir()}
    assert {"adapter_model.safetensors", "recipe.resolved.yaml", "metrics.json", "metrics.jsonl"} <= names
    assert load_recipe(str(run[0] / "recipe.resolved.yaml"), [])["beta"] == 2.0


def test_the_shipped_model_is_small_and_its_splits_are_apart():
    from importlib.resources import files

    folder = files("trl_plus") / "quickstart"
    size = sum(path.stat().st_size for path in (folder / "model").iterdir())
    assert size < 12e6
    train = [json.loads(line) for line in (folder / "pairs_train.jsonl").read_text().splitlines()]
    test = [json.loads(line) for line in (folder / "pairs_test.jsonl").read_text().splitlines()]
    assert len(train) >= 400
    assert {row["kind"] for row in train} == {"politeness", "format", "arithmetic", "brevity"}
    assert not {json.dumps(r["prompt"]) for r in train} & {json.dumps(r["prompt"]) for r in test}


@pytest.mark.parametrize("name", ["pairs_train", "unpaired_train"])
def test_the_surface_of_the_shipped_data_tells_nothing(name):
    """The prompt decides which answer is right: each manner is chosen as often as it is rejected."""
    from importlib.resources import files

    from trl_plus.data.shortcut_rule import surface_rows
    from trl_plus.preflight.shortcuts import audit

    lines = (files("trl_plus") / "quickstart" / f"{name}.jsonl").read_text().splitlines()
    assert audit(surface_rows(map(json.loads, lines)).examples).accuracy.value < 0.6


def test_its_report(quickstart, tmp_path):
    """What README tells a new user to look at; evaluate, compare and merge are run in tests/docs/test_running.py."""
    words = ["report", str(quickstart.folder), "--out", str(tmp_path / "report.html")]
    done = subprocess.run([sys.executable, "-m", "trl_plus.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<polyline") >= 12
    assert "Finished." in page
    assert "Preflight looked at" in page
