"""Output that nobody reads any more: the command ends as it would have, and what it saves is saved."""

import os
import subprocess
import sys

import pytest

WRITES = """
import os, sys
from trl_plus.cli.streams import outlive_readers
outlive_readers()
for stream in (sys.stdout, sys.stderr):
    for line in range(3):
        print("x" * 70_000, "é", file=stream, flush=True)
os.write(1, b"through the descriptor")
print("the last", file=sys.__stderr__)
open("done", "w").close()
sys.exit(7)
"""


def start(words, folder, closed, **environment):
    """A process whose streams in `closed` lose their reader before anything was written."""
    pipes = {name: os.pipe() for name in closed}
    ends = {name: end for name, (_, end) in pipes.items()}
    environment = {**os.environ, **environment}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment, **{"stdout": subprocess.DEVNULL, **ends}
    )
    for pair in pipes.values():
        for end in pair:
            os.close(end)
    return process


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_no_write_fails(unbuffered, tmp_path):
    process = start(["-c", WRITES], tmp_path, ("stdout", "stderr"), PYTHONUNBUFFERED=unbuffered)
    assert process.wait(timeout=60) == 7
    assert (tmp_path / "done").exists()


def test_a_reader_that_stays_reads_everything(tmp_path):
    words = [sys.executable, "-c", WRITES]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == ("x" * 70_000 + " é\n") * 3 + "through the descriptor"
    assert done.stderr == ("x" * 70_000 + " é\n") * 3 + "the last\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "trl_plus.cli", "schema"]
        done = subprocess.run(words, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0


def test_training_is_saved_without_readers(tmp_path):
    words = ["-m", "trl_plus.cli", "train", "quickstart", "max_steps=1", "report_generations=1", "output_dir=out"]
    process = start([*words, "max_eval_rows=4", "save_strategy=no"], tmp_path, ("stdout", "stderr"))
    assert process.wait(timeout=200) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert '"outcome": "finished"' in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()[-1]
