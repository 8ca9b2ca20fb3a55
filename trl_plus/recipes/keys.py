"""The keys of a recipe, read from keys.json (written by scripts/make_recipe_keys.py) without importing torch or TRL."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trl_plus.methods import METHODS, Method

# Groups of keys that every method takes, by the class that receives them.
OPTION_GROUPS = ("RunOptions", "ScriptArguments", "DatasetMixtureConfig", "ModelConfig")


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        types: YAML types it takes: bool, int, float, str, list[str], list[float], list[dict], dict.
        group: class that receives the value: one of OPTION_GROUPS, or "training" for the method's configuration.
        choices: the only values it takes, or None.
    """

    name: str
    types: tuple[str, ...]
    default: Any
    help: str
    group: str
    nullable: bool = False
    choices: tuple[str, ...] | None = None

    @property
    def is_boolean(self) -> bool:
        return self.types == ("bool",)

    @property
    def is_list(self) -> bool:
        return all(name.startswith("list") for name in self.types)

    @property
    def expected(self) -> str:
        """What the key takes, as the end of "must be ..."."""
        if self.choices is not None:
            kind = "a list of " if self.is_list else "one of "
            return kind + ", ".join(self.choices)
        return " or ".join(_WORDS[name] for name in self.types)


_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list[str]": "a list of text",
    "list[float]": "a list of numbers",
    "list[dict]": "a list of mappings",
    "dict": "a mapping",
}


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((Path(__file__).parent / "keys.json").read_text(encoding="utf-8"))
    return table


def _keys(group: str, specs: Mapping[str, Mapping[str, Any]]) -> dict[str, Key]:
    return {
        name: Key(
            name=name,
            types=tuple(spec["types"]),
            default=spec["default"],
            help=spec.get("help", ""),
            group=group,
            nullable=spec.get("nullable", False),
            choices=tuple(spec["choices"]) if "choices" in spec else None,
        )
        for name, spec in specs.items()
    }


@cache
def option_keys() -> dict[str, Key]:
    """Keys that every method takes and no trainer configuration does: data, model, evaluation, report."""
    return {name: key for group in OPTION_GROUPS for name, key in _keys(group, _table()[group]).items()}


@cache
def shared_keys() -> dict[str, Key]:
    """Keys of the training configuration that are the same for every method."""
    return _keys("training", _table()["shared"])


@cache
def config_keys(config: str) -> dict[str, Key]:
    """Keys of one training configuration ("SimPOConfig") that differ from some other's."""
    return _keys("training", _table()[config])


def keys_of(method: Method) -> dict[str, Key]:
    """Every key that a recipe of this method may set, except `method`."""
    return {**option_keys(), **shared_keys(), **config_keys(method.config)}


def dataset_keys() -> dict[str, Key]:
    """Keys of one entry of the list `datasets`."""
    return _keys("DatasetConfig", _table()["DatasetConfig"])


def without_effect(method: Method) -> dict[str, str]:
    """TRL's keys that this method never reads, each with the reason."""
    reasons: dict[str, str] = _table()["without_effect"][method.config]
    return reasons


def owners(name: str) -> list[str]:
    """The methods that have this key, presets of another method left out."""
    plain = (method for method in METHODS.values() if not method.fixed)
    return [method.name for method in plain if name in config_keys(method.config)]


def all_keys() -> dict[str, Key]:
    """Every key of any method; where methods differ, the last one's. For parsing, not for validation."""
    return {name: key for method in METHODS.values() for name, key in keys_of(method).items()}


def generated_with() -> dict[str, str]:
    """Versions of TRL and transformers that the table was made from."""
    versions: dict[str, str] = _table()["generated_with"]
    return versions
