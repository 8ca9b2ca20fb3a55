"""Find the problems of a recipe: unknown keys, types, ranges, contradictions, missing keys, missing files."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trl_plus.data.files import as_path, looks_like_path, missing_path, split_files
from trl_plus.errors import DataError, RecipeError
from trl_plus.methods import Method
from trl_plus.recipes import package_data
from trl_plus.recipes.conflicts import best_model_problems, contradictions
from trl_plus.recipes.keys import Key, Value, dataset_keys, dataset_model, faults, keys_of, recipe_model
from trl_plus.recipes.options import range_problem
from trl_plus.recipes.unknown_keys import explain, meant, unknown_in_entry

_ADAPTER, _RECIPE = "adapter_config.json", "recipe.resolved.yaml"


def problems(method: Method, entries: Mapping[str, Value], needs_data: bool = True) -> list[str]:
    """Every problem of a recipe, one sentence each, in the order in which to fix them.

    Args:
        needs_data: a dataset that does not exist is a problem.
    """
    values = {name: entry.value for name, entry in entries.items()}
    unknown, wrong = faults(recipe_model(method.name), values)
    found = [f"{entries[name].place}{explain(name, values[name], method)}" for name in unknown]
    found += [f"{entries[name].place}{_wrong_type(name, values[name], method)}" for name in wrong]
    found += contradictions(method, entries)
    if "columns" in entries:
        found += _columns(values["columns"], entries["columns"].place)
    found += _mixture(values.get("datasets"))
    if not wrong:
        found += [f"{entries[name].place}{text}" for name, text in best_model_problems(method, values)]
    found += _out_of_range(method, {name: entry for name, entry in entries.items() if name not in (*unknown, *wrong)})
    found += _missing(values)
    if not found:  # paths are looked up only when the rest of the recipe is right
        found += _paths(entries, needs_data)
    return found


def _wrong_type(name: str, value: Any, method: Method) -> str:
    key = keys_of(method)[name]
    if name == "datasets" and isinstance(value, list):
        return f"`datasets` must be {key.expected} with the keys {', '.join(dataset_keys())}."
    return _not_expected(key, value)


def _not_expected(key: Key, value: Any) -> str:
    shown = "null" if value is None else repr(value)
    guess = meant(value, key.choices) if isinstance(value, str) and key.choices is not None else ""
    if guess:
        return f"`{key.name}` is {shown}: {guess}It must be {key.expected}."
    return f"`{key.name}` must be {key.expected}, got {shown}."


def _columns(columns: Any, place: str) -> Iterator[str]:
    """Problems of a mapping `columns`."""
    for target, source in columns.items() if isinstance(columns, dict) else ():
        if source is not None and not isinstance(source, str):
            yield f"{place}`columns`: `{target}` must be the name of a column, got {source!r}."


def _mixture(datasets: Any) -> Iterator[str]:
    """Problems of the entries of `datasets`."""
    for index, entry in enumerate(datasets if isinstance(datasets, list) else []):
        if not isinstance(entry, dict):
            continue  # its type is already a problem
        unknown, wrong = faults(dataset_model(), entry)
        keys = dataset_keys()
        for name in unknown:
            yield f"datasets[{index}]: {unknown_in_entry(name, keys)}"
        for name in wrong:
            yield f"datasets[{index}]: {_not_expected(keys[name], entry[name])}"
        yield from _columns(entry.get("columns"), f"datasets[{index}]: ")
        if entry.get("path") is None:
            yield f"datasets[{index}]: `path` is missing: add the dataset's hub id, or a local file or folder."


def _out_of_range(method: Method, entries: Mapping[str, Value]) -> Iterator[str]:
    keys = keys_of(method)
    for name, entry in entries.items():
        problem = None if entry.value is None else range_problem(name, entry.value, keys[name].declared)
        if problem is not None:
            yield f"{entry.place}{problem}"
    steps = entries.get("max_steps")
    if steps is not None and (steps.value == 0 or steps.value < -1):
        yield (
            f"{steps.place}`max_steps` must be at least 1, got {steps.value}: remove it, or write -1, to train for "
            "`num_train_epochs`."
        )


def _missing(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("model_name_or_path") is None:
        yield "`model_name_or_path` is missing: add the hub id or the folder of the model to train."
    if values.get("dataset_name") is None and not values.get("datasets"):
        yield "`dataset_name` is missing: add a hub id, a local file or folder, or a list `datasets`."
    if values.get("output_dir") is None:
        yield "`output_dir` is missing: add the folder that checkpoints and results go to."


def _paths(entries: Mapping[str, Value], needs_data: bool) -> Iterator[str]:
    """Local paths that do not exist. Hub ids are not looked up."""
    output = entries.get("output_dir")
    try:
        if output is not None and output.value and as_path(output.value).is_file():
            yield f"{output.place}`output_dir`: {output.value} is a file: name a folder."
    except DataError as error:
        yield f"{output.place if output else ''}`output_dir`: {error}"
    for name in ("model_name_or_path", "dataset_name", "eval_dataset_name", "chat_template_path"):
        entry = entries.get(name)
        if entry is None or entry.value is None or (name.endswith("dataset_name") and not needs_data):
            continue
        try:
            config = entries["dataset_config"].value if "dataset_config" in entries else None
            problem = _path_problem(name, package_data.resolve(entry.value), config)
            if problem is None and name == "model_name_or_path" and not _is_inside(entry.value, output):
                problem = adapter_instead_of_model(package_data.resolve(entry.value))
        except (RecipeError, DataError) as error:
            problem = str(error)
        if problem is not None:
            yield f"{entry.place}`{name}`: {problem}"


def _is_inside(model: str, output: Value | None) -> bool:
    """True for a model in `output_dir`, which a fresh run refuses by itself and a resumed one reads."""
    if output is None or not output.value:
        return False
    return as_path(model).resolve().is_relative_to(as_path(output.value).resolve())


def _path_problem(name: str, value: str, config: str | None) -> str | None:
    if name.endswith("dataset_name"):
        if looks_like_path(value):
            split_files(value, config if name == "dataset_name" else None)
        return None
    is_path = value.startswith(("./", "../", "/", "~")) or value.endswith(".jinja")
    if is_path and not as_path(value).exists():
        return missing_path(value)
    return None


def adapter_instead_of_model(name: str) -> str | None:
    """One sentence with the fix if a local folder holds an adapter and no model; None for anything else.

    transformers would load its base with the adapter frozen inside, and train every weight but the adapter's.
    """
    folder = Path(name).expanduser()
    if not (folder / _ADAPTER).is_file():
        return None
    try:
        base = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    merged = f"{name.rstrip('/')}-merged"
    ours = any((place / _RECIPE).is_file() for place in (folder, folder.absolute().parent))
    command = (
        f"`{shlex.join(['trl-plus', 'merge', name, merged])}`"
        if ours
        else f"`python -c \"from peft import AutoPeftModelForCausalLM as M; M.from_pretrained('{name}')"
        f".merge_and_unload().save_pretrained('{merged}')\"` and the base's tokenizer beside it"
    )
    return (
        f"{name} is an adapter of {base or 'another model'}, not a model. Fix: merge it with {command}, and train "
        f"`model_name_or_path: {merged}`, which is then also the reference. From Python, a PeftModel that was loaded "
        "with `is_trainable=True` trains on, with the adapter as given for its reference."
    )
