"""The keys of a recipe: their table, the types they take, and their JSON Schema. Imports neither torch nor TRL.

The table is keys.json, written by scripts/make_recipe_keys.py.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from trl_plus.methods import METHODS, Method

# Groups of keys that every method takes, by the class that receives them.
SECRET = re.compile(r"(^|[_-])(token|password|secret|api_key)$")  # keys whose values are not shown
DECLARED = ("at_least", "above", "below", "excludes")  # of a field's metadata, kept in the table
OPTION_GROUPS = ("RunOptions", "ScriptArguments", "DatasetMixtureConfig", "ModelConfig")


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        types: YAML types it takes: bool, int, float, str, list[str], list[float], list[dict], dict.
        group: class that receives the value: one of OPTION_GROUPS, or "training" for the method's configuration.
        choices: the only values it takes, or None.
        declared: `at_least`, `above`, `below` and `excludes` of its field (`recipes.options`).
    """

    name: str
    types: tuple[str, ...]
    default: Any
    help: str
    group: str
    nullable: bool = False
    choices: tuple[str, ...] | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_boolean(self) -> bool:
        return self.types == ("bool",)

    @property
    def is_list(self) -> bool:
        return all(name.startswith("list") for name in self.types)

    @property
    def expected(self) -> str:
        """The accepted values, as the end of "must be ..."."""
        if self.choices is not None:
            kind = "a list of " if self.is_list else "one of "
            return kind + ", ".join(self.choices)
        return " or ".join(_WORDS[name] for name in self.types)


@dataclass(frozen=True)
class Value:
    """A value of a recipe, its origin, and how a message names the place ("r.yaml, line 3: ")."""

    value: Any
    origin: str
    place: str


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
            declared={name: spec[name] for name in DECLARED if name in spec},
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


# -- types ---------------------------------------------------------------------------------------------------------


_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": Annotated[float, Field(allow_inf_nan=False)],
    "str": str,
    "list[str]": list[str],
    "list[float]": list[float],
    "list[dict]": list[dict[str, Any]],
    "dict": dict[str, Any],
}


def annotation(key: Key) -> Any:
    """The Python type of a key's value."""
    if key.choices is not None:
        choice: Any = Literal.__getitem__(key.choices)
        types: list[Any] = [list[choice] if key.is_list else choice]
    else:
        types = [_TYPES[name] for name in key.types]
    if key.nullable:
        types.append(None)
    return Union.__getitem__(tuple(types))


def model_from(name: str, keys: dict[str, Key]) -> type[BaseModel]:
    """A model with one optional field per key; `None` as a default stands for "not given" and is not checked."""
    fields: dict[str, Any] = {
        key.name: (annotation(key), Field(default=key.default, description=key.help or None)) for key in keys.values()
    }
    # protected_namespaces: TRL's keys may begin with `model_`
    settings = ConfigDict(strict=True, extra="forbid", protected_namespaces=())
    return create_model(name, __config__=settings, **fields)


@cache
def recipe_model(method: str) -> type[BaseModel]:
    """The model of a recipe of this method, without the key `method`."""
    return model_from(f"{method}_recipe", keys_of(METHODS[method]))


@cache
def dataset_model() -> type[BaseModel]:
    """The model of one entry of the list `datasets`."""
    return model_from("dataset", dataset_keys())


def faults(model: type[BaseModel], values: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of unknown keys, and names of keys whose value has the wrong type, each in the order given."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        unknown = [str(item["loc"][0]) for item in details if item["type"] == "extra_forbidden"]
        wrong = [str(item["loc"][0]) for item in details if item["type"] != "extra_forbidden"]
        return unknown, list(dict.fromkeys(wrong))
    return [], []


# -- JSON Schema ---------------------------------------------------------------------------------------------------


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe (draft 7), for all methods: shared keys once, then each method's own."""
    configs = list(dict.fromkeys(method.config for method in METHODS.values()))
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "trl-plus recipe",
        "type": "object",
        "properties": {
            "method": {"enum": list(METHODS), "description": "What to train with."},
            **_properties({**option_keys(), **shared_keys()}),
        },
        "required": ["method", "model_name_or_path", "output_dir"],
        "allOf": [_of_config(config) for config in configs],
    }


def _of_config(config: str) -> dict[str, Any]:
    methods = [method for method in METHODS.values() if method.config == config]
    return {
        "if": {"properties": {"method": {"enum": [method.name for method in methods]}}, "required": ["method"]},
        "then": {
            "properties": _properties(config_keys(config)),
            "propertyNames": {"enum": ["method", *keys_of(methods[0])]},
        },
    }


_BOUNDS = {"at_least": "minimum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}


def _properties(keys: dict[str, Any]) -> dict[str, Any]:
    """The schema of each key; one item may stand for a list of one, as in a recipe."""
    properties: dict[str, Any] = model_from("keys", keys).model_json_schema()["properties"]
    for name, schema in properties.items():
        schema.pop("title", None)
        schema |= {word: keys[name].declared[bound] for bound, word in _BOUNDS.items() if bound in keys[name].declared}
        if keys[name].is_list and name != "datasets":
            properties[name] = {"anyOf": [schema, {"type": "string"}]}
    return properties
