"""Recipe files on disk: from text or from keys, or one that runs."""

import json

import pytest
import yaml

BASE = {"method": "simpo", "model_name_or_path": "org/model", "dataset_name": "org/data", "output_dir": "out"}


@pytest.fixture
def write(tmp_path):
    """Writes a recipe and gives its path. Keywords override BASE; None leaves a key out; `text` is written as it is."""

    def _write(text=None, **keys):
        path = tmp_path / "r.yaml"
        if text is None:
            text = yaml.safe_dump({k: v for k, v in {**BASE, **keys}.items() if v is not None}, sort_keys=False)
        path.write_text(text)
        return str(path)

    return _write


@pytest.fixture
def recipe_file(tmp_path, tiny_model_dir, pair_rows, monkeypatch):
    """Writes a recipe for 16 training and 6 held-out pairs in ./data, and works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    rows = pair_rows(22)
    (tmp_path / "data").mkdir()
    for split, part in (("train", rows[:16]), ("test", rows[16:])):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))

    def _write(**keys):
        values = {
            "method": "simpo",
            "model_name_or_path": tiny_model_dir,
            "dataset_name": "./data",
            "output_dir": "out",
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "use_peft": True,
            "lora_r": 4,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_steps": 3,
            "disable_tqdm": True,
            "use_cpu": True,
            **keys,
        }
        (tmp_path / "r.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items() if v is not None))
        return "r.yaml"

    return _write
