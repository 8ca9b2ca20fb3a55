"""An adapter and a full fine-tune of the tiny model, each trained once for all tests."""

import json
from pathlib import Path

import pytest
import torch

from trl_plus.recipes.recipe import load_recipe
from trl_plus.training.run import run


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_model_dir, pair_rows):
    """{"adapter": folder, "full": folder}."""
    work = tmp_path_factory.mktemp("compared")
    rows = pair_rows(24)
    for split, part in (("train", rows[:12]), ("test", rows[12:])):
        Path(work / f"pairs_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    found = {}
    for name, use_peft in (("adapter", True), ("full", False)):
        values = {
            "method": "simpo", "model_name_or_path": tiny_model_dir, "dataset_name": str(work / "pairs"),
            "output_dir": str(work / name), "learning_rate": 3e-2, "per_device_train_batch_size": 4, "use_cpu": True,
            "num_train_epochs": 2, "use_peft": use_peft, "gradient_checkpointing": False, "disable_tqdm": True,
            "save_strategy": "no", "report_generations": 0, "bf16": False,
        }  # fmt: skip
        recipe = work / f"{name}.yaml"
        recipe.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
        run(load_recipe(str(recipe)), None, lambda what: None)
        found[name] = work / name
    return found


@pytest.fixture(scope="session")
def tiny(tiny_model_dir):
    """The tiny model in memory."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir)


@pytest.fixture
def prompts(pair_rows):
    return [row["prompt"] for row in pair_rows(7, seed=3)]
