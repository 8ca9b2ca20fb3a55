"""Write trl_plus/recipes/keys.json: every recipe key with its type, default, choices and help.

The command line validates recipes against this file, so that a typo is answered without importing torch or TRL.
Run it after a change of trl_plus/trainers/configs.py or of the TRL or transformers version:

    python scripts/make_recipe_keys.py
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments
from trl.scripts.utils import DatasetConfig

from trl_plus.recipes.keys import DECLARED
from trl_plus.recipes.options import UPSTREAM, EntryOptions, RunOptions
from trl_plus.recipes.unknown_keys import REFUSED
from trl_plus.trainers import configs

TARGET = Path(__file__).parents[1] / "trl_plus" / "recipes" / "keys.json"
METHOD_CONFIGS = (
    configs.DPOConfig,
    configs.SimPOConfig,
    configs.ORPOConfig,
    configs.CPOConfig,
    configs.KTOConfig,
)
OTHER_GROUPS = (RunOptions, ScriptArguments, DatasetMixtureConfig, DatasetConfig, ModelConfig)
SIMPLE = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict"}
LIST_ITEMS = {str: "list[str]", float: "list[float]", DatasetConfig: "list[dict]"}
HELP_CHARACTERS = 160


def simple_types(annotation: Any) -> list[str]:
    """Names of the YAML types that an annotation takes, 'null' among them."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        names = [name for part in typing.get_args(annotation) for name in simple_types(part)]
    elif annotation is type(None):
        names = ["null"]
    elif origin is typing.Literal:
        names = [SIMPLE[type(value)] for value in typing.get_args(annotation)]
    elif origin is list:
        names = [LIST_ITEMS.get(typing.get_args(annotation)[0], "list[str]")]
    elif origin is not None and issubclass(origin, Mapping):
        names = ["dict"]
    elif issubclass(annotation, Enum):
        names = ["str"]
    else:
        names = [SIMPLE[annotation]]
    return list(dict.fromkeys(names))


def choices(field: Field, annotation: Any) -> list[str] | None:
    """The values a field takes: from its metadata, its enumeration or, for DPO's loss_type, its help text."""
    if field.metadata.get("choices") is not None:
        return list(field.metadata["choices"])
    for part in typing.get_args(annotation) or (annotation,):
        if isinstance(part, type) and issubclass(part, Enum) and field.name != "debug":
            return [member.value for member in part]
    if field.name == "loss_type":  # TRL lists DPO's losses only there
        return re.findall(r"`'(\w+)'`", field.metadata["help"])
    return None


def short(text: str) -> str:
    """The first sentence of a help text, for a table or an editor's tooltip."""
    sentence = re.split(r"(?<=\.)\s", " ".join(text.split()))[0].replace("%%", "%")
    return sentence if len(sentence) <= HELP_CHARACTERS else sentence[: HELP_CHARACTERS - 4].rsplit(" ", 1)[0] + " ..."


def default(field: Field) -> Any:
    """A field's default as JSON; fields without one (a dataset's path) are required and give None."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    value = None if field.default is MISSING else field.default
    return value.value if isinstance(value, Enum) else value


def specification(field: Field, annotation: Any, ours: bool) -> dict[str, Any]:
    """What validation, the schema and the tables need to know of one key; a help text only where it is ours."""
    names = simple_types(annotation)
    spec: dict[str, Any] = {"types": [name for name in names if name != "null"], "default": default(field)}
    if "null" in names:
        spec["nullable"] = True
    values = choices(field, annotation)
    if values is not None:
        spec["choices"] = values
    declared = {**UPSTREAM.get(field.name, {}), **field.metadata}
    spec |= {name: declared[name] for name in DECLARED if name in declared}
    if ours:
        spec["help"] = short(field.metadata.get("help", ""))
    return spec


def group(cls: type) -> dict[str, dict[str, Any]]:
    """Every key of a configuration class that a recipe may set."""
    annotations = typing.get_type_hints(cls)
    silent = getattr(cls, "_without_effect", ())
    ours = [base for base in cls.__mro__ if base.__module__.startswith("trl_plus")]
    own = {name for base in ours for name in inspect.get_annotations(base)}
    return {
        field.name: specification(field, annotations[field.name], field.name in own)
        for field in fields(cls)
        if field.init and field.name not in REFUSED and field.name not in silent
    }


def reason(name: str) -> str:
    """Why a method never reads one of TRL's fields."""
    if name in configs._REFERENCE_FIELDS:
        return "it has no reference model"
    return "its loss never reads it"


def table() -> dict[str, Any]:
    """The content of keys.json. Keys that all methods share are stored once, under 'shared'."""
    methods = {cls.__name__: group(cls) for cls in METHOD_CONFIGS}
    first, *others = methods.values()
    shared = {key: spec for key, spec in first.items() if all(other.get(key) == spec for other in others)}
    return {
        "generated_with": {name: version(name) for name in ("trl", "transformers")},
        "shared": shared,
        **{name: {k: s for k, s in keys.items() if k not in shared} for name, keys in methods.items()},
        **{cls.__name__: group(cls) for cls in OTHER_GROUPS},
        "DatasetConfig": {**group(DatasetConfig), **group(EntryOptions)},
        "without_effect": {
            cls.__name__: {name: reason(name) for name in getattr(cls, "_without_effect", ())} for cls in METHOD_CONFIGS
        },
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(table(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(TARGET)
