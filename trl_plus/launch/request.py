"""`--num-processes` and `--accelerate-config`: decide what to start, and check that it was started.

A run has neither fewer processes nor another engine than asked for: `decide` refuses before the launch, and
`launch_request` and `check_started` in every process after it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.launch.engines import config_file, read_config
from trl_plus.recipes.recipe import Recipe

PROCESSES, ENGINE = "TRL_PLUS_EXPECTED_PROCESSES", "TRL_PLUS_EXPECTED_ENGINE"


# What launchers number their processes with; the last two are MPI's
_LAUNCHER_VARIABLES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")  # in the order in which accelerate reads them
# Values of the configuration that differ between machines that run the same command with the same file
_MACHINE_VARIABLES = {
    "num_machines": "TRL_PLUS_NUM_MACHINES",
    "machine_rank": "TRL_PLUS_MACHINE_RANK",
    "main_process_ip": "TRL_PLUS_MAIN_PROCESS_IP",
    "main_process_port": "TRL_PLUS_MAIN_PROCESS_PORT",
}
_ENGINES = {"FSDP": "fsdp", "DEEPSPEED": "deepspeed", "NO": "ddp"}


@dataclass(frozen=True)
class Machine:
    """The facts of this machine that `decide` uses.

    Attributes:
        gpus: GPUs that this process sees.
        bf16: whether they compute in bfloat16.
        deepspeed: whether DeepSpeed is installed.
    """

    gpus: int
    bf16: bool = False
    deepspeed: bool = False


@dataclass(frozen=True)
class Launch:
    """The processes to start.

    Attributes:
        engine: "ddp", "fsdp" or "deepspeed".
        processes: over all machines.
        cpu: whether the processes compute on CPUs.
        address, port: of the machine with rank 0; None on one machine.
        config: the accelerate configuration's values.
    """

    engine: str
    processes: int
    cpu: bool
    machines: int = 1
    machine_rank: int = 0
    address: str | None = None
    port: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def local_processes(self) -> int:
        """Processes of this machine."""
        return self.processes // self.machines


def launched() -> bool:
    """True if a launcher (trl-plus, accelerate, torchrun, MPI) started this process."""
    return any(name in os.environ for name in _LAUNCHER_VARIABLES)


def is_main_process(environment: Mapping[str, str] = os.environ) -> bool:
    """True for the process that prints and writes, as launchers number them."""
    return next((environment[name] for name in _RANKS if name in environment), "0") == "0"


def this_machine() -> Machine:
    """The facts of this machine. Imports torch."""
    import importlib.util

    import torch
    from transformers.utils import is_torch_bf16_gpu_available

    # torch 2.6 raises, a newer one returns None
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    gpus = 0 if kind is None or kind.type in ("cpu", "mps") else torch.accelerator.device_count()
    deepspeed = importlib.util.find_spec("deepspeed") is not None
    return Machine(gpus, gpus > 0 and is_torch_bf16_gpu_available(), deepspeed)


def read_launch(
    recipe: Recipe,
    config: str | None,
    num_processes: int | None,
    machine: Machine,
    environment: Mapping[str, str] = os.environ,
) -> Launch:
    """Read the launch that a command line asks for.

    Raises:
        RecipeError: it is contradictory, or this machine cannot do it.
    """
    values: dict[str, Any] = (
        {"distributed_type": "CPU_OR_GPU"} if config is None else read_config(config_file(config), config)
    )
    label = "--num-processes" if config is None else f"--accelerate-config {config}"
    if num_processes is not None:
        values["num_processes"] = num_processes
    for name, variable in _MACHINE_VARIABLES.items():
        if variable in environment:
            values[name] = environment[variable] if name == "main_process_ip" else _number(variable, environment)
    precision = {name: recipe[name] for name in ("use_cpu", "bf16", "fp16")}
    return decide(values, precision, machine, label)


def decide(values: Mapping[str, Any], recipe: Mapping[str, Any], machine: Machine, label: str) -> Launch:
    """Decide what is started: a pure function of a configuration, the recipe and the machine.

    Args:
        values: the configuration's values; `num_processes` None stands for all GPUs.
        recipe: `use_cpu`, `bf16` and `fp16` of the recipe.
        label: the option that asked for it, as messages name it.

    Raises:
        RecipeError: fewer processes, another engine, device or precision would be run than asked for.
    """
    kind = str(values["distributed_type"])
    engine = _ENGINES.get(kind, "ddp" if kind.startswith("MULTI_") or kind == "CPU_OR_GPU" else None)
    if engine is None:
        raise RecipeError(
            f"{label}: `distributed_type: {kind}` is not supported: use MULTI_GPU, MULTI_CPU, FSDP or DEEPSPEED."
        )
    cpu = _on_cpu(kind, values, recipe, machine, label)
    machines = values.get("num_machines") or 1
    gpus = _visible(values, machine)
    processes = values.get("num_processes")
    if processes is None:
        if cpu:
            raise RecipeError(f"{label}: the number of processes is missing: add `--num-processes N`.")
        processes = 1 if kind == "NO" else gpus * machines
    launch = Launch(
        engine, processes, cpu, machines, values.get("machine_rank") or 0,
        values.get("main_process_ip"), values.get("main_process_port"), values,
    )  # fmt: skip
    _check_counts(launch, kind, gpus, label)
    _check_machines(launch, label)
    _check_engine(launch, values, machine, label)
    _check_precision(values, recipe, machine, cpu, label)
    return launch


def child_command(launch: Launch, words: Sequence[str], use_cpu: bool) -> list[str]:
    """The words of each process. Without a GPU accelerate would run one process N times unless `use_cpu` is set."""
    return [*words, "use_cpu=true"] if launch.cpu and not use_cpu else list(words)


def _on_cpu(kind: str, values: Mapping[str, Any], recipe: Mapping[str, Any], machine: Machine, label: str) -> bool:
    cpu_asked = kind == "MULTI_CPU" or bool(values.get("use_cpu"))
    cpu = bool(recipe["use_cpu"]) or machine.gpus == 0
    if cpu_asked and not cpu:
        raise RecipeError(f"{label} asks for CPUs, but the run would use the GPUs: set `use_cpu: true` in the recipe.")
    if cpu and not cpu_asked and kind not in ("CPU_OR_GPU", "NO"):
        why = "the recipe sets `use_cpu: true`" if recipe["use_cpu"] else "no GPU is found on this machine"
        raise RecipeError(
            f"{label} asks for GPUs (`distributed_type: {kind}`), but {why}: give `--num-processes N` alone for DDP on "
            "CPUs, or run it where the GPUs are."
        )
    if cpu and kind in ("FSDP", "DEEPSPEED"):
        raise RecipeError(
            f"{label}: accelerate runs {kind} on GPUs only: give `--num-processes N` alone for DDP on CPUs."
        )
    return cpu


def _visible(values: Mapping[str, Any], machine: Machine) -> int:
    """GPUs that the processes will see: `gpu_ids` may name fewer than there are."""
    ids = values.get("gpu_ids")
    return machine.gpus if ids in (None, "all") else min(machine.gpus, len(str(ids).split(",")))


def _check_counts(launch: Launch, kind: str, gpus: int, label: str) -> None:
    processes, machines = launch.processes, launch.machines
    if processes < 1 or machines < 1:
        raise RecipeError(f"{label}: {processes} processes on {machines} machines cannot be started: write 1 or more.")
    if kind == "NO" and processes > 1:
        raise RecipeError(
            f"{label}: `distributed_type: NO` runs one process, but {processes} are asked for: write MULTI_GPU "
            "or MULTI_CPU."
        )
    if processes % machines:
        raise RecipeError(
            f"{label}: {processes} processes cannot be shared evenly by {machines} machines: `num_processes` is the "
            f"total, so write a multiple of {machines}."
        )
    if not launch.cpu and launch.local_processes > gpus:
        raise RecipeError(
            f"{label}: {launch.local_processes} processes on this machine need as many GPUs, but {gpus} "
            f"{'is' if gpus == 1 else 'are'} visible: write `--num-processes {max(1, gpus) * machines}`, or set "
            "`use_cpu: true`."
        )


def _check_machines(launch: Launch, label: str) -> None:
    if launch.machines == 1:
        if launch.machine_rank:
            raise RecipeError(f"{label}: `machine_rank` is {launch.machine_rank} of 1 machine: set `num_machines`.")
        return
    if not 0 <= launch.machine_rank < launch.machines:
        raise RecipeError(
            f"{label}: `machine_rank` is {launch.machine_rank}, but {launch.machines} machines are numbered from 0 to "
            f"{launch.machines - 1}: set it, or {_MACHINE_VARIABLES['machine_rank']}."
        )
    missing = [
        name for name, value in (("main_process_ip", launch.address), ("main_process_port", launch.port)) if not value
    ]
    if missing:
        raise RecipeError(
            f"{label}: {launch.machines} machines find each other at the address of the first: set `{missing[0]}`, or "
            f"{_MACHINE_VARIABLES[missing[0]]}."
        )


def _check_engine(launch: Launch, values: Mapping[str, Any], machine: Machine, label: str) -> None:
    if launch.engine != "deepspeed":
        return
    if not machine.deepspeed:
        raise RecipeError(f"{label}: DeepSpeed is not installed: pip install deepspeed.")
    launcher = (values.get("deepspeed_config") or {}).get("deepspeed_multinode_launcher")
    if launch.machines > 1 and launcher != "standard":
        raise RecipeError(
            f"{label}: every machine runs the same command here: set `deepspeed_multinode_launcher: standard`."
        )


def _check_precision(
    values: Mapping[str, Any], recipe: Mapping[str, Any], machine: Machine, cpu: bool, label: str
) -> None:
    """Refuse a configuration with another precision than the recipe's: it would be silently ignored."""
    asked = values.get("mixed_precision")
    bf16 = recipe["bf16"] if recipe["bf16"] is not None else machine.bf16 and not cpu
    used = "fp16" if recipe["fp16"] else "bf16" if bf16 else "no"
    if asked not in (None, "no", used):
        raise RecipeError(
            f"{label} sets `mixed_precision: {asked}`, but the recipe computes in "
            f"{used if used != 'no' else 'float32'}: set `{asked}: true` in the recipe, or write "
            "`mixed_precision: 'no'`."
        )


def _number(variable: str, environment: Mapping[str, str]) -> int:
    try:
        return int(environment[variable])
    except ValueError:
        raise RecipeError(f"{variable} is {environment[variable]!r}: write a whole number.") from None


# -- in a started process: is it what was asked for? ----------------------------------------------------------------


@dataclass(frozen=True)
class LaunchRequest:
    """Processes and engine that the run must have; None if they were not given.

    Attributes:
        engine: "ddp", "fsdp" or "deepspeed".
    """

    processes: int | None = None
    engine: str | None = None


def launch_request(
    config: str | None, num_processes: int | None, environment: Mapping[str, str] = os.environ
) -> LaunchRequest:
    """The request of the options, or of the process that started this one; at least all processes that were started.

    Raises:
        RecipeError: the environment already shows another number of processes or another engine.
    """
    started = environment.get("WORLD_SIZE") or environment.get("OMPI_COMM_WORLD_SIZE") or environment.get("PMI_SIZE")
    count = num_processes or environment.get(PROCESSES)
    flagged = "fsdp" if _flag(environment, "FSDP") else "deepspeed" if _flag(environment, "DEEPSPEED") else "ddp"
    engine = environment.get(ENGINE) or (flagged if flagged != "ddp" else None)
    if "ACCELERATE_MIXED_PRECISION" in environment and not started:
        count = count or _told_accelerate(_words_of_parent())
    if config is not None:
        values = read_config(config_file(config), config)
        engine = {"FSDP": "fsdp", "DEEPSPEED": "deepspeed"}.get(values["distributed_type"], "ddp")
        count = count or values["num_processes"]
    asked = LaunchRequest(int(count or started or 1), engine)
    _compare(asked, int(started or 1), flagged)
    if flagged != "ddp":
        _refuse_cpu(flagged)
    return asked


def check_started(asked: LaunchRequest | None, accelerator: Any) -> None:
    """Refuse to train when accelerate made something else of it.

    Raises:
        RecipeError: fewer (or more) processes, or another engine.
    """
    if asked is not None:
        name = accelerator.distributed_type.value
        _compare(asked, accelerator.num_processes, {"FSDP": "fsdp", "DEEPSPEED": "deepspeed"}.get(name, "ddp"))


def _compare(asked: LaunchRequest, processes: int, engine: str) -> None:
    if asked.processes not in (None, processes):
        raise RecipeError(
            f"{asked.processes} processes were asked for, but {processes} would run: start all of them with one "
            "launcher (`--num-processes`, or `use_cpu: true` with torchrun on CPUs)."
        )
    if asked.engine not in (None, engine):
        raise RecipeError(
            f"{asked.engine} was asked for, but {engine} would run: leave the launcher out and let trl-plus start the "
            "processes, or give the launcher the same configuration."
        )


def _refuse_cpu(engine: str) -> None:
    """Another launcher's engine if there is no GPU: accelerate would fail later, or make DDP of it."""
    if not this_machine().gpus:
        raise RecipeError(
            f"The launcher asks for {engine}, which accelerate runs on GPUs only, and no GPU is found: leave the "
            "launcher out and give `--num-processes N` alone for DDP on CPUs, or run it where the GPUs are."
        )


def _words_of_parent() -> list[str]:
    """The command line of the process that started this one; empty if the system has no /proc."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []


def _told_accelerate(words: Sequence[str]) -> int | None:
    """N of `accelerate launch --num_processes N`, which silently starts one process under `--cpu`.

    It tells that process nothing of N, so its own command line is read.
    """
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes" and (value or following).isdecimal():
            return int(value or following)
    return None


def _flag(environment: Mapping[str, str], engine: str) -> bool:
    return environment.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"
