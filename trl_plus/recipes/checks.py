"""What is wrong with the values of a recipe: unknown keys, types, contradictions, missing keys, missing files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_plus.data.files import as_path, looks_like_path, split_files
from trl_plus.errors import DataError, RecipeError
from trl_plus.methods import Method
from trl_plus.recipes import package_data
from trl_plus.recipes.adapter_folders import adapter_instead_of_model
from trl_plus.recipes.best_model import best_model_problems
from trl_plus.recipes.keys import Key, dataset_keys, keys_of
from trl_plus.recipes.pydantic_models import dataset_model, faults, recipe_model
from trl_plus.recipes.unknown_keys import explain, meant, unknown_in_entry


@dataclass(frozen=True)
class Value:
    """A value, where it came from, and how a message names that place ("r.yaml, line 3: ")."""

    value: Any
    origin: str
    place: str


def is_given(value: Any) -> bool:
    """Whether a value asks for something: null, false and an empty list do not, 0 does."""
    return not (value is None or value is False or value == [])


def problems(method: Method, entries: Mapping[str, Value], needs_data: bool = True) -> list[str]:
    """Every problem of a recipe, one sentence each, in the order in which to mend them.

    Args:
        needs_data: a dataset that does not exist is a problem.
    """
    values = {name: entry.value for name, entry in entries.items()}
    unknown, wrong = faults(recipe_model(method.name), values)
    found = [f"{entries[name].place}{explain(name, values[name], method)}" for name in unknown]
    found += [f"{entries[name].place}{_wrong_type(name, values[name], method)}" for name in wrong]
    found += _contradictions(method, entries)
    if not wrong:
        found += [f"{entries[name].place}{text}" for name, text in best_model_problems(method, values)]
    found += _out_of_range(entries, [*unknown, *wrong])
    found += _missing(values)
    if not found:  # paths are looked up only in a recipe that says what they are for
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


def _contradictions(method: Method, entries: Mapping[str, Value]) -> Iterator[str]:
    for name, fixed in method.fixed.items():
        entry = entries.get(name)
        if entry is not None and entry.value != fixed:
            yield (
                f"{entry.place}`{name}: {entry.value}` contradicts `method: {method.name}`, which is {fixed}: remove "
                f"it, or write `method: {'dpo' if method.paired else 'kto'}`."
            )
    given = {name: entry.value for name, entry in entries.items() if is_given(entry.value)}
    for first, second, cure in _EXCLUSIVE:
        if first in given and second in given:
            yield f"{entries[second].place}`{first}` and `{second}` exclude each other: {cure}."
    for option in ("load_in_4bit", "load_in_8bit"):
        if option in given and "use_peft" not in given:
            yield f"{entries[option].place}`{option}` needs `use_peft: true`: quantized weights cannot be trained."
    yield from _lora_on_head(entries, given)
    if "columns" in given:
        yield from _columns(given["columns"], entries["columns"].place)
    yield from _mixture(given.get("datasets", []))
    if method.paired and given.get("converter") == "pairs_to_unpaired":
        yield (
            f"{entries['converter'].place}`converter: pairs_to_unpaired` makes labelled rows, but `method: "
            f"{method.name}` compares pairs: remove it, or write `method: kto`."
        )


_EXCLUSIVE = (
    ("gamma", "gamma_beta_ratio", "keep one of them (gamma = gamma_beta_ratio * beta)"),
    ("dataset_name", "datasets", "keep one of them"),
    ("columns", "datasets", "give each entry of `datasets` that needs them its `columns`"),
    ("converter", "datasets", "give each entry of `datasets` that needs one its `converter`"),
    ("eval_dataset_name", "eval_fraction", "keep one of them"),
    ("eval_fraction", "test_split_size", "keep one of them"),
    ("load_in_4bit", "load_in_8bit", "keep one of them"),
    ("bf16", "fp16", "keep one of them"),
)


def _lora_on_head(entries: Mapping[str, Value], given: Mapping[str, Any]) -> Iterator[str]:
    """LoRA on the LM head, whose weight the log-probabilities are computed from: its matrices would get no gradient."""
    targets = given.get("lora_target_modules")
    for name in targets if isinstance(targets, list) else []:
        if isinstance(name, str) and name.split(".")[-1] in ("lm_head", "embed_out"):
            kept = given.get("lora_modules_to_save") or []
            saved = ", ".join(dict.fromkeys([*(kept if isinstance(kept, list) else [kept]), name]))
            yield (
                f"{entries['lora_target_modules'].place}`lora_target_modules`: LoRA on {name} would not be trained. "
                f"Fix: remove {name} from it, and to train the whole head write `lora_modules_to_save: [{saved}]`."
            )


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


# The smallest value that does anything; transformers and torch fail on less, late and in their own words
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 2,
    "learning_rate": 0,
    "weight_decay": 0,
    "lora_r": 1,
    "early_stopping_patience": 1,
    "early_stopping_threshold": 0,
    "tokens_per_device": 1,
    "max_nonfinite_skips": 0,
    "eval_fraction": 0,
    "max_eval_rows": 0,
    "report_generations": 0,
    "sft_weight": 0,
    "cpo_alpha": 0,
    "desirable_weight": 0,
    "undesirable_weight": 0,
}


_ABOVE_ZERO = ("num_train_epochs", "save_steps")
_BELOW_ONE = ("eval_fraction",)


def _out_of_range(entries: Mapping[str, Value], faulty: list[str]) -> Iterator[str]:
    numbers = {name: entry for name, entry in entries.items() if entry.value is not None and name not in faulty}
    for name, least in _AT_LEAST.items():
        entry = numbers.get(name)
        if entry is not None and entry.value < least:
            yield f"{entry.place}`{name}` must be at least {least}, got {entry.value}."
    for name in _ABOVE_ZERO:
        entry = numbers.get(name)
        if entry is not None and entry.value <= 0:
            yield f"{entry.place}`{name}` must be above 0, got {entry.value}."
    for name in _BELOW_ONE:
        entry = numbers.get(name)
        if entry is not None and entry.value >= 1:
            yield f"{entry.place}`{name}` must be below 1, got {entry.value}."
    steps = entries.get("max_steps")
    if steps is not None and "max_steps" not in faulty and (steps.value == 0 or steps.value < -1):
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
        return f"{value} does not exist: check the path, which is relative to {Path.cwd()}."
    return None
