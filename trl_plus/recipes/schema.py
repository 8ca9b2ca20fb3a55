"""The JSON Schema of a recipe (draft 7): completion, types and unknown keys in an editor."""

from typing import Any

from trl_plus.methods import METHODS
from trl_plus.recipes.keys import config_keys, keys_of, option_keys, shared_keys
from trl_plus.recipes.pydantic_models import model_from


def recipe_schema() -> dict[str, Any]:
    """One schema for all methods: shared keys once, and for each method its own keys and no others."""
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


def _properties(keys: dict[str, Any]) -> dict[str, Any]:
    """The schema of each key; one item may stand for a list of one, as in a recipe."""
    properties: dict[str, Any] = model_from("keys", keys).model_json_schema()["properties"]
    for name, schema in properties.items():
        schema.pop("title", None)
        if keys[name].is_list and name != "datasets":
            properties[name] = {"anyOf": [schema, {"type": "string"}]}
    return properties
