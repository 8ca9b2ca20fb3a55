"""The same faults, made by the operating system: a full disk and no memory; and files that are packed."""

import gzip
import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.data.loading import DataRequest, load
from trl_plus.errors import DataError
from trl_plus.runs import checkpoint_files as files


@pytest.fixture
def recipe(tmp_path, tiny_model_dir, pair_rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(8)))
    keys = {
        "method": "simpo", "model_name_or_path": tiny_model_dir, "dataset_name": "./rows.jsonl", "output_dir": "out",
        "per_device_train_batch_size": 4, "max_steps": 12, "save_steps": 1, "gradient_checkpointing": False,
        "use_cpu": True, "disable_tqdm": True, "report_generations": 0, "bf16": False,
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
    return tmp_path


@pytest.fixture
def small_disk(recipe):
    """`out` on a disk of 3 MB, which `small_disk(megabytes)` makes larger; skipped where nothing can be mounted."""
    out = recipe / "out"
    out.mkdir()

    def mount(option):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", out], capture_output=True, text=True)

    if shutil.which("mount") is None or mount("size=3m").returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield lambda megabytes: mount(f"remount,size={megabytes}m")
    subprocess.run(["umount", "-l", out], check=True)


def train(*words):
    result = CliRunner().invoke(app, ["train", "r.yaml", *words])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def test_a_full_disk(small_disk, recipe):
    code, text = train()
    assert code == 1, text
    found = files.find(recipe / "out")
    assert "The disk of out is full" in text
    assert f"The last complete checkpoint is out/{found.newest.name}." in text
    for path in files.checkpoints(recipe / "out"):
        assert files.problem_of(path) is None
    assert small_disk(64).returncode == 0
    code, text = train("--resume=newest")
    assert code == 0, text
    assert f"Resuming from out/{found.newest.name}." in text
    assert files.find(recipe / "out").newest.name == "checkpoint-12"


NO_MEMORY = """
import resource
import trl_plus
from trl_plus.cli import main
real, calls = trl_plus.SimPOTrainer.training_step, []

def training_step(self, model, inputs, *more):
    calls.append(1)
    if len(calls) == 3:  # a step that needs 1000 times the memory, of which there is no more than 32 MB
        inputs = {name: value.repeat(1000, 1) for name, value in inputs.items()}
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 2**25
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return real(self, model, inputs, *more)

trl_plus.SimPOTrainer.training_step = training_step
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
def test_no_memory(recipe):
    """In a process of its own, since what it may use cannot be given back."""
    command = [sys.executable, "-c", NO_MEMORY, "train", "r.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, text
    assert "Traceback" not in text
    assert "Out of memory. The last complete checkpoint is out/checkpoint-2." in text
    assert "per_device_train_batch_size=2 gradient_accumulation_steps=" in text
    assert files.problem_of(recipe / "out" / "checkpoint-2") is None


def test_a_packed_file_is_refused_with_the_cure(tmp_path):
    """Whole or cut: it is not read at all."""
    packed = gzip.compress(b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 9)
    for number, data in enumerate((packed, packed[: len(packed) // 2])):
        path = tmp_path / f"{number}.jsonl.gz"
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"is no dataset: unpack it, for its name must end in \.jsonl"):
            load(DataRequest(paired_method=True, name=str(path)))
