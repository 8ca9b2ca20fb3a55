"""Previews in the terminal: the same is said by colour and by marks, and the text can be read back from it."""

import io
import time

import pytest
from rich.console import Console

from trl_plus.preflight.findings import Preview, Token
from trl_plus.preflight.preview_shown import TokenPreview


def shown(previews, width=100, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(TokenPreview(previews))
    return console.file.getvalue()


def styled(previews):
    """(text, style) of each piece that a colour terminal gets."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    return [(segment.text, segment.style) for segment in console.render(TokenPreview(previews)) if segment.style]


def test_marks_without_colour(preview):
    lines = [line.rstrip() for line in shown([preview()]).splitlines()]
    assert lines[0] == "not in the loss | ⟦in the loss⟧ | ⟦✂cut✂⟧ | ‹special token› | ↵ line break"
    start = lines.index("train row 3")
    assert lines[start:] == [
        "train row 3",
        "prompt (2 prompt tokens)",
        "  ‹<s>›Hello↵",
        "",
        "chosen (1 token in the loss, 2 cut)",
        "  ⟦ fine⟧⟦✂ long‹</s>›✂⟧",
        "rejected (2 tokens in the loss)",
        "  ⟦ bad‹</s>›⟧",
    ]


def test_styles_with_colour(preview):
    pieces = dict(styled([preview()]))
    assert pieces["Hello↵"].dim
    assert pieces[" fine"].bold
    assert not pieces[" fine"].strike
    assert pieces[" long"].strike
    assert pieces["</s>"].color.name == "magenta"
    assert pieces[" fine"].color is None
    assert not [text for text in pieces if set(text) & set("⟦⟧✂‹›")]


@pytest.mark.parametrize("options", [{"no_color": True, "force_terminal": True}, {"force_terminal": False}])
def test_no_colour_means_marks(preview, options):
    assert "⟦ fine⟧" in shown([preview()], **options)


def test_a_prompt_that_differs_stays_with_its_side():
    sides = {
        side: [Token(f"{side}?", False, False, False), Token("!", True, False, False)]
        for side in ("chosen", "rejected")
    }
    text = shown([Preview(0, "train", sides)])
    assert "chosen (1 prompt token, 1 token in the loss)\n  chosen?⟦!⟧" in text
    assert "rejected?⟦!⟧" in text


def test_label_and_dropped_rows():
    tokens = [Token("b", True, False, False), Token("a", False, False, True)]
    row = Preview(7, "eval", {"completion": tokens}, False, "The prompt is too long.")
    text = shown([row])
    assert "eval row 7, label false" in text
    assert "Not trained on: The prompt is too long." in text
    assert "completion (1 response token, 1 cut)" in text  # nothing of it is in the loss
    assert "⟦b⟧⟦✂a✂⟧" in text


def test_a_row_without_tokens():
    assert "completion (no tokens)" in shown([Preview(0, "train", {"completion": []})])
    assert "train row 0" in shown([Preview(0, "train", {})])


def test_marks_in_the_text_itself_are_written_out():
    row = Preview(0, "train", {"completion": [Token("⟦x⟧‹y›✂↵", True, False, False)]})
    body = shown([row]).splitlines()[-1].strip()
    assert body == r"⟦\u27e6x\u27e7\u2039y\u203a\u2702\u21b5⟧"


@pytest.mark.parametrize("colour", [True, False])
def test_text_is_shown_and_not_obeyed(colour, starts_of):
    texts = ["[red]x[/red]", "\x1b[2J\x1b]0;owned\x07", "\u202e", "\ud800", "\0", "😀", "y" * 1_000_000]
    row = Preview(0, "train", {"completion": [Token(text, True, False, False) for text in texts]}, dropped=texts[1])
    start = time.process_time()
    out = shown([row], force_terminal=colour, color_system="truecolor" if colour else None)
    assert starts_of(seconds=time.process_time() - start) < 3000
    out.encode()
    assert "[red]x[/red]" in out
    assert r"\x1b[2J" in out
    assert not {"\x07", "\u202e", "\0", "\ud800"} & set(out)
    assert "\x1b[2J" not in out
    assert out.count("y") >= 1_000_000  # a preview leaves nothing out
