"""Two machines, as two network namespaces with a cable between them, make the weights that one process makes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from safetensors.torch import load_file

from tests.conftest import make_pairs
from trl_plus.runs.checkpoint_files import UNFINISHED

IP, PORT = "10.77.0.1", "29511"
LIMIT = 240  # seconds for a run that takes 25 on an idle machine
ADDRESS = {"TRL_PLUS_NUM_MACHINES": "2", "TRL_PLUS_MAIN_PROCESS_IP": IP, "TRL_PLUS_MAIN_PROCESS_PORT": PORT}
CONFIG = f"""
distributed_type: MULTI_CPU
use_cpu: true
num_machines: 2
num_processes: 2
main_process_ip: {IP}
main_process_port: {PORT}
"""


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


def kill(name):
    for process in ip("netns", "pids", name).stdout.split():
        with suppress(ProcessLookupError):  # ended by itself
            os.kill(int(process), signal.SIGKILL)


def remove(names):
    """Ends what runs in these namespaces, and deletes them; their ends of the cable go with them."""
    for name in names:
        kill(name)
        ip("netns", "del", name)


def stale():
    """Namespaces of test runs that were killed: their names hold the process that made them."""
    for name in re.findall(r"^trlplus-\d+-[ab]\b", ip("netns", "list").stdout, re.MULTILINE):
        if not os.path.exists(f"/proc/{name.split('-')[1]}"):
            yield name


@pytest.fixture
def machines():
    """Names of two network namespaces, 10.77.0.1 and 10.77.0.2; skipped where they cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    remove(stale())
    own = os.getpid()
    names, ends = [f"trlplus-{own}-{end}" for end in "ab"], [f"v{own}{end}" for end in "ab"]
    commands = [("netns", "add", name) for name in names]
    commands.append(("link", "add", ends[0], "type", "veth", "peer", "name", ends[1]))
    for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
        commands += [("link", "set", end, "netns", name), ("-n", name, "link", "set", end, "name", "eth0")]
        commands += [("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")]
        commands += [("-n", name, "link", "set", "eth0", "up"), ("-n", name, "link", "set", "lo", "up")]
        commands += [("netns", "exec", name, "true")]
    try:
        for command in commands:
            done = ip(*command)
            if done.returncode != 0:
                pytest.skip(f"network namespaces are not permitted: ip {' '.join(command)}: {done.stderr.strip()}")
        yield names
    finally:
        remove(names)
        ip("link", "del", ends[0])


@pytest.fixture
def recipe(tmp_path, tiny_model_dir):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_pairs(13)))
    values = {
        "method": "simpo", "model_name_or_path": tiny_model_dir, "dataset_name": str(tmp_path / "rows.jsonl"),
        "learning_rate": 0.1, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0, "bf16": False,
        "use_cpu": True, "gradient_checkpointing": False, "save_strategy": "no", "max_steps": 5, "disable_tqdm": True,
        "dtype": "float32", "warmup_steps": 0,
    }  # fmt: skip
    path = tmp_path / "r.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return path


@pytest.fixture
def start(tmp_path, recipe):
    """start(log, words, ...) -> a running `trl-plus train`, which writes to the file `log`."""
    begun = []

    def begin(log, *words, machine=None, **environment):
        command = [sys.executable, "-m", "trl_plus.cli", "train", str(recipe), *words]
        if machine is not None:
            command = ["ip", "netns", "exec", machine, *command]
            environment["GLOO_SOCKET_IFNAME"] = "eth0"  # not what the host's name stands for, which is no address there
        inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        inherited["PYTHONUNBUFFERED"] = "1"
        with (tmp_path / log).open("w") as file:
            begun.append(subprocess.Popen(command, env=inherited | environment, stdout=file, stderr=subprocess.STDOUT))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()  # what it started inside a namespace ends with the namespace
        process.wait()


def numbered(rank):
    return {"TRL_PLUS_MACHINE_RANK": str(rank)}


def test_two_machines_make_the_weights_of_one(machines, start, tmp_path, tiny_model_dir):
    """One machine is told by environment variables what it is part of, the other by a file and its rank."""
    (tmp_path / "two.yaml").write_text(CONFIG)
    words = ("per_device_train_batch_size=2", "save_strategy=steps", "save_steps=2")
    folders = [tmp_path / "two", tmp_path / "two-b"]  # each machine has a disk of its own
    left = folders[1] / UNFINISHED / "checkpoint-2" / "rng_state_7.pth"
    left.parent.mkdir(parents=True)
    left.touch()
    told = [(("--num-processes", "2"), ADDRESS), (("--accelerate-config", str(tmp_path / "two.yaml")), {})]
    several = [
        start(f"{rank}.log", f"output_dir={folder}", *words, *more, machine=name, **environment, **numbered(rank))
        for rank, (folder, name, (more, environment)) in enumerate(zip(folders, machines, told, strict=True))
    ]
    for rank, process in enumerate(several):
        assert process.wait(LIMIT) == 0, (tmp_path / f"{rank}.log").read_text()[-3000:]
    one = start("one.log", f"output_dir={tmp_path / 'one'}", "per_device_train_batch_size=4")
    assert one.wait(LIMIT) == 0, (tmp_path / "one.log").read_text()[-3000:]
    before = load_file(f"{tiny_model_dir}/model.safetensors")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    gap = sum(((first[n] - second[n]).double() ** 2).sum() for n in first) ** 0.5
    size = sum(((first[n] - before[n]).double() ** 2).sum() for n in first) ** 0.5
    assert size > 0
    assert gap / size < 1e-5
    assert [(tmp_path / f"{rank}.log").read_text().count("Saved to") for rank in (0, 1)] == [1, 0]
    for rank, folder in enumerate(folders):  # random states are of their machine; nothing half-written stays
        states = {str(path.relative_to(folder)) for path in folder.rglob("rng_state*")}
        assert states == {f"checkpoint-{step}/rng_state_{rank}.pth" for step in (2, 4, 5)}
        assert not (folder / UNFINISHED).exists()


def test_a_machine_that_is_lost_ends_the_other(machines, start, tmp_path):
    """No process waits for ever for one that is gone, and the exit code says that the run failed."""
    words = (f"output_dir={tmp_path / 'two'}", "per_device_train_batch_size=2", "max_steps=100000")
    several = [
        start(f"{rank}.log", *words, "logging_steps=1", "--num-processes", "2", machine=name,
              **numbered(rank), **ADDRESS)
        for rank, name in enumerate(machines)
    ]  # fmt: skip
    limit = time.monotonic() + LIMIT
    while "'epoch'" not in (tmp_path / "0.log").read_text():
        assert several[0].poll() is None, (tmp_path / "0.log").read_text()[-3000:]
        assert time.monotonic() < limit
        time.sleep(0.5)
    kill(machines[1])
    assert several[0].wait(60) == 1
    said = (tmp_path / "0.log").read_text()
    assert said.count("error: Another process of this run ended or cannot be reached (") == 1, said[-3000:]
    assert "Traceback" not in said
