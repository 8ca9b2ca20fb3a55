"""A mapping `columns` to paste for rows of an unknown shape."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from trl_plus.data.converters.parts import CHOSEN, PROMPT, REJECTED
from trl_plus.data.converters.rows import message_keys
from trl_plus.data.numbering import user_columns

_COMPLETION = ("completion", "response", "output", "answer", "text")
_LABEL = ("label", "kto_tag", "is_good", "desirable", "thumbs_up", "liked", "feedback", "is_safe")
_WORDS = {
    "prompt": {"prompt", "question", "instruction", "query", "problem"},
    "chosen": {"chosen", "preferred", "accepted", "positive", "better", "winner", "good", "best", "win"},
    "rejected": {
        "rejected",
        "dispreferred",
        "unpreferred",
        "nonpreferred",
        "negative",
        "worse",
        "loser",
        "bad",
        "worst",
        "lose",
    },
    "completion": {"completion", "response", "output", "answer"},
    "label": {"label", "good", "desirable", "liked", "correct", "safe"},
}
# words of columns that stand beside a text, as `chosen_model`
_BESIDE = re.compile(
    r"(^|[_\-. ])(id|ids|model|models|score|scores|rating|reward|source|tokens?|length|policy|index|name|rank)$"
)


def mapping_for(row: Mapping[str, Any], paired_method: bool) -> dict[str, str]:
    """The columns that are read -> the columns of the row that seem to hold them, or a name in capitals to fill in."""
    columns = [name for name, value in _flat(row) if value is None or isinstance(value, (str, list, dict, bool))]
    labelled = not paired_method and (
        any(name in columns for name in ("completion", *_LABEL))
        or any(isinstance(value, bool) for _, value in _flat(row))
    )
    wanted = (
        (("completion", _COMPLETION), ("label", _LABEL)) if labelled else (("chosen", CHOSEN), ("rejected", REJECTED))
    )
    found: dict[str, str] = {}
    for target, names in (("prompt", PROMPT), *wanted):
        free = [column for column in columns if column not in found.values()]
        if target == "label":
            free = [column for column in free if not isinstance(dict(_flat(row))[column], (list, dict))]
        column = next((name for name in names if name in free), None) or _worded(_WORDS[target], free)
        if target == "prompt" and column is None:
            column = next((name for name in free if _is_dialogue(row.get(name))), None)
            target = "messages" if column is not None else target
        if column != target:
            found[target] = column or f"YOUR_{target.upper()}_COLUMN"
        elif column is not None:
            found[target] = column
    return {target: column for target, column in found.items() if target != column} or found


def _flat(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The columns and, of mappings, their keys with dots between."""
    own = [(name, row[name]) for name in user_columns(row)]
    nested = [name for name, value in own if isinstance(value, Mapping) and message_keys(value) is None]
    inner = [(f"{name}.{key}", part) for name in nested for key, part in row[name].items()]
    return [(name, value) for name, value in own if name not in nested] + inner


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and message_keys(value[0]) is not None


def _worded(words: set[str], columns: Iterable[str]) -> str | None:
    """The shortest column that has one of the words in its name."""
    found = [
        column
        for column in columns
        if not _BESIDE.search(column.lower())
        and words & set(re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", column).lower()))
    ]
    return min(found, key=len, default=None)
