"""A recipe: one YAML file, its method's preset and the command line, validated and merged."""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.methods import METHODS, Method
from trl_plus.recipes import package_data
from trl_plus.recipes.checks import problems
from trl_plus.recipes.conflicts import best_model_notes, split_off
from trl_plus.recipes.keys import Key, Value, all_keys, keys_of
from trl_plus.recipes.unknown_keys import unknown_method
from trl_plus.recipes.yaml_text import inline, parse_value, read_file

RESOLVED = "recipe.resolved.yaml"
_RESOLVED_FROM = "# Resolved from "  # how that file begins
COMMAND_LINE, RECIPE, PRESET, MACHINE, DEFAULT = "command line", "recipe", "preset", "machine", "default"


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    Attributes:
        values: what was given, by key; TRL's defaults are not among them.
        origins: for each of them "command line", "recipe", "preset" (of the method) or "machine".
        label: the recipe's file, as messages name it.
        notes: sentences to print once.
        words: the overrides, as the command line gave them.
    """

    method: Method
    values: Mapping[str, Any]
    origins: Mapping[str, str]
    label: str
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = field(default=(), compare=False)

    def __getitem__(self, name: str) -> Any:
        """The value of a key, its default if it was not given. `bundled:` values are as they were written."""
        return self.values[name] if name in self.values else keys_of(self.method)[name].default

    @property
    def argument(self) -> str:
        """The recipe as an argument of a command: its file, or the name of the bundled recipe."""
        return self.label.removeprefix(package_data.BUNDLED)

    def command(self, name: str) -> str:
        """Another command on this recipe, with its overrides, for a shell: `trl-plus preflight my.yaml beta=2.5`."""
        return shlex.join(["trl-plus", name, self.argument, *self.words])

    def origin(self, name: str) -> str:
        """The origin of a key's value; "default" if it was not given."""
        return self.origins.get(name, DEFAULT)

    def place_of(self, text: str) -> str:
        """The place of a value that another library's message is about, as the beginning of that message.

        The message may name its key in backticks, bare, or not at all; a line of the file is not known any more.
        """
        named = re.findall(r"`(\w+)`", text) or re.findall(r"\w+", text)
        typed = any(self.origins.get(name) == COMMAND_LINE for name in named)
        return f"{COMMAND_LINE if typed else self.label}: "

    def group(self, name: str) -> dict[str, Any]:
        """The given values that one configuration class receives, with `bundled:` values resolved to paths."""
        keys = keys_of(self.method)
        return {
            key: package_data.resolve(value) if isinstance(value, str) else value
            for key, value in self.values.items()
            if keys[key].group == name
        }

    def with_machine(self, name: str, value: Any, note: str) -> "Recipe":
        """The recipe with one value more that this machine, and not the recipe, decides."""
        return replace(
            self,
            values={**self.values, name: value},
            origins={**self.origins, name: MACHINE},
            notes=(*self.notes, note),
        )

    def to_yaml(self) -> str:
        """The recipe in full: reading it returns the same values, whatever the command line was."""
        lines = [f"{_RESOLVED_FROM}{self.label}. Origin of each value: recipe, command line, preset or machine."]
        lines.append(f"method: {self.method.name}")
        lines += [f"{name}: {inline(value)}  # {self.origins[name]}" for name, value in self.values.items()]
        return "\n".join(lines) + "\n"


def load_recipe(argument: str, overrides: Sequence[str] = (), needs_data: bool = True) -> Recipe:
    """Read, merge and validate a recipe. Neither torch nor TRL is imported, and the hub is not asked.

    Args:
        argument: path of a YAML file, or the name of a bundled recipe.
        overrides: words of the command line: `--beta 2.5`, `--beta=2.5` or `beta=2.5`.
        needs_data: its local datasets must exist.

    Raises:
        RecipeError: anything is wrong; all problems are named at once.
    """
    source = package_data.find_recipe(argument)
    file = read_file(source.path, source.label)
    given = {
        name: Value(value, RECIPE, f"{source.label}, line {file.lines[name]}: ") for name, value in file.values.items()
    }
    given.update(
        {name: Value(value, COMMAND_LINE, "command line: ") for name, value in parse_overrides(overrides).items()}
    )
    notes = [f"Using the bundled recipe {source.path}."] if source.bundled else []
    # The method's presets were written into it; today's may be others
    complete = _is_resolved(source.path) and "method" in given and given["method"].origin == RECIPE
    return replace(_merge(given, source.label, notes, needs_data, complete), words=tuple(overrides))


def recipe_from(values: Mapping[str, Any], label: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe that no file holds: values that a command's own options gave, and overrides.

    Raises:
        RecipeError: as `load_recipe`.
    """
    given = {**values, **parse_overrides(overrides)}
    entries = {name: Value(value, COMMAND_LINE, "command line: ") for name, value in given.items()}
    return replace(_merge(entries, label, []), words=tuple(overrides))


def _is_resolved(path: Path) -> bool:
    """True if a recipe was written by a run: it holds every value that was given, those of the presets included."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().startswith(_RESOLVED_FROM)


def _merge(
    given: dict[str, Value], label: str, notes: list[str], needs_data: bool = True, complete: bool = False
) -> Recipe:
    """Args:
    complete: the values are those of a run. A preset that is missing among them was not there when it began.
    """
    method = _method(given.pop("method", None), label)
    keys = keys_of(method)
    entries = {
        name: replace(value, value=_normal(value.value, keys.get(name)))
        for name, value in given.items()
        if not _takes_away(value, keys.get(name))
    }
    if complete:
        notes = [*notes, *_later_presets(method, entries, label)]
    preset = method.fixed if complete else {**method.preset, **method.fixed}
    for name, value in preset.items():
        entries.setdefault(name, Value(value, PRESET, f"preset of method {method.name}: "))
    entries, inert, left_out = split_off(entries, keys)
    found = problems(method, entries, needs_data) + inert
    if found:
        raise RecipeError(found)
    notes = [
        *notes,
        *_trusts(entries),
        *best_model_notes(method, {name: entry.value for name, entry in entries.items()}),
    ]
    return Recipe(
        method=method,
        values={name: entry.value for name, entry in entries.items()},
        origins={name: entry.origin for name, entry in entries.items()},
        label=label,
        notes=(*notes, *left_out),
    )


def _later_presets(method: Method, entries: Mapping[str, Value], label: str) -> list[str]:
    """A sentence for each preset that a run's recipe does not have, because it is newer than the run."""
    keys = keys_of(method)
    return [
        f"{label} gives no `{name}`: it is {keys[name].default}, the default, as when the run began. The preset of "
        f"method {method.name} is {value} today."
        for name, value in method.preset.items()
        if name not in entries
    ]


def _trusts(entries: Mapping[str, Value]) -> list[str]:
    """A sentence if the recipe lets code run that comes with a model."""
    values = {name: entry.value for name, entry in entries.items()}
    inner = values.get("model_init_kwargs")
    if not values.get("trust_remote_code") and not (isinstance(inner, dict) and inner.get("trust_remote_code")):
        return []
    return [f"trust_remote_code is on: Python code that comes with {values.get('model_name_or_path')} will be run."]


def _method(entry: Value | None, label: str) -> Method:
    if entry is None or entry.value is None:
        raise RecipeError(f"{label}: `method` is missing: add `method: simpo`, or one of {', '.join(METHODS)}.")
    if not isinstance(entry.value, str) or entry.value not in METHODS:
        raise RecipeError(f"{entry.place}{unknown_method(entry.value)}")
    return METHODS[entry.value]


def _takes_away(entry: Value, key: Key | None) -> bool:
    """True for `KEY=null` of a key that has no null: it removes the recipe's value, and the default is used."""
    return entry.origin == COMMAND_LINE and entry.value is None and (key is None or not key.nullable)


def _normal(value: Any, key: Key | None) -> Any:
    """A value in the one form that is validated: `no` as text if it is a choice, a single item as a list."""
    if key is None:
        return value
    if value is False and key.choices is not None and "no" in key.choices:
        return "no"  # YAML reads `eval_strategy: no` as false
    if key.is_list and isinstance(value, str):
        return [value]
    return value


def write_resolved(recipe: Recipe, folder: Path) -> Path:
    """Write `recipe.resolved.yaml` into a folder, which is made if need be; returns its path."""
    path = folder / RESOLVED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{path.name}.part"
        part.write_text(recipe.to_yaml(), encoding="utf-8")
        os.replace(part, path)  # a killed run leaves the old file or the new one
    except OSError as error:
        raise RecipeError(f"`output_dir`: cannot write to {folder}: {error.strerror}. Name another one.") from error
    return path


_BOOLEAN_WORDS = ("true", "false", "yes", "no", "on", "off", "null")


def parse_overrides(words: Sequence[str], read: Callable[[str], Any] = parse_value) -> dict[str, Any]:
    """Values by key, `-` in a key read as `_` and each value as YAML.

    A key given twice keeps its last value, as is usual on a command line.

    Args:
        read: turns the text of a value into the value.

    Raises:
        RecipeError: a word is neither a key nor a value, or a key that is no switch has no value.
    """
    known = all_keys()
    values: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        key, equals, text = word.partition("=")
        name = key.removeprefix("--").replace("-", "_")
        if not name.isidentifier() or not (equals or word.startswith("--")):
            raise RecipeError(
                f"The argument {word!r} belongs to no key: write KEY=VALUE or --KEY VALUE, and lists as KEY=[a,b]."
            )
        value_follows = bool(waiting) and not waiting[0].startswith("--")
        if equals:
            values[name] = read(text)
        elif name in known and known[name].is_boolean:
            explicit = value_follows and waiting[0].lower() in _BOOLEAN_WORDS
            values[name] = read(waiting.pop(0)) if explicit else True
        elif value_follows:
            values[name] = read(waiting.pop(0))
        elif name in known or name == "method":
            raise RecipeError(f"`--{name}` needs a value: write --{name} VALUE or {name}=VALUE.")
        else:
            values[name] = True  # no such key: the validation of the whole recipe names the nearest one
    return values
