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
def recipe_of(tmp_path, tiny_model_dir, pair_rows, monkeypatch):
    """recipe_of(16, 6, **keys) -> writer of recipes for so many training and held-out pairs in ./data.

    Works in a folder of its own. The writer's keys go before those given here; None leaves a key out.
    """
    monkeypatch.chdir(tmp_path)

    def _of(train, held_out, **defaults):
        rows = pair_rows(train + held_out)
        (tmp_path / "data").mkdir()
        for split, part in (("train", rows[:train]), ("test", rows[train:])):
            (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))

        def _write(**keys):
            values = {
                "method": "simpo",
                "model_name_or_path": tiny_model_dir,
                "dataset_name": "./data",
                "output_dir": "out",
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 4,
                "use_peft": True,
                "lora_r": 4,
                "gradient_checkpointing": False,
                "logging_steps": 1,
                "disable_tqdm": True,
                "use_cpu": True,
                **defaults,
                **keys,
            }
            lines = [f"{name}: {json.dumps(value)}\n" for name, value in values.items() if value is not None]
            (tmp_path / "r.yaml").write_text("".join(lines))
            return "r.yaml"

        return _write

    return _of


@pytest.fixture
def recipe_file(recipe_of):
    """Writes a recipe of two epochs."""
    return recipe_of(16, 6, num_train_epochs=2, save_steps=3)
