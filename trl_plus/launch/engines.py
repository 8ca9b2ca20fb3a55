"""The accelerate configurations that `--accelerate-config` names: a file, one of TRL's, or one of ours."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.recipes.package_data import recipes_folder
from trl_plus.recipes.yaml_text import read_file

# Tables of a configuration: what starts them, the prefix that accelerate gives to their keys
_TABLES = {
    "fsdp_config": ("FSDP", "fsdp_"),
    "deepspeed_config": ("DEEPSPEED", ""),
    "dynamo_config": (None, "dynamo_"),
    "fp8_config": (None, "fp8_"),
}
_UNSUPPORTED = ("parallelism_config", "megatron_lm_config", "mpirun_config")


def shipped_engines() -> dict[str, Path]:
    """Our configurations by the name they are asked for with: `engines/ddp`, `engines/fsdp2`, `engines/zero3`."""
    return {f"engines/{path.stem}": path for path in sorted((recipes_folder() / "engines").glob("*.yaml"))}


def trl_configurations() -> dict[str, Path]:
    """TRL's accelerate configurations by name, found without importing TRL."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        raise RecipeError("TRL is not installed: pip install trl.")
    return {path.stem: path for path in (Path(spec.origin).parent / "accelerate_configs").glob("*.yaml")}


def config_file(name: str) -> Path:
    """The file of a configuration: a path first, then TRL's name (`zero3`), then ours (`engines/zero3`, or `ddp`).

    Raises:
        RecipeError: it is none of them.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    ours, theirs = shipped_engines(), trl_configurations()
    stem = name.removesuffix(".yaml").removeprefix("recipes/")
    for found in (theirs.get(stem), ours.get(stem), ours.get(f"engines/{stem}")):
        if found is not None:
            return found
    raise RecipeError(
        f"--accelerate-config: {name} is neither a file nor a known configuration; ours are {', '.join(ours)}, "
        f"TRL's are {', '.join(sorted(theirs))}."
    )


def read_config(path: Path, label: str) -> dict[str, Any]:
    """The values of a configuration, checked by accelerate's own class. TRL's files write 8 processes and bf16 as
    placeholders: there the number is left open (None: all GPUs) and the recipe decides the precision.

    Raises:
        RecipeError: it is not YAML, accelerate refuses it, or one of its keys would have no effect.
    """
    written = read_file(path, label).values
    from accelerate.commands.config.config_args import ClusterConfig

    try:
        values = vars(ClusterConfig.from_yaml_file(str(path)))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{label} is not a configuration of accelerate: {error}") from error
    values = values | {"distributed_type": values["distributed_type"].value, "compute_environment": None}
    if written.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        raise RecipeError(
            f"{label}: `compute_environment` must be LOCAL_MACHINE: start others with their own launcher."
        )
    _refuse_keys_without_effect(values, label)
    theirs = path in trl_configurations().values()
    if theirs or values["num_processes"] == -1:
        values["num_processes"] = None
    if theirs:
        values["mixed_precision"] = None
    return values


def launcher_arguments(values: Mapping[str, Any]) -> Any:
    """A configuration as the namespace that accelerate's launcher works on."""
    from accelerate.commands.launch import launch_command_parser

    arguments = launch_command_parser().parse_args(["trl_plus"])
    for table, (_, prefix) in _TABLES.items():
        for key, value in values.get(table, {}).items():
            setattr(arguments, _prefixed(key, prefix), value)
    for name in ("debug", "gpu_ids", "enable_cpu_affinity"):
        setattr(arguments, name, values.get(name))
    arguments.use_fsdp = values["distributed_type"] == "FSDP"
    arguments.use_deepspeed = values["distributed_type"] == "DEEPSPEED"
    arguments.deepspeed_fields_from_accelerate_config = ",".join(values.get("deepspeed_config") or ())
    arguments.mixed_precision = "no"  # the recipe decides; `request.decide` refuses a configuration that disagrees
    arguments.dynamo_backend = arguments.dynamo_backend or "no"
    return arguments


def _prefixed(key: str, prefix: str) -> str:
    return key if key.startswith(prefix) else prefix + key


def _refuse_keys_without_effect(values: Mapping[str, Any], label: str) -> None:
    """accelerate sets any nested key, known or not, and ignores tables of an engine that is not started."""
    from accelerate.commands.launch import launch_command_parser

    known = vars(launch_command_parser().parse_args(["trl_plus"]))
    for table in _UNSUPPORTED:
        if values.get(table):
            raise RecipeError(f"{label}: `{table}` is not supported: remove it.")
    for table, (engine, prefix) in _TABLES.items():
        if values.get(table) and engine not in (None, values["distributed_type"]):
            raise RecipeError(
                f"{label}: `{table}` has no effect under `distributed_type: {values['distributed_type']}`: "
                f"write `distributed_type: {engine}`, or remove it."
            )
        unknown = [key for key in values.get(table) or {} if _prefixed(key, prefix) not in known]
        if unknown:
            raise RecipeError(f"{label}: accelerate has no key `{unknown[0]}` in `{table}`: correct or remove it.")
