"""Runs on the tiny model, trained in this process for two steps."""

import json

import pytest

from trl_plus.recipes import load_recipe
from trl_plus.recipes.run import run


@pytest.fixture(scope="session")
def train_tiny(tmp_path_factory, tiny_model_dir):
    """train_tiny(method, train rows, held-out rows, **keys) -> output folder of the run."""

    def _train(method, train, held_out, **keys):
        work = tmp_path_factory.mktemp(method)
        for split, part in (("train", train), ("test", held_out)):
            (work / f"rows_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        values = {
            "method": method,
            "model_name_or_path": tiny_model_dir,
            "dataset_name": str(work / "rows"),
            "output_dir": str(work / "out"),
            "learning_rate": 2e-2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 2,
            "use_peft": True,
            "lora_r": 4,
            "gradient_checkpointing": False,
            "report_generations": 0,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            **keys,
        }
        path = work / "r.yaml"
        path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items() if v is not None))
        run(load_recipe(str(path)), None, lambda what: None)
        return work / "out"

    return _train


@pytest.fixture(scope="session")
def simpo_run(train_tiny, pair_rows):
    """A SimPO run with LoRA, whose held-out rows have a column `source`."""
    held_out = [{**row, "source": "abc"[i % 3]} for i, row in enumerate(pair_rows(30, 5))]
    return train_tiny("simpo", pair_rows(8), held_out, save_strategy="steps", save_steps=1)
