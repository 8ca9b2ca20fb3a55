"""`--num-processes` and `--accelerate-config`: what is started, and what is refused since it would be less or other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trl_plus.errors import RecipeError
from trl_plus.launch import processes
from trl_plus.launch.engines import config_file, launcher_arguments, read_config, shipped_engines, trl_configurations
from trl_plus.launch.request import (
    Launch,
    LaunchRequest,
    Machine,
    check_started,
    child_command,
    decide,
    is_main_process,
    launch_request,
    read_launch,
)
from trl_plus.recipes.package_data import recipe_names
from trl_plus.recipes.recipe import load_recipe

CPU, GPUS = Machine(0), Machine(4, bf16=True, deepspeed=True)
PLAIN = {"use_cpu": False, "bf16": None, "fp16": False}
MULTI = {"distributed_type": "MULTI_GPU", "num_processes": None}
TWO = {"num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": 29500}
DS = {"distributed_type": "DEEPSPEED", "num_processes": None, "deepspeed_config": {"zero_stage": 3}}
ALONE = {"distributed_type": "CPU_OR_GPU"}


@pytest.mark.parametrize(
    "environment, main",
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1"}, False),
        ({"OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"PMI_RANK": "2"}, False),
        ({"RANK": "0", "PMI_RANK": "2"}, True),
    ],
)
def test_one_process_prints_and_writes_whatever_launcher_numbers_them(environment, main):
    assert is_main_process(environment) is main


@pytest.mark.parametrize(
    "values, recipe, machine, engine, count, cpu",
    [
        (ALONE | {"num_processes": 2}, {}, CPU, "ddp", 2, True),
        (ALONE | {"num_processes": 2}, {}, GPUS, "ddp", 2, False),
        (ALONE | {"num_processes": 9}, {"use_cpu": True}, GPUS, "ddp", 9, True),
        ({"distributed_type": "MULTI_CPU", "num_processes": 3}, {}, CPU, "ddp", 3, True),
        (MULTI, {}, GPUS, "ddp", 4, False),
        (MULTI | TWO, {}, GPUS, "ddp", 8, False),
        (MULTI | {"gpu_ids": "0,2"}, {}, GPUS, "ddp", 2, False),
        (MULTI | {"distributed_type": "FSDP"}, {}, GPUS, "fsdp", 4, False),
        (DS, {}, GPUS, "deepspeed", 4, False),
        (MULTI | {"distributed_type": "NO"}, {}, GPUS, "ddp", 1, False),
        (MULTI | {"mixed_precision": "bf16"}, {}, GPUS, "ddp", 4, False),
    ],
)
def test_what_is_started(values, recipe, machine, engine, count, cpu):
    launch = decide(values, PLAIN | recipe, machine, "it")
    assert (launch.engine, launch.processes, launch.cpu) == (engine, count, cpu)


@pytest.mark.parametrize(
    "values, recipe, machine, message",
    [
        (MULTI, {}, CPU, "no GPU is found"),
        (MULTI, {"use_cpu": True}, GPUS, "use_cpu: true"),
        (MULTI | {"distributed_type": "FSDP"}, {}, CPU, "--num-processes N` alone"),
        (MULTI | {"distributed_type": "FSDP", "use_cpu": True}, {}, CPU, "accelerate runs FSDP on GPUs only"),
        (DS | {"use_cpu": True}, {}, CPU, "accelerate runs DEEPSPEED on GPUs only"),
        (DS, {}, Machine(4), "pip install deepspeed"),
        (DS | TWO, {}, GPUS, "deepspeed_multinode_launcher: standard"),
        (MULTI | {"num_processes": 5}, {}, GPUS, "--num-processes 4"),
        (MULTI | {"num_processes": 3, "gpu_ids": "0,2"}, {}, GPUS, "--num-processes 2"),
        (MULTI | TWO | {"num_processes": 5}, {}, GPUS, "multiple of 2"),
        (MULTI | TWO | {"machine_rank": 2}, {}, GPUS, "from 0 to 1"),
        (MULTI | {"machine_rank": 1}, {}, GPUS, "set `num_machines`"),
        (MULTI | TWO | {"main_process_ip": None}, {}, GPUS, "TRL_PLUS_MAIN_PROCESS_IP"),
        (MULTI | TWO | {"main_process_port": None}, {}, GPUS, "main_process_port"),
        (MULTI | {"distributed_type": "NO", "num_processes": 2}, {}, GPUS, "runs one process"),
        ({"distributed_type": "MULTI_CPU", "num_processes": 2}, {}, GPUS, "set `use_cpu: true`"),
        ({"distributed_type": "MULTI_CPU", "num_processes": None}, {}, CPU, "add `--num-processes N`"),
        ({"distributed_type": "XLA", "num_processes": 2}, {}, GPUS, "not supported"),
        (MULTI | {"mixed_precision": "bf16"}, {"bf16": False}, GPUS, "bf16: true"),
        (MULTI | {"mixed_precision": "fp16"}, {}, GPUS, "fp16: true"),
        (ALONE | {"num_processes": 0}, {}, CPU, "1 or more"),
    ],
)
def test_what_is_refused(values, recipe, machine, message):
    with pytest.raises(RecipeError, match=message):
        decide(values, PLAIN | recipe, machine, "it")


def test_the_environment_of_a_machine(write):
    names = {"NUM_MACHINES": "2", "MACHINE_RANK": "1", "MAIN_PROCESS_IP": "h", "MAIN_PROCESS_PORT": "1234"}
    environment = {f"TRL_PLUS_{name}": value for name, value in names.items()}
    launch = read_launch(load_recipe(write()), None, 4, CPU, environment)
    assert (launch.machines, launch.machine_rank, launch.local_processes) == (2, 1, 2)
    assert (launch.address, launch.port) == ("h", 1234)
    with pytest.raises(RecipeError, match="whole number"):
        read_launch(load_recipe(write()), None, 4, CPU, environment | {"TRL_PLUS_MACHINE_RANK": "a"})


def test_num_processes_overrides_the_file(write, tmp_path):
    (tmp_path / "a.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    assert read_launch(load_recipe(write()), str(tmp_path / "a.yaml"), 3, CPU, {}).processes == 3


def test_words_of_a_process():
    launch = Launch("ddp", 2, cpu=True)
    assert child_command(launch, ["r"], use_cpu=False) == ["r", "use_cpu=true"]
    assert child_command(launch, ["r"], use_cpu=True) == ["r"]


# -- in a started process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, count, environment, message",
    [
        (None, 4, {"WORLD_SIZE": "2"}, "4 processes were asked for, but 2"),
        (None, None, {"TRL_PLUS_EXPECTED_PROCESSES": "2"}, "2 processes were asked for, but 1"),
        ("fsdp2", None, {"WORLD_SIZE": "2"}, "fsdp was asked for, but ddp"),
        ("zero3", None, {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "deepspeed was asked for, but fsdp"),
        ("ddp", None, {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "ddp was asked for, but fsdp"),
    ],
)
def test_another_launcher_is_checked(config, count, environment, message):
    with pytest.raises(RecipeError, match=message):
        launch_request(config, count, environment)


def test_what_accelerate_leaves_out_in_silence(monkeypatch):
    """`accelerate launch --cpu` starts one process whatever is asked for, and makes FSDP to DDP."""
    start = "import sys; from trl_plus.cli import main; sys.argv[1:] = ['train', 'quickstart']; main()"
    for words in (["--num_processes", "2"], ["--num_processes=3"]):
        script = ["/bin/sh", "-c", f'{sys.executable} -c "{start}"; exit $?', *words]  # accelerate's place
        environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
        environment["ACCELERATE_MIXED_PRECISION"] = "no"
        done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert f"{words[-1][-1]} processes were asked for, but 1 would run" in done.stderr
    from types import SimpleNamespace

    from accelerate.utils import DistributedType

    environment = {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
    monkeypatch.setattr("trl_plus.launch.request.this_machine", lambda: CPU)
    with pytest.raises(RecipeError, match="fsdp, which accelerate runs on GPUs only"):
        launch_request(None, None, environment)
    monkeypatch.setattr("trl_plus.launch.request.this_machine", lambda: GPUS)
    asked = launch_request(None, None, environment)
    with pytest.raises(RecipeError, match="fsdp was asked for, but ddp would run"):
        check_started(asked, SimpleNamespace(num_processes=2, distributed_type=DistributedType.MULTI_CPU))


def test_what_accelerate_made_of_it_is_checked():
    from types import SimpleNamespace

    from accelerate.utils import DistributedType

    asked = launch_request(None, None, {"WORLD_SIZE": "2"})
    assert asked == LaunchRequest(2, None)
    one = SimpleNamespace(num_processes=1, distributed_type=DistributedType.NO)
    two = SimpleNamespace(num_processes=2, distributed_type=DistributedType.MULTI_CPU)
    check_started(asked, two)
    with pytest.raises(RecipeError, match="but 1 would run"):
        check_started(asked, one)
    with pytest.raises(RecipeError, match="fsdp was asked for"):
        check_started(LaunchRequest(2, "fsdp"), two)


# -- configurations -------------------------------------------------------------------------------------------------


def test_names():
    assert set(shipped_engines()) == {"engines/ddp", "engines/fsdp2", "engines/zero3"}
    assert config_file("zero3") == trl_configurations()["zero3"]
    assert config_file("ddp") == config_file("engines/ddp")
    copied = Path(__file__).parents[2] / "recipes" / "engines" / "ddp.yaml"  # a path is itself, the package's or not
    assert config_file(str(copied)) == copied
    assert copied.read_text() == config_file("ddp").read_text()
    assert not [name for name in recipe_names() if "engine" in name or name in ("ddp", "fsdp2", "zero3")]


@pytest.mark.parametrize("name", [*shipped_engines(), *trl_configurations()])
def test_configuration_is_accelerates(name):
    values = read_config(config_file(name), name)
    assert values["num_processes"] is None
    launcher_arguments(values)


@pytest.mark.parametrize("name, engine", [("engines/fsdp2", "fsdp"), ("engines/zero3", "deepspeed")])
def test_plugin(name, engine, monkeypatch):
    """accelerate's plugin, made from the environment that the processes get."""
    launch = Launch(engine, 2, cpu=False, config=read_config(config_file(name), name))
    environment = processes.environment_of(launch)
    for key in [key for key in environment if key.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.setenv(key, environment[key])
    assert environment["WORLD_SIZE"] == environment["TRL_PLUS_EXPECTED_PROCESSES"] == "2"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    if engine == "fsdp":
        from accelerate.utils import FullyShardedDataParallelPlugin

        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward is True
        assert plugin.cpu_ram_efficient_loading
        assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    else:  # the plugin itself needs DeepSpeed
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"


@pytest.mark.parametrize(
    "text, message",
    [
        ("distributed_type: MULTI_GPU\nnum_proceses: 2\n", "num_proceses"),
        ("distributed_type: FSDP\nfsdp_config:\n  fsdp_reshard: true\n", "fsdp_reshard"),
        ("distributed_type: MULTI_GPU\nfsdp_config:\n  fsdp_version: 2\n", "no effect"),
        ("distributed_type: MULTI_GPU\nparallelism_config:\n  tp_size: 2\n", "parallelism_config"),
        ("distributed_type: WRONG\n", "WRONG"),
        ("num_processes: 2\n", "distributed_type"),
    ],
)
def test_a_key_without_effect_is_refused(text, message, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_config(path, "a.yaml")


# -- signals and exit codes -----------------------------------------------------------------------------------------

PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup
from trl_plus.launch import processes
from trl_plus.launch.request import Launch
processes.environment_of = lambda launch: __import__("os").environ.copy()
processes._GRACE = 1.0
popen = subprocess.Popen
processes.subprocess.Popen = lambda command, **more: popen([sys.executable, "-c", sys.argv[1]], **more)
launch = eval(sys.argv[2]) if sys.argv[2:] else Launch("ddp", 2, cpu=True)
print("exit", processes.start(launch, []), flush=True)
"""
SLOW_SAVE = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(1 + int(os.environ["RANK"])); os.write(1, b"saved\\n"); sys.exit(130)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stop)
os.write(1, b"ready\\n")  # one write: two children share the pipe
time.sleep(60)
"""


@pytest.mark.parametrize(
    "child, code",
    [
        ("pass", 0),
        ("import os, sys, time; sys.exit(2) if os.environ['RANK'] == '1' else time.sleep(60)", 2),
        ("import os, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '0' else time.sleep(60)", 1),
        ("import signal, time; signal.signal(15, signal.SIG_IGN)\nimport os\n"
         "os.environ['RANK'] == '1' and exit(3)\ntime.sleep(60)", 3),
    ],
)  # fmt: skip
def test_exit_code(child, code):
    done = subprocess.run([sys.executable, "-c", PARENT, child], capture_output=True, text=True, timeout=60)
    assert f"exit {code}" in done.stdout, done.stderr


def test_ranks_of_the_second_machine():
    # One write: two children share the pipe, and print would make several
    child = "import os; os.write(1, ' '.join(('rank', os.environ['RANK'], os.environ['LOCAL_RANK'], '\\n')).encode())"
    command = [sys.executable, "-c", PARENT, child, 'Launch("ddp", 4, cpu=True, machines=2, machine_rank=1)']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert sorted(line for line in done.stdout.split("\n") if "rank" in line) == ["rank 2 0 ", "rank 3 1 "], done.stderr


WATCHING = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(0.2); os.write(1, b"saved\\n"); sys.exit(130)
signal.signal(signal.SIGTERM, stop)
from trl_plus.launch.processes import end_with_parent
end_with_parent()
os.write(1, b"ready\\n")
time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="descriptors are passed on POSIX only")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_a_lost_parent_leaves_nothing_running(number):
    """The pipe of their output closes when the last of them has ended."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, WATCHING], stdout=subprocess.PIPE, text=True)
    assert [parent.stdout.readline().strip() for _ in range(2)] == ["ready", "ready"]
    parent.send_signal(number)
    out, _ = parent.communicate(timeout=30)
    assert out.split() == ["saved", "saved"]
    assert parent.returncode == -number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_waited_for(number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, SLOW_SAVE], stdout=subprocess.PIPE, text=True)
    assert [parent.stdout.readline().strip() for _ in range(2)] == ["ready", "ready"]
    started = time.monotonic()
    parent.send_signal(number)
    out, _ = parent.communicate(timeout=60)
    assert out.split("\n")[:3] == ["saved", "saved", "exit 130"]
    assert time.monotonic() - started >= 2  # longer than the time a failure leaves
