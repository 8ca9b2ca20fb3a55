"""How a check is declared: its code, gravity, cure, and the function that finds it.

A check is one small function. There are five kinds, by what they look at:

- `shape_check`: a raw row, as it was loaded or converted. A row it finds cannot be tokenized, so the others skip it.
- `conversation_check`: the same of well-formed conversations: each side, with its prompt, as one list of messages.
- `text_check`: a `Row`: prompt, responses and labels as text.
- `token_check`: a batch of `TokenRows`: the ids exactly as the trainer gets them.
- `summary_check`: what was kept of all rows of a split: lengths, hashes, labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl_plus.preflight.findings import Severity

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO


@dataclass(frozen=True)
class Check:
    """A registered check.

    Attributes:
        title: what was found, as a clause that follows "12 of 300 rows (4.0%): ".
        cure: a sentence.
        rare: up to this share of the rows it is only INFO.
    """

    code: str
    severity: Severity
    title: str
    cure: str
    function: Callable[..., Any]
    rare: float = 0.0

    def severity_at(self, share: float) -> Severity:
        return self.severity if share > self.rare or self.severity is ERROR else INFO


SHAPE: dict[str, Check] = {}
CONVERSATION: dict[str, Check] = {}
TEXT: dict[str, Check] = {}
TOKENS: dict[str, Check] = {}
SUMMARY: dict[str, Check] = {}


def _declaring(kind: dict[str, Check]) -> Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]:
    def declare(code: str, severity: Severity, title: str, cure: str, rare: float = 0.0) -> Callable[..., Any]:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            if code in every_check():
                raise ValueError(f"{code} is taken by {every_check()[code].function.__name__}.")
            kind[code] = Check(code, severity, title, cure, function, rare)
            return function

        return register

    return declare


def every_check() -> dict[str, Check]:
    """All registered checks by code, in the order of their codes."""
    return dict(sorted({**SHAPE, **CONVERSATION, **TEXT, **TOKENS, **SUMMARY}.items()))


# shape_check functions: (raw row, Kind) -> what was found, or None
shape_check = _declaring(SHAPE)
# conversation_check functions: (side -> messages) -> what was found, or None
conversation_check = _declaring(CONVERSATION)
# text_check functions: (Row) -> what was found (may be ""), or None
text_check = _declaring(TEXT)
# token_check functions: (TokenRows, Target) -> Hits, or None where the check does not apply
token_check = _declaring(TOKENS)
# summary_check functions: (Summary, Target) -> Verdict, or None
summary_check = _declaring(SUMMARY)
