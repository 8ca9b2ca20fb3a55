"""Datasets in one form before anything looks at them: messages, tools, the system message and earlier turns.

Training, preflight, preview, evaluation and comparison all read rows that went through `in_form`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from trl_plus.data.calls import CALL_ROLES
from trl_plus.data.features import is_text
from trl_plus.data.folding import FOLDED, fold, turns_of
from trl_plus.data.messages import bare, listed, looks_listed, message_fault, messages_in_form, parsed, tools_in_form
from trl_plus.data.responses import is_conversation

MESSAGES = ("prompt", "chosen", "rejected", "completion")
_TOOLS, _KWARGS = "tools", "chat_template_kwargs"
_IMAGES = ("image", "images")
FORM = "in form"  # marks JSON that `in_form` wrote, so that it is not read again
_BATCH = 10_000
_LOOK = 100  # rows from which the kind of a column is told


def in_form(dataset: Any, name: str) -> Any:
    """The dataset with its messages and tools in one form, and columns that stand for turns in front of them.

    A table whose messages hold only role and content, without nulls, is returned as it is. Columns of messages that are
    changed become JSON in the table, so that no row gets the keys of another one.

    Args:
        name: the dataset, as progress bars name it.
    """
    if not hasattr(dataset, "__len__"):
        return _stream(dataset)
    dataset = without_empty_images(dataset)
    features = dataset.features
    texts = _listed_columns(dataset)
    changed = _to_change(dataset, texts)
    if not changed:
        return dataset
    from datasets import Features, Json, List, Value, concatenate_datasets

    used = [*changed, *_folded(dataset)]
    kinds: dict[str, Any] = {_TOOLS: Value("string"), _KWARGS: Json(id=FORM)}
    made = (
        dataset.select_columns(used)
        .with_format(None)
        .map(
            _batch_in_form,
            batched=True,
            remove_columns=used,
            fn_kwargs={"types": dict(features), "columns": changed, "blocks": _has_images(features), "texts": texts},
            features=Features({column: kinds.get(column, List(Json(id=FORM))) for column in changed}),
            desc=f"Bringing messages of {name} into form",
        )
    )
    others = [column for column in dataset.column_names if column not in used]
    if others:
        made = concatenate_datasets([dataset.with_format(None).select_columns(others), made], axis=1)
    return made.select_columns([column for column in dataset.column_names if column in made.column_names])


def _to_change(dataset: Any, texts: list[str]) -> list[str]:
    """The columns that `in_form` has to write anew."""
    features = dataset.features
    conversations = [column for column in MESSAGES if column in texts or _holds_messages(dataset, column)]
    found: list[str] = []
    if conversations and _folded(dataset):
        found = [column for column in MESSAGES if column in features]  # a text prompt becomes a turn
    elif texts or any(not _is_plain(features[column]) or _has_calls(dataset, column) for column in conversations):
        found = conversations
    if _TOOLS in features and (not is_text(features[_TOOLS]) or "" in dataset.unique(_TOOLS)):
        found.append(_TOOLS)
    if _KWARGS in features and not is_formed(features[_KWARGS]):
        found.append(_KWARGS)
    return found


def _listed_columns(dataset: Any) -> list[str]:
    """The text columns that hold nothing but JSON text of lists of messages; none if only some of the sides do."""
    texts = [column for column in MESSAGES if column in dataset.column_names and is_text(dataset.features[column])]
    found = [column for column in texts if _is_listed(dataset, column)]
    return [] if any(column not in found for column in texts if column != "prompt") else found


def _is_listed(dataset: Any, column: str) -> bool:
    values = dataset.select_columns([column])
    if not looks_listed(next((value for value in values[:_LOOK][column] if value is not None), None)):
        return False
    return all(value is None or not isinstance(listed(value), str) for value in values[column])


def _holds_messages(dataset: Any, column: str) -> bool:
    """True if a column is a list of messages, judged by its type, or by its first values if that is JSON."""
    inner = getattr(dataset.features.get(column), "feature", None)
    if inner is None or isinstance(inner, dict):
        return isinstance(inner, dict) and "role" in inner
    values = (value for value in dataset.select_columns([column])[:_LOOK][column] if value)
    return is_conversation(next(values, None))


def _is_plain(feature: Any) -> bool:
    """True if a column holds {role, content} texts, or what `in_form` wrote."""
    inner = getattr(feature, "feature", None)
    texts = isinstance(inner, dict) and set(inner) == {"role", "content"} and all(map(is_text, inner.values()))
    return texts or is_formed(feature)


def _has_calls(dataset: Any, column: str) -> bool:
    """True if a column of plain messages has roles that stand for tool calls and their results."""
    if is_formed(dataset.features[column]):
        return False
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in dataset.select_columns([column]).with_format("arrow").iter(_BATCH):
        roles = batch[column].combine_chunks().flatten().field("role")
        if pc.any(pc.is_in(roles, pa.array(CALL_ROLES, roles.type))).as_py():
            return True
    return False


def is_formed(feature: Any) -> bool:
    """True if `in_form` wrote a column of this type."""
    inner = getattr(feature, "feature", feature)
    return type(inner).__name__ == "Json" and inner.id == FORM


def _folded(dataset: Any) -> list[str]:
    """The columns that stand for turns in every row, if the rows hold messages."""
    found = []
    for column in FOLDED:
        if column in dataset.features:
            values = dataset.select_columns([column])[column]
            if all(turns_of(column, value) is not None for value in values):
                found.append(column)
    return found


def _batch_in_form(
    batch: Mapping[str, list[Any]], types: Mapping[str, Any], columns: list[str], blocks: bool, texts: list[str]
) -> dict[str, list[Any]]:
    names = list(batch)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    rows = [row_in_form(row, types, blocks, texts) for row in rows]
    return {column: [row[column] for row in rows] for column in columns}


def row_in_form(
    row: Mapping[str, Any], types: Mapping[str, Any], blocks: bool = False, texts: Collection[str] = ()
) -> dict[str, Any]:
    """One row in form. Columns that are folded into the messages go.

    Args:
        types: the types of the columns, as far as they are known.
        blocks: keep content blocks, for rows with images.
        texts: columns of JSON text that stands for messages.
    """
    new = dict(row)
    for column in MESSAGES:
        if column in texts:
            new[column] = listed(new.get(column))
        if isinstance(new.get(column), list):
            new[column] = messages_in_form(bare(new[column], types.get(column)), blocks)
    if _TOOLS in new:
        new[_TOOLS] = tools_in_form(bare(new[_TOOLS], types.get(_TOOLS)))
    if _KWARGS in new:
        given = parsed(bare(new[_KWARGS], types.get(_KWARGS)))
        new[_KWARGS] = {} if given is None else given
    return fold(new)


def _stream(dataset: Any) -> Any:
    first = next(iter(dataset), None)
    if first is None:
        return dataset
    texts = [name for name in MESSAGES if looks_listed(first.get(name))]
    touched = bool(texts) or any(is_conversation(first.get(name)) for name in MESSAGES) or _TOOLS in first
    touched = touched or _KWARGS in first
    empty = [name for name in _IMAGES if name in first and first[name] in ("", [])]
    if not touched and not empty:
        return dataset
    change = _StreamRow(dataset.features or {}, empty, texts)
    kept = change(first)
    return dataset.map(change, remove_columns=[name for name in first if name not in kept] or None)


class _StreamRow:
    """Brings rows of a stream into form. A stream keeps rows as they are, so no row gets keys of others afterwards."""

    def __init__(self, types: Mapping[str, Any], empty: list[str], texts: list[str]):
        self.types, self.empty, self.texts = dict(types), empty, texts

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if any(row[name] not in ("", []) for name in self.empty):
            raise ValueError(f"`{self.empty[0]}` is empty in the first row of the stream, but not in a later one.")
        blocks = any(row.get(name) for name in _IMAGES)
        new = row_in_form(row, self.types, blocks, self.texts)
        return {name: value for name, value in new.items() if name not in self.empty}


def without_empty_images(dataset: Any) -> Any:
    """A table without columns `image` and `images` that hold no image in any row; anything else unchanged."""
    names = [name for name in _IMAGES if name in (getattr(dataset, "column_names", None) or ())]
    if not names or not hasattr(dataset, "__len__"):
        return dataset
    empty = [name for name in names if _all_empty(dataset, name)]
    return dataset.remove_columns(empty) if empty else dataset


def _all_empty(dataset: Any, name: str) -> bool:
    import pyarrow.compute as pc
    import pyarrow.types as pt

    for batch in dataset.select_columns([name]).with_format("arrow").iter(_BATCH):
        values = batch[name]
        if pt.is_list(values.type) or pt.is_large_list(values.type):
            sizes = pc.list_value_length(values)
        elif pt.is_string(values.type) or pt.is_large_string(values.type):
            sizes = pc.binary_length(values)
        elif values.null_count == len(values):
            continue
        else:
            return False
        if (pc.max(sizes).as_py() or 0) > 0:
            return False
    return True


def _has_images(features: Mapping[str, Any]) -> bool:
    return any(name in features for name in _IMAGES)


def refuse_faults(dataset: Any, name: str) -> None:
    """Raise a ValueError that names the first message of a table that has no form. Streams are not looked through."""
    if not hasattr(dataset, "__len__"):
        return
    columns = [
        column for column in MESSAGES if column in dataset.column_names and not is_text(dataset.features[column])
    ]
    for column in columns:
        inner = getattr(dataset.features[column], "feature", None)
        if isinstance(inner, dict) and _is_plain(dataset.features[column]) and not _null_contents(dataset, column):
            continue
        for index, value in enumerate(dataset.select_columns([column])[column]):
            fault = message_fault(value, column) if is_conversation(value) else None
            if fault is not None:
                raise ValueError(f"Row {index} of {name}: {fault}: write its text, or remove the row.")


def _null_contents(dataset: Any, column: str) -> bool:
    for batch in dataset.select_columns([column]).with_format("arrow").iter(_BATCH):
        messages = batch[column].combine_chunks().flatten()
        if any(part.null_count for part in messages.flatten()):
            return True
    return False
