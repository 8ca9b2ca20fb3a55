"""SIGTERM, Ctrl-C and a closed terminal, one process and two: the step is finished, saved, exit 130, and resumed.

A second run into the same folder is refused and disturbs nothing.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from trl_plus.runs.checkpoint_files import problem_of

STEPS = 2000  # far more than are made before the signal


@pytest.fixture
def recipe(tmp_path, tiny_model_dir, pair_rows):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(16)))
    keys = {
        "method": "simpo", "model_name_or_path": tiny_model_dir, "dataset_name": "./rows.jsonl", "output_dir": "out",
        "per_device_train_batch_size": 2, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "max_steps": STEPS,
        "logging_steps": 1, "save_strategy": "no", "use_peft": True, "lora_r": 4, "gradient_checkpointing": False,
        "use_cpu": True, "disable_tqdm": True, "report_generations": 0,
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
    return tmp_path


def command(*words):
    return [sys.executable, "-m", "trl_plus.cli", "train", "r.yaml", *words]


@pytest.mark.parametrize(
    "number, words",
    [
        pytest.param(signal.SIGTERM, (), marks=pytest.mark.slow),  # each of the others differs from it in one thing
        (signal.SIGINT, ()),
        (signal.SIGTERM, ("--num-processes", "2")),
    ],
    ids=["SIGTERM", "Ctrl-C", "SIGTERM to two processes"],
)
def test_a_signal_saves_and_resume_goes_on(number, words, recipe):
    log = recipe / "out" / "metrics.jsonl"
    run = subprocess.Popen(command(*words), cwd=recipe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    while run.poll() is None and time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.1)
    second = subprocess.run(command(), cwd=recipe, capture_output=True, text=True, timeout=120)
    assert second.returncode == 2, second.stderr[-2000:]
    assert second.stderr.startswith("error: `output_dir`: another run is training in out (process ")
    run.send_signal(number)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 130, said
    (checkpoint,) = (recipe / "out").glob("checkpoint-*")
    assert problem_of(checkpoint) is None
    step = int(re.search(r"\d+$", checkpoint.name).group())
    assert 2 < step < STEPS
    assert f"Stopped at step {step}" in said
    assert "--resume" in said

    goes_on = [*command(*words), "--resume", "--force", f"max_steps={step + 2}"]
    done = subprocess.run(goes_on, cwd=recipe, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, step + 3))


def own_terminal():
    """In a new process: its standard input becomes the terminal it belongs to, as in a window of its own."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_closed_terminal_ends_all_processes_with_a_checkpoint(recipe):
    """Neither process is left running, and writing to the terminal that is gone stops no save."""
    log, (terminal, inside) = recipe / "out" / "metrics.jsonl", pty.openpty()
    run = subprocess.Popen(
        command("--num-processes", "2"), cwd=recipe, stdin=inside, stdout=inside, stderr=inside,
        start_new_session=True, preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(inside)
    deadline, said = time.monotonic() + 200, b""
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 2):
        assert run.poll() is None, said
        if select.select([terminal], [], [], 0.1)[0]:
            said += os.read(terminal, 4096)
    os.close(terminal)
    assert run.wait(120) == 130
    (checkpoint,) = (recipe / "out").glob("checkpoint-*")
    assert problem_of(checkpoint) is None
    assert len(list(checkpoint.glob("rng_state_*.pth"))) == 2
