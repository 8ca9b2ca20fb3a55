"""Pydantic models of the recipe, built from the key table: types are checked strictly, unknown keys refused."""

from functools import cache
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from trl_plus.methods import METHODS
from trl_plus.recipes.keys import Key, dataset_keys, keys_of

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
