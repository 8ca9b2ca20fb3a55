"""Faults of the machine: one message that names the cure, exit code 1 or 2, and nothing saved is lost."""

import errno
import json
import os
import signal
import time

import pytest
import torch
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.data.loading import DataRequest, load
from trl_plus.errors import DataError, RecipeError
from trl_plus.recipes.recipe import load_recipe
from trl_plus.setup.machine_errors import check_machine, explain

TEXT = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.fixture
def recipe_file(tmp_path, tiny_model_dir, pair_rows, monkeypatch):
    """Writes a recipe for 8 pairs, two checkpoints of which fit into four steps, and works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(8)))

    def write(**keys):
        values = {
            "method": "simpo",
            "model_name_or_path": tiny_model_dir,
            "dataset_name": "./rows.jsonl",
            "output_dir": "out",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_steps": 4,
            "save_steps": 1,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "use_cpu": True,
            **keys,
        }
        (tmp_path / "r.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items()))
        return "r.yaml"

    return write


def train(path, *words):
    result = CliRunner().invoke(app, ["train", path, *words])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def fail_at(monkeypatch, step, error):
    """Every training step from this one on (counted from 1) raises `error`."""
    import trl_plus

    real, calls = trl_plus.SimPOTrainer.training_step, []

    def training_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) >= step:
            raise error
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trl_plus.SimPOTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk of out is full."),
        (torch.OutOfMemoryError("CUDA out of memory"), "per_device_train_batch_size=2 gradient_accumulation_steps=2"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "gradient_checkpointing=true"),
    ],
    ids=["disk", "gpu", "cpu"],
)
def test_the_last_checkpoint_stays(recipe_file, tmp_path, monkeypatch, error, words):
    fail_at(monkeypatch, 3, error)
    code, text = train(recipe_file())
    assert code == 1
    assert words in text
    assert "The last complete checkpoint is out/checkpoint-2." in text
    assert (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").is_file()


def test_disk_full_while_saving(recipe_file, tmp_path, monkeypatch):
    import trl_plus

    real = trl_plus.SimPOTrainer.write_checkpoint

    def write_checkpoint(self, folder):
        real(self, folder)
        if self.state.global_step == 2:
            raise RuntimeError("PytorchStreamWriter failed") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trl_plus.SimPOTrainer, "write_checkpoint", write_checkpoint)
    code, text = train(recipe_file())
    assert code == 1
    assert "The disk of out is full" in text
    assert "The last complete checkpoint is out/checkpoint-1." in text
    assert not (tmp_path / "out" / "checkpoint-2").exists()


def test_a_non_finite_loss_is_no_traceback(recipe_file, monkeypatch):
    from trl_plus.step.nonfinite import NonFiniteError

    fail_at(monkeypatch, 1, NonFiniteError("Step 1: not finite: the loss."))
    code, text = train(recipe_file())
    assert code == 1
    assert text.endswith("error: Step 1: not finite: the loss.")


def test_a_killed_dataloader_worker(recipe_file, monkeypatch):
    from trl_plus.data.collators import RowExtras

    real, parent = RowExtras.__call__, os.getpid()

    def collate(self, rows):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, rows)

    monkeypatch.setattr(RowExtras, "__call__", collate)
    code, text = train(recipe_file(dataloader_num_workers=1))
    assert code == 1
    assert "A worker process was killed" in text
    assert "No complete checkpoint was saved yet. Lower `dataloader_num_workers`" in text


def test_a_killed_worker_of_a_dataset_map(recipe_file, monkeypatch):
    """The worker kills itself: the message is that of datasets, with whatever it raises."""
    from trl.trainer import dpo_trainer

    real, parent = dpo_trainer._tokenize, os.getpid()

    def tokenize(*args, **kwargs):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    monkeypatch.setattr(dpo_trainer, "_tokenize", tokenize)
    code, text = train(recipe_file(dataset_num_proc=2))
    assert code == 1
    assert "A worker process was killed" in text
    assert "Lower `dataloader_num_workers` or `dataset_num_proc`" in text


def test_torch_says_nothing_of_the_disk(recipe_file):
    """What torch.save raises on a full disk, depending on where in the file it ends."""
    recipe = load_recipe(recipe_file())
    for text in (
        "[enforce fail at inline_container.cc:672] . unexpected pos 8512 vs 8406",
        "basic_ios::clear: iostream error",
        "[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/2: file write failed",
    ):
        assert "The disk of out is full, or took no more" in explain(RuntimeError(text), recipe)
    assert explain(RuntimeError("PytorchStreamReader failed reading zip archive (inline_container.cc)"), recipe) is None


def test_a_bug_is_not_explained(recipe_file):
    assert explain(RuntimeError("size mismatch"), load_recipe(recipe_file())) is None


def test_a_missing_tracker_is_said_at_once(recipe_file, starts_of):
    recipe = load_recipe(recipe_file(report_to="swanlab"))
    start = time.process_time()
    with pytest.raises(RecipeError, match="pip install swanlab, or set `report_to: none`"):
        check_machine(recipe)
    assert starts_of(seconds=time.process_time() - start) < 200
    assert train("r.yaml")[0] == 2


def test_an_output_folder_that_cannot_be_written(recipe_file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    code, text = train(recipe_file(output_dir="file/out"))
    assert code == 2
    assert "cannot write to file/out: Not a directory. Name another one." in text

    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    code, text = train(recipe_file())
    assert code == 2
    assert "cannot write to out: Read-only file system" in text


@pytest.mark.parametrize(
    "name, words",
    [("a.jsonl", "line 3 is not JSON"), ("a.json", "is not JSON.*cut off"), ("a.parquet", "is cut off")],
)
def test_a_file_cut_in_the_middle(tmp_path, name, words):
    from datasets import Dataset

    path = tmp_path / name
    rows = [TEXT | {"prompt": f"question {i}"} for i in range(4)]
    if name.endswith("parquet"):
        Dataset.from_list(rows).to_parquet(str(path))
    else:
        path.write_text(json.dumps(rows) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in rows))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 5 // 8])
    with pytest.raises(DataError, match=words):
        load(DataRequest(paired_method=True, name=str(path)))
