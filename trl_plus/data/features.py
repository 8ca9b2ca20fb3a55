"""The types of converted columns. A first batch cannot tell them: a key may be null there and a list later."""

from collections.abc import Iterator, Mapping
from typing import Any

from trl_plus.data.converters import Row

_MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


def features_of(source: Mapping[str, Any], sample: Row, used: list[str]) -> Any:
    """The features of converted rows.

    Args:
        source: features before conversion.
        sample: one converted row.
        used: the columns that the converter uses. Messages keep every key that messages have there.
    """
    from datasets import Features, List, Value

    message = List(_message([source[column] for column in used]))
    new: dict[str, Any] = {}
    for name, value in sample.items():
        if name in source and name not in used:
            new[name] = source[name]
        elif name == "label":
            new[name] = Value("bool")
        elif name.startswith("score"):
            new[name] = Value("float64")
        else:
            new[name] = message if isinstance(value, list) else Value("string")
    return Features(new)


def _message(columns: list[Any]) -> Any:
    """The type of one message: role, content, and the further keys of the messages in these columns."""
    from datasets import Json, Value

    kinds = [kind for column in columns for kind in _messages_in(column)]
    if any(isinstance(kind, Json) for kind in kinds):
        return Json()
    contents = [kind.get("content", kind.get("value")) for kind in kinds]
    contents += [Value("string") for column in columns if _is_text(column)]  # a text prompt beside messages
    fields = {key: part for kind in kinds for key, part in kind.items() if key not in ("from", "value")}
    return {**fields, "role": Value("string"), "content": _one_type(contents)}


def _messages_in(feature: Any) -> Iterator[Any]:
    """Every message type, or JSON in place of one, inside a type."""
    from datasets import Json

    if isinstance(feature, Json):
        yield feature
    elif isinstance(feature, dict):
        if any(keys <= set(feature) for keys in _MESSAGE_KEYS):
            yield feature
        else:
            for name, part in feature.items():
                if name == "messages" or not isinstance(part, Json):  # any other may hold anything
                    yield from _messages_in(part)
    elif hasattr(feature, "feature"):
        yield from _messages_in(feature.feature)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _one_type(types: list[Any]) -> Any:
    from datasets import Json, Value

    if all(_is_text(kind) or getattr(kind, "dtype", None) == "null" for kind in types):
        return Value("string")
    return types[0] if all(kind == types[0] for kind in types) else Json()
