"""`--accelerate-config`: run the same command in several processes, started by accelerate."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trl_plus.recipes.errors import RecipeError
from trl_plus.recipes.yaml_text import read_file

_LAUNCHER_VARIABLES = ("LOCAL_RANK", "RANK", "WORLD_SIZE")


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (accelerate, torchrun) started this process."""
    return any(name in environment for name in _LAUNCHER_VARIABLES)


def config_file(name: str) -> Path:
    """The file of an accelerate configuration: a path, or the name of one that TRL ships.

    Raises:
        RecipeError: it is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = _trl_configs()
    if name not in shipped:
        raise RecipeError(
            f"--accelerate-config: {name} is neither a file nor one of TRL's configurations, which are "
            f"{', '.join(sorted(shipped))}."
        )
    return shipped[name]


def process_count(path: Path) -> int:
    """The number of processes a configuration starts. TRL's own say 8: all GPUs of this machine are meant.

    A file of the user's is taken at its word.
    """
    written = int(read_file(path, str(path)).values.get("num_processes", 1))
    if written > 1 and path in _trl_configs().values():
        import torch

        return torch.cuda.device_count() or written
    return written


def launch(config: str, recipe: str, overrides: Sequence[str], resume: str | None) -> int:
    """Run `trl-plus train` under accelerate; gives the exit code: 0, or 1 if a process failed."""
    path = config_file(config)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    command += ["--num_processes", str(process_count(path)), "-m", "trl_plus.cli", "train", recipe, *overrides]
    if resume is not None:
        command.append(f"--resume={resume}")
    return 0 if subprocess.run(command, check=False).returncode == 0 else 1


def _trl_configs() -> dict[str, Path]:
    """TRL's accelerate configurations by name, found without importing TRL."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        raise RecipeError("TRL is not installed: pip install trl.")
    return {path.stem: path for path in (Path(spec.origin).parent / "accelerate_configs").glob("*.yaml")}
