"""The answer to a key that a recipe must not have: what it is called today, whose it is, or what was meant."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from trl_plus.methods import METHODS, Method
from trl_plus.recipes.keys import keys_of, owners, without_effect
from trl_plus.recipes.old_keys import REFUSED, RENAMED, REPLACED, value_today
from trl_plus.recipes.yaml_text import inline


def explain(name: str, value: Any, method: Method) -> str:
    """One sentence on why `name` is refused under `method`, and what to write instead."""
    known = keys_of(method)
    if name in RENAMED:
        return _renamed(name, value, method)
    if name in REPLACED or name in REFUSED:
        return f"`{name}` is not a key of a recipe: {(REPLACED | REFUSED)[name]}."
    reasons = without_effect(method)
    if name in reasons:
        return f"`{name}` has no effect with method {method.name}, since {reasons[name]}: remove it."
    if owners(name):
        others = owners(name)
        return (
            f"`{name}` belongs to method {' and '.join(others)}, not to {method.name}: remove it, "
            f"or write `method: {others[0]}`."
        )
    positive = name.removeprefix("no_")
    if positive != name and positive in known and known[positive].is_boolean:
        return f"unknown key `{name}`: write `{positive}: false`."
    nearest = get_close_matches(name, [*known, "method"], n=1, cutoff=0.72)
    if nearest:
        return f"unknown key `{name}`: did you mean `{nearest[0]}`?"
    return f"unknown key `{name}`: remove it; `trl-plus schema` lists every key."


def _renamed(name: str, value: Any, method: Method) -> str:
    new, value = RENAMED[name], value_today(name, value)
    if new == "loss_type" and isinstance(value, str) and value in METHODS:
        return f"`{name}: {value}` is a method: write `method: {value}`."
    if new == "eval_fraction" and isinstance(value, (int, float)) and value >= 1:
        return f"`{name}` is now `eval_fraction`, a share of the rows: write `eval_fraction: 0.1` for a tenth of them."
    if new == "dataset_name" and (isinstance(value, list) or (isinstance(value, str) and "," in value)):
        parts = value if isinstance(value, list) else value.split(",")
        paths = ", ".join(f"{{path: {str(part).strip()}}}" for part in parts)
        return f"`{name}` names several datasets: write `datasets: [{paths}]`."
    if new in keys_of(method):
        return f"`{name}` is now `{new}`: write `{new}: {inline(value)}`."
    others = owners(new)
    whose = f", a key of method {' and '.join(others)}" if others else ""
    return f"`{name}` is now `{new}`{whose}."


def unknown_in_entry(name: str, keys: Collection[str]) -> str:
    """One sentence on a key that an entry of `datasets` must not have."""
    guess = meant(name, keys)
    return f"unknown key `{name}`: {guess}{'The' if guess else 'the'} keys are {', '.join(keys)}."


def meant(name: Any, known: Collection[str]) -> str:
    """ "did you mean ...? " where one of the names is near, else nothing."""
    nearest = get_close_matches(str(name).lower(), known, n=1, cutoff=0.6)
    return f"did you mean `{nearest[0]}`? " if nearest else ""


def unknown_method(name: Any) -> str:
    """One sentence on a value of `method` that is none."""
    nearest = get_close_matches(str(name).lower(), METHODS, n=1, cutoff=0.5)
    guess = f"did you mean `{nearest[0]}`? " if nearest else ""
    return f"unknown method {name!r}: {guess}The methods are {', '.join(METHODS)}."
