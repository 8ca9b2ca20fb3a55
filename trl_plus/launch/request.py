"""In a started process: is it what was asked for? Checked from the environment, and again when accelerate is up."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.launch.engines import config_file, read_config

PROCESSES, ENGINE = "TRL_PLUS_EXPECTED_PROCESSES", "TRL_PLUS_EXPECTED_ENGINE"


@dataclass(frozen=True)
class Asked:
    """What the run must be. None: nothing was said about it.

    Attributes:
        engine: "ddp", "fsdp" or "deepspeed".
    """

    processes: int | None = None
    engine: str | None = None


def asked_of(config: str | None, num_processes: int | None, environment: Mapping[str, str] = os.environ) -> Asked:
    """What the options, or the process that started this one, ask for; at least every process that was started.

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
    asked = Asked(int(count or started or 1), engine)
    _compare(asked, int(started or 1), flagged)
    if flagged != "ddp":
        _refuse_cpu(flagged)
    return asked


def check_started(asked: Asked | None, accelerator: Any) -> None:
    """Refuse to train when accelerate made something else of it.

    Raises:
        RecipeError: fewer (or more) processes, or another engine.
    """
    if asked is not None:
        name = accelerator.distributed_type.value
        _compare(asked, accelerator.num_processes, {"FSDP": "fsdp", "DEEPSPEED": "deepspeed"}.get(name, "ddp"))


def _compare(asked: Asked, processes: int, engine: str) -> None:
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
    """Another launcher's engine where there is no GPU: accelerate would fail later, or make DDP of it."""
    from trl_plus.launch.decision import this_machine

    if not this_machine().gpus:
        raise RecipeError(
            f"The launcher asks for {engine}, which accelerate runs on GPUs only, and no GPU is found: leave the "
            "launcher out and give `--num-processes N` alone for DDP on CPUs, or run it where the GPUs are."
        )


def _words_of_parent() -> list[str]:
    """The command line of the process that started this one; empty where the system has no /proc."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []


def _told_accelerate(words: Sequence[str]) -> int | None:
    """N of `accelerate launch --num_processes N`, which starts one process in silence under `--cpu`.

    It tells that process nothing of N, so its own command line is read.
    """
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes" and (value or following).isdecimal():
            return int(value or following)
    return None


def _flag(environment: Mapping[str, str], engine: str) -> bool:
    return environment.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"
