"""Command-line overrides: `--beta 2.5`, `--beta=2.5`, `beta=2.5`, and `--bf16` for a switch."""

from collections.abc import Sequence
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.recipes.keys import all_keys
from trl_plus.recipes.yaml_text import parse_value

_BOOLEAN_WORDS = ("true", "false", "yes", "no", "on", "off", "null")


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Values by key, `-` in a key read as `_` and each value as YAML.

    A key given twice keeps its last value, as is usual on a command line.

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
            values[name] = parse_value(text)
        elif name in known and known[name].is_boolean:
            explicit = value_follows and waiting[0].lower() in _BOOLEAN_WORDS
            values[name] = parse_value(waiting.pop(0)) if explicit else True
        elif value_follows:
            values[name] = parse_value(waiting.pop(0))
        elif name in known or name == "method":
            raise RecipeError(f"`--{name}` needs a value: write --{name} VALUE or {name}=VALUE.")
        else:
            values[name] = True  # no such key: the validation of the whole recipe names the nearest one
    return values
