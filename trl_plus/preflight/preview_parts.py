"""A preview cut into what is shown: the prompt that both sides share, then each side, in stretches of one kind."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, takewhile

from trl_plus.preflight.findings import Preview, Token


class Kind(StrEnum):
    """The fate of a stretch of tokens."""

    PROMPT = "prompt"
    RESPONSE = "response"
    CUT = "cut"


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens of one kind."""

    kind: Kind
    tokens: list[Token]


@dataclass(frozen=True)
class Part:
    """A titled run of tokens: "prompt", where it is shared, or a side.

    Attributes:
        title: "prompt", "chosen", "rejected" or "completion".
        counts: tokens in words.
    """

    title: str
    counts: str
    stretches: list[Stretch]


def parts_of(preview: Preview) -> list[Part]:
    """The prompt on its own where it is the same on every side, then each side without it."""
    prompts = [
        list(takewhile(lambda token: not (token.loss or token.masked), tokens)) for tokens in preview.sides.values()
    ]
    shared = prompts[0] if prompts and all(prompt == prompts[0] for prompt in prompts) else []
    trained_on = not preview.dropped
    parts = [Part("prompt", _counts(shared, trained_on), _stretches(shared))] if shared else []
    for side, tokens in preview.sides.items():
        rest = tokens[len(shared) :]
        parts.append(Part(side, _counts(rest, trained_on), _stretches(rest)))
    return parts


def heading(preview: Preview) -> str:
    """The number of the row, and its label."""
    label = "" if preview.label is None else f", label {str(preview.label).lower()}"
    return f"{preview.split} row {preview.row}{label}"


def _counts(tokens: list[Token], trained_on: bool) -> str:
    cut, loss = sum(token.cut for token in tokens), sum(token.loss and not token.cut for token in tokens)
    masked = sum(token.masked and not token.cut for token in tokens)
    prompt = len(tokens) - cut - loss - masked
    named = [
        (prompt, f"prompt {_tokens(prompt)}"),
        (loss, f"{_tokens(loss)} in the loss" if trained_on else f"response {_tokens(loss)}"),
        (masked, "masked"),
        (cut, "cut"),
    ]
    return ", ".join(f"{count:,} {name}" for count, name in named if count) or "no tokens"


def _tokens(count: int) -> str:
    return "token" if count == 1 else "tokens"


def _stretches(tokens: list[Token]) -> list[Stretch]:
    return [Stretch(kind, list(group)) for kind, group in groupby(tokens, key=_kind)]


def _kind(token: Token) -> Kind:
    if token.cut:
        return Kind.CUT
    return Kind.RESPONSE if token.loss else Kind.PROMPT
