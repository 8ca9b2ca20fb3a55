"""Rows in the terminal, token by token, as trained on."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

from trl_plus.preflight.findings import Preview, Token
from trl_plus.preflight.preview_parts import Kind, Stretch, heading, parts_of
from trl_plus.ui.console import printable

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
