"""A preview as it is shown: the prompt that both sides share, then each side, in stretches of one kind."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, takewhile

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

from trl_plus.preflight.findings import Preview, Token
from trl_plus.preflight.words import PARAGRAPH
from trl_plus.ui.console import clipped, printable
from trl_plus.ui.pages import render


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
    prompts = [list(takewhile(lambda token: not token.loss, tokens)) for tokens in preview.sides.values()]
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
    prompt = len(tokens) - cut - loss
    named = [
        (prompt, f"prompt {_tokens(prompt)}"),
        (loss, f"{_tokens(loss)} in the loss" if trained_on else f"response {_tokens(loss)}"),
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


# -- in the terminal ------------------------------------------------------------------------------------------------


_STYLES = {Kind.PROMPT: "dim", Kind.RESPONSE: "bold", Kind.CUT: "red strike"}
_SPECIAL = "magenta"
# Without colour: what encloses a stretch, and a special token
_MARKS = {Kind.PROMPT: ("", ""), Kind.RESPONSE: ("⟦", "⟧"), Kind.CUT: ("⟦✂", "✂⟧")}
_SPECIAL_MARKS = ("‹", "›")
LINE_END = "↵"  # a line break is a token like any other, and the last one of many templates
# Where the text itself has such a mark
_WRITTEN_OUT = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in f"⟦⟧✂‹›{LINE_END}"})
LEGEND = "not in the loss | ⟦in the loss⟧ | ⟦✂cut✂⟧ | ‹special token› | ↵ line break"


class TokenPreview:
    """Rows for `console.print`: with colour the prompt is dim, the response bright, special tokens stand out and cut
    tokens are struck through; without colour marks say the same."""

    def __init__(self, previews: list[Preview]) -> None:
        self.previews = previews

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colour = console.color_system is not None and not console.no_color
        yield _coloured_legend() if colour else Text(LEGEND)
        for preview in self.previews:
            yield Text(f"\n{printable(heading(preview))}", style="bold" if colour else "")
            if preview.dropped:
                yield Text(f"Not trained on: {printable(preview.dropped)}", style="red" if colour else "")
            for part in parts_of(preview):
                yield Text(f"{printable(part.title)} ({part.counts})", style="cyan" if colour else "")
                body = Text(overflow="fold")
                for stretch in part.stretches:
                    body.append_text(_coloured(stretch) if colour else _marked(stretch))
                yield Padding(body, (0, 0, 0, 2), expand=False)


def _coloured_legend() -> Text:
    parts = (
        ("not in the loss", "dim"),
        ("in the loss", "bold"),
        ("cut", "red strike"),
        ("special token", _SPECIAL),
        (f"{LINE_END} line break", ""),
    )
    return Text("  ").join(Text(text, style=style) for text, style in parts)


def _coloured(stretch: Stretch) -> Text:
    text = Text(style=_STYLES[stretch.kind])
    for token in stretch.tokens:
        text.append(_with_line_ends(printable(token.text)), style=_SPECIAL if token.special else "")
    return text


def _marked(stretch: Stretch) -> Text:
    before, after = _MARKS[stretch.kind]
    return Text(before + "".join(map(_marked_token, stretch.tokens)) + after)


def _marked_token(token: Token) -> str:
    text = _with_line_ends(printable(token.text).translate(_WRITTEN_OUT))
    return text.join(_SPECIAL_MARKS) if token.special else text


def _with_line_ends(text: str) -> str:
    return text.replace("\n", f"{LINE_END}\n")


# -- as a page ------------------------------------------------------------------------------------------------------


def preview_page(previews: list[Preview], source: str) -> str:
    """The rows, token by token, as trained on. `source` names the recipe or dataset."""
    return render(
        "preview.html.j2",
        name=clipped(source, PARAGRAPH),
        previews=previews,
        open_previews=len(previews),
        heading=heading,
        parts_of=parts_of,
    )
