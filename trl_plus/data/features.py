"""Types of columns: of converted ones, whose first batch cannot tell them, and common ones for a mixture."""

from collections.abc import Iterator, Mapping
from typing import Any

from trl_plus.data.converters import Row

_MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


def features_of(source: Mapping[str, Any], sample: Row, used: list[str]) -> Any:
    """The features of converted rows: a key that is null in the first rows may be a list in a later one.

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
        elif name.startswith("score") or isinstance(value, float):
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
    contents += [Value("string") for column in columns if is_text(column)]  # a text prompt beside messages
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


def is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _one_type(types: list[Any]) -> Any:
    from datasets import Json, Value

    if all(is_text(kind) or getattr(kind, "dtype", None) == "null" for kind in types):
        return Value("string")
    return types[0] if all(kind == types[0] for kind in types) else Json()


def with_common_types(parts: list[Any]) -> list[Any]:
    """Datasets with the same type for the same column, where the types differ only in what can be filled or widened.

    Messages get the keys that any of them has. Text of CSV and some parquet files is `large_string`, which `datasets`
    does not concatenate with `string`. Other differences are left for `datasets` to refuse.
    """
    from datasets import Features

    known = [part.features for part in parts]
    if any(features is None for features in known) or all(features == known[0] for features in known):
        return parts
    columns = {name for features in known for name in features}
    common = {name: _common([features[name] for features in known if name in features]) for name in columns}
    wanted = [Features({name: common[name] for name in features}) for features in known]
    return [part if new == old else part.cast(new) for part, new, old in zip(parts, wanted, known, strict=True)]


def _common(types: list[Any]) -> Any:
    from datasets import List, Value

    types = [kind for kind in types if getattr(kind, "dtype", None) != "null"] or types
    if all(isinstance(kind, dict) for kind in types):
        keys = dict.fromkeys(key for kind in types for key in kind)
        return {key: _common([kind[key] for kind in types if key in kind]) for key in keys}
    if all(isinstance(kind, List) for kind in types):
        return List(_common([kind.feature for kind in types]))
    if all(is_text(kind) for kind in types):
        return Value("string")
    if {getattr(kind, "dtype", None) for kind in types} == {"int64", "float64"}:
        return Value("float64")
    return types[0]
