"""A mapping `columns` to paste for rows of an unknown shape."""

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from trl_plus.data.converters.parts import CHOSEN, PROMPT, REJECTED
from trl_plus.data.numbering import user_columns

_COMPLETION = ("completion", "response", "output", "answer", "text")
_LABEL = ("label", "kto_tag", "is_good", "desirable", "thumbs_up", "liked", "feedback")
_NEAR = 0.55


def mapping_for(row: Mapping[str, Any], paired_method: bool) -> dict[str, str]:
    """The columns that are read -> the columns of the row that seem to hold them, or a name in capitals to fill in."""
    columns = [
        name for name in user_columns(row) if row[name] is None or isinstance(row[name], (str, list, dict, bool))
    ]
    labelled = not paired_method and any(name in columns for name in ("completion", *_LABEL))
    wanted = (
        (("completion", _COMPLETION), ("label", _LABEL)) if labelled else (("chosen", CHOSEN), ("rejected", REJECTED))
    )
    found: dict[str, str] = {}
    for target, names in (("prompt", PROMPT), *wanted):
        free = [column for column in columns if column not in found.values()]
        column = next((name for name in names if name in free), None) or _nearest(names, free)
        if column != target:
            found[target] = column or f"YOUR_{target.upper()}_COLUMN"
        elif column is not None:
            found[target] = column
    return {target: column for target, column in found.items() if target != column} or found


def _nearest(names: tuple[str, ...], columns: list[str]) -> str | None:
    """The column whose name is most like one of the names; None below a similarity."""
    rated = [(SequenceMatcher(None, name, column.lower()).ratio(), column) for name in names for column in columns]
    best = max(rated, default=(0.0, None), key=lambda pair: pair[0])
    return best[1] if best[0] >= _NEAR else None
