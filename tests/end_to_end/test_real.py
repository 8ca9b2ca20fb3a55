"""SimPO, ORPO, DPO and KTO with LoRA on real preference pairs and a real 135M chat model, through the command line.

    TRL_PLUS_REAL_DATA=../shared/data TRL_PLUS_REAL_MODEL=/path/to/SmolLM2-135M-Instruct pytest -m real

Few steps on short rows: accuracies stay within noise there, so the tests look at finiteness and at margins.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(os.environ.get("TRL_PLUS_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
MODEL = os.environ.get("TRL_PLUS_REAL_MODEL")
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data: TRL_PLUS_REAL_DATA or {DATA}"),
    pytest.mark.skipif(MODEL is None, reason="no real model: TRL_PLUS_REAL_MODEL names no folder"),
]


def train(recipe, data, folder, **overrides):
    """metrics.json and the log of a short run."""
    values = {
        "model_name_or_path": MODEL,
        "dataset_name": DATA / data,
        "output_dir": folder,
        "max_steps": 3,
        "max_length": 112,
        "overlong": "drop",
        "eval_fraction": 0.2,
        "max_eval_rows": 16,
        "dtype": "float32",
        "bf16": "false",
        "gradient_checkpointing": "false",
        "learning_rate": 2e-4,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": 4,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_generations": 1,
        "logging_steps": 1,
    } | overrides
    command = [sys.executable, "-m", "trl_plus.cli", "train", recipe, *(f"{k}={v}" for k, v in values.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    log = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return json.loads((Path(folder) / "metrics.json").read_text()), [entry for entry in log if "loss" in entry]


@pytest.mark.parametrize("recipe", ["simpo_lora", "orpo_lora", "dpo_lora", "kto_paired_lora"])
def test_pairs(recipe, tmp_path):
    metrics, log = train(recipe, "llmbar.jsonl", tmp_path)
    assert len(log) == 3
    assert all(math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) for entry in log)
    before, after = metrics["before"], metrics["after"]
    assert math.isfinite(after["eval_rewards/margins"])
    assert after["eval_rewards/margins"] != before["eval_rewards/margins"]
    if recipe == "dpo_lora":  # the policy is the reference before the first step
        assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert metrics["generations"][0]["before"].strip()


def test_truly_unpaired_rows(tmp_path):
    metrics, log = train("kto_lora", "demo_unpaired_en.jsonl", tmp_path, max_length=160, max_eval_rows=60)
    assert all(math.isfinite(entry["loss"]) for entry in log)
    assert all(entry["z_ref"] >= 0 for entry in log)
    assert metrics["held_out_rows"] > 0


def test_multi_turn_rows_with_system_messages(tmp_path):
    """106 of these 300 pairs have several turns, 80 a system message; long rows are cut and counted."""
    metrics, log = train(
        "simpo_lora", "demo_pairs_en.jsonl", tmp_path, max_steps=1, max_length=160, overlong="truncate",
        per_device_train_batch_size=2, max_eval_rows=4, per_device_eval_batch_size=2,
    )  # fmt: skip
    assert math.isfinite(log[0]["loss"])
    assert math.isfinite(metrics["after"]["eval_loss"])


def call(*words):
    done = subprocess.run([sys.executable, "-m", "trl_plus.cli", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_evaluate_agrees_with_the_run(tmp_path):
    metrics, _ = train("dpo_lora", "llmbar.jsonl", tmp_path, max_eval_rows=40)
    found = json.loads(call("evaluate", tmp_path, "--json"))
    tuned, after = found["pairs"]["models"]["tuned"]["reward"], metrics["after"]
    assert found["rows"] == metrics["held_out_rows"] >= 10  # of forty, those that fit into 112 tokens
    assert tuned["margin"]["value"] == pytest.approx(after["eval_rewards/margins"], abs=1e-6)
    assert tuned["accuracy"]["value"] == pytest.approx(after["eval_rewards/accuracies"], abs=1e-6)
    assert len(found["lengths"]["buckets"]) >= 2


@pytest.mark.parametrize("keys", [{}, {"load_in_4bit": "true", "bnb_4bit_quant_type": "nf4"}], ids=["lora", "qlora"])
def test_merge(keys, tmp_path):
    """135M parameters, tied embeddings; of four bits also what both ways of merging do to the held-out margin."""
    metrics, _ = train("simpo_lora", "llmbar.jsonl", tmp_path / "run", **keys)
    said = call("merge", tmp_path / "run", tmp_path / "merged")
    assert float(said.split("differ by at most ")[1].split()[0]) < 1e-3  # of logits up to about 30
    assert ("merged, original base" in said) == bool(keys)
    merged = json.loads(call("evaluate", tmp_path / "run", "--model", tmp_path / "merged", "--json"))
    margin = merged["pairs"]["models"]["tuned"]["reward"]["margin"]["value"]
    assert margin == pytest.approx(metrics["after"]["eval_rewards/margins"], abs=1e-2 if keys else 1e-4)
