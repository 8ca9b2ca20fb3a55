"""A row of preference data as the checks read it: prompt, responses, label, as text."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from trl_plus.data.messages import THINKING_KEYS, message_text, said, spoken
from trl_plus.data.responses import Message, is_conversation, split_response
from trl_plus.preflight.findings import EXCERPT

ROW = "_position"  # column with a row's position among the rows looked at
SOURCE_ROW = "_row"  # column with a row's index in its source
SOURCE = f"{SOURCE_ROW}_source"  # and, in a mixture, with the index of that source among its entries
IMAGES = ("image", "images")  # columns
__all__ = [
    "IMAGES", "ROLES", "ROW", "SOURCE", "SOURCE_ROW", "THINKING_KEYS", "Kind", "Row", "excerpt", "kind_of",
    "message_text", "read_row", "spoken",
]  # fmt: skip
ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython"}


@dataclass(frozen=True)
class Kind:
    """The form of a dataset's rows: the columns of sides, and whether sides are conversations.

    Attributes:
        sides: ("chosen", "rejected") or ("completion",).
        prompt: whether there is a column `prompt`.
        text_prompt: `prompt` is text next to conversations, as in UltraFeedback.
        whole: with `text_prompt`, the conversations hold the prompt themselves.
        images: rows have images, which are not looked at.
    """

    sides: tuple[str, ...]
    conversational: bool
    prompt: bool
    text_prompt: bool = False
    whole: bool = False
    images: bool = False

    @property
    def paired(self) -> bool:
        return len(self.sides) == 2


def kind_of(row: dict[str, Any]) -> Kind | None:
    """The kind of a well-formed row; None where it has no sides, or where they or the prompt are of no kind."""
    if "chosen" in row and "rejected" in row:
        sides: tuple[str, ...] = ("chosen", "rejected")
    elif "completion" in row:
        sides = ("completion",)
    else:
        return None
    values = [row[side] for side in sides]
    conversational = all(is_conversation(value) for value in values)
    if not conversational and not all(isinstance(value, str) for value in values):
        return None
    prompt = row.get("prompt")
    if not (prompt is None or isinstance(prompt, str) or (conversational and is_conversation(prompt))):
        return None
    text_prompt = conversational and isinstance(prompt, str)
    return Kind(sides, conversational, prompt is not None, text_prompt, text_prompt and len(values[0]) > 1)


def excerpt(text: str, around: int = 0) -> str:
    """The text on one line, cut to what an example shows; `around` is a position that must be in it."""
    start = max(0, around - EXCERPT // 2) if len(text) > EXCERPT else 0
    part = " ".join(text[start : start + EXCERPT].split())
    return ("..." if start else "") + part + ("..." if start + EXCERPT < len(text) else "")


@dataclass
class Row:
    """One row.

    Attributes:
        index: position among the rows looked at.
        context: messages before the response, by side; [] where the row is text.
        prompt: the prompt as text (of a conversation every turn before the response, tool calls included).
        responses: the last assistant message's text, or the side's text, by side.
        raw: the row as it was loaded.
    """

    index: int
    context: dict[str, list[Message]]
    prompt: str
    responses: dict[str, str]
    raw: dict[str, Any] = field(repr=False)
    conversational: bool = False
    implicit: bool = False
    images: bool = False

    @property
    def source_row(self) -> int:
        """The row's number in its source, from 0."""
        return self.raw.get(SOURCE_ROW, self.index)

    @property
    def chosen(self) -> str:
        return self.responses["chosen"]

    @property
    def rejected(self) -> str:
        return self.responses["rejected"]

    @property
    def paired(self) -> bool:
        return len(self.responses) == 2

    @property
    def label(self) -> bool | None:
        return None if self.paired else bool(self.raw["label"])

    @cached_property
    def turns(self) -> list[Message]:
        """The messages before the response, of the first side."""
        return next(iter(self.context.values()), [])

    def last_message(self, side: str) -> Message:
        return self.raw[side][-1]

    def answers(self) -> list[str]:
        """The text of the responses, side by side, tool calls included."""
        return [
            spoken(self.last_message(side)) if self.conversational else text for side, text in self.responses.items()
        ]

    def said(self, side: str) -> str:
        """The text of a response, with its tool calls and its thinking trace."""
        return said(self.last_message(side)) if self.conversational else self.responses[side]

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """(where, text) of everything that is read or trained on, each once."""
        prompts = [("prompt", self.prompt)]
        if self.conversational:
            turns = enumerate(self.turns)
            prompts = [(f"message {number} of the prompt", message_text(message)) for number, message in turns]
        return [*prompts, *self.responses.items()]


def read_row(raw: dict[str, Any], index: int, kind: Kind) -> Row:
    """A row that passed the shape checks, split into prompt and response by the trainer's own functions."""
    if not kind.conversational:
        return _text_row(raw, index, kind)
    row = _with_prompt_turn(raw, kind)
    split = split_response(row, kind.sides)
    context = {side: [*split["prompt"], *split[side][:-1]] for side in kind.sides}
    responses = {side: message_text(split[side][-1]) for side in kind.sides}
    prompt = "\n".join(f"{message['role']}: {spoken(message)}" for message in context[kind.sides[0]])
    return Row(index, context, prompt, responses, raw, conversational=True, images=kind.images)


def _text_row(raw: dict[str, Any], index: int, kind: Kind) -> Row:
    if kind.prompt:
        return Row(index, {}, raw["prompt"], {side: raw[side] for side in kind.sides}, raw)
    from trl import extract_prompt

    # two texts without any difference have no end of the prompt; TRL splits them anywhere
    if raw["chosen"] == raw["rejected"]:
        return Row(index, {}, "", {side: raw[side] for side in kind.sides}, raw, implicit=True)
    split = extract_prompt({side: raw[side] for side in kind.sides})
    return Row(index, {}, split["prompt"], {side: split[side] for side in kind.sides}, raw, implicit=True)


def _with_prompt_turn(raw: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """A row with a text prompt next to conversations, as `data.formats.prepare` brings it into shape."""
    if not kind.text_prompt:
        return raw
    row = dict(raw)
    text = row.pop("prompt")
    return row if kind.whole else {"prompt": [{"role": "user", "content": text}], **row}
