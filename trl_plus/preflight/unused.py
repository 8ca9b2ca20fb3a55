"""D117: columns with text that is not trained on, under names that have no known meaning."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from statistics import median
from typing import Any

import numpy as np

from trl_plus.data.numbering import user_columns
from trl_plus.data.unused import PROMPT_PARTS, texts_in, unused
from trl_plus.preflight.checks.shape import conversations
from trl_plus.preflight.findings import Example, Finding, Severity
from trl_plus.preflight.registry import CONVERSATION, SHAPE
from trl_plus.preflight.rows import IMAGES, SOURCE_ROW, Kind, Row, excerpt, kind_of, message_text, read_row

CODE = "D117"
TITLE = "a column with text is not used"
CURE = (
    "Leave it as it is if it does not belong to the prompt (`columns: {NAME: null}` leaves it out). If it is: "
    "`columns: {context: NAME}` with `converter: text` puts it in front of the question."
)
_LOOK = 100  # rows
_PROSE = 4  # words from which a text says something; a name or a label has fewer
_USED = {"prompt", "chosen", "rejected", "completion", "label", "tools", "chat_template_kwargs", "weight", *IMAGES}
# columns that tell of the answers, or where the row comes from, and are no part of a prompt
_BESIDE = re.compile(
    r"(^|[_\-.])(ids?|uuid|hash|sha\d*|sources?|models?|policy|policies|license|urls?|links?|dates?|time|timestamp|lang|"
    r"language|categor\w+|tags?|types?|subset|split|annotators?|rationales?|reasons?|feedbacks?|explanations?|critiques?|"
    r"justifications?|statement|elaboration|comments?|notes?|metadata|meta|info|judges?|judge?ments?|generations?|"
    r"generated|responses?|candidates?|completions?|outputs?|answers?|solutions?|reference|truth|original|raw|evaluation|"
    r"scores?|ratings?|ranks?|preferences?|chosen|rejected|error|thoughts?|thinking|reasoning)($|[_\-.])",
    re.IGNORECASE,
)


def unused_columns(split: str, dataset: Any, kind: Kind) -> Iterator[Finding]:
    """One finding that names every column whose text is in no prompt and no response of a sample of rows.

    None if they hold names and labels only. It is a warning if the name of a column with sentences does not say that it
    tells of the answers or of where the row comes from.
    """
    columns = user_columns(dataset.column_names or next(iter(dataset), {}))
    names = [name for name in columns if name not in (*_USED, *PROMPT_PARTS)]
    rows = [raw for raw in _sample(dataset) if names and kind_of(raw) == kind and not _misshapen(raw, kind)]
    found: Counter[str] = Counter()
    lengths: dict[str, list[int]] = {name: [] for name in names}
    examples: list[Example] = []
    for raw in rows:
        gone = unused(raw, names, _said(read_row(raw, 0, kind)))
        gone = [name for name in gone if texts_in(raw[name])]
        found.update(gone)
        for name in gone:
            lengths[name].append(_words(texts_in(raw[name])))
        if gone and len(examples) < 3:
            examples.append(
                Example(raw.get(SOURCE_ROW, 0), f"`{gone[0]}`: {excerpt(' '.join(texts_in(raw[gone[0]])))}")
            )
    prose = [name for name in found if median(lengths[name]) >= _PROSE]
    if not prose:
        return
    doubtful = [name for name in prose if not _BESIDE.search(name)]
    listed = ", ".join(f"`{name}`" for name in (*doubtful, *(name for name in found if name not in doubtful)))
    severity = Severity.WARNING if doubtful else Severity.INFO
    sentence = f"The text of {listed} is not trained on."
    yield Finding(CODE, severity, split, TITLE, sentence, 0, len(rows), CURE, tuple(examples))


def _misshapen(raw: dict[str, Any], kind: Kind) -> bool:
    """True if a row cannot be read, which other findings tell."""
    if any(check.function(raw, kind) for check in SHAPE.values()):
        return True
    return kind.conversational and any(check.function(conversations(raw, kind)) for check in CONVERSATION.values())


def _sample(dataset: Any) -> Iterable[dict[str, Any]]:
    """Rows spread over a table, or the first ones of a stream."""
    if not hasattr(dataset, "__len__"):
        return islice(iter(dataset), _LOOK)
    places = np.unique(np.linspace(0, len(dataset) - 1, min(_LOOK, len(dataset))).round().astype(int))
    return iter(dataset.select(places)) if len(places) else ()


def _said(row: Row) -> list[str]:
    last = [message_text(row.last_message(side)) for side in row.responses] if row.conversational else []
    return [row.prompt, *row.responses.values(), *last]


def _words(texts: list[str]) -> int:
    """Words of the longest text; five signs of a script without spaces count as one."""
    return max((max(len(text.split()), sum(ord(sign) > 0x2E7F for sign in text) // 2) for text in texts), default=0)
