"""The tokens of a row that are in the loss: whole turns by `train_on`, and spans inside of them by `mask`.

A conversation is rendered twice, once with marks round the texts of the assistant. The marks are characters that no
template looks for, so without them both renderings must be the same text; a template for which they are not is refused.
A turn begins where the same conversation, cut before the turn and opened for an answer, ends, and it ends where the
conversation cut behind the turn does. Characters become tokens by the tokenizer's own offsets.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import numpy as np

from trl_plus.data.messages import THINKING_KEYS
from trl_plus.data.responses import Message, is_conversation
from trl_plus.data.templates import template_arguments
from trl_plus.upstream.tokens import offsets_of, write

TRAIN_ON = ("last", "all", "final_answer", "completion")
MASKS = ("think", "tool_results", "tool_calls")
LOSS_MASK = "_loss_mask"  # the end of the name of a side's column
Span = tuple[int, int]  # characters of a rendered conversation: first, and one behind the last

_NAMES = ("think", "thinking", "thought", "thoughts", "reasoning", "reflection", "seed:think", "longcat_think")
# How thinking blocks begin and end, and whether an end without a beginning closes one, as behind an opened prompt
THINKING = (
    *((f"<{name}>", f"</{name}>", True) for name in _NAMES),
    ("<|START_THINKING|>", "<|END_THINKING|>", True),
    ("<|begin_of_thought|>", "<|end_of_thought|>", True),
    ("[THINK]", "[/THINK]", True),
    ("◁think▷", "◁/think▷", True),
    ("<|channel>thought", "<channel|>", True),
    ("<|channel|>analysis<|message|>", "<|end|>", False),
    ("to=self<|message|>", "<|eom|>", False),
)
_IN_EVERY_TAG = "<[◁"
CALLS = re.compile(
    r"<(tool_call|function_call|tool_code|invoke)>.*?</\1>|<\|tool_call_start\|>.*?<\|tool_call_end\|>", re.DOTALL
)
RESULTS = re.compile(
    r"<(tool_response|tool_result|tool_output|function_response|function_result|observation|interpreter)>.*?</\1>"
    r"|<\|tool_response_start\|>.*?<\|tool_response_end\|>|<\|tool_response>.*?<tool_response\|>",
    re.DOTALL,
)
_HALF_A_TAG = re.compile(r"[<\[][^<>\[\]\s]*\Z")
_REST_OF_A_TAG = re.compile(r"\A[^<>\[\]\s]*[>\]]")
_FIRST_MARK, _LAST_MARK = 0xE000, 0xF8FF  # Unicode's private use area


class SpanFault(ValueError):
    """A row whose turns or spans cannot be located: the rest of a sentence, with the fix."""


@dataclass(frozen=True)
class Selection:
    """The parts of a completion that are trained on.

    Attributes:
        train_on: one of `TRAIN_ON`.
        mask: some of `MASKS`.
    """

    train_on: str = "last"
    mask: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: Any) -> "Selection":
        """The selection of a training configuration, ours or TRL's."""
        return cls(getattr(args, "train_on", "last"), tuple(getattr(args, "mask", None) or ()))

    @property
    def whole_response(self) -> bool:
        """True if every token of the last assistant turn is trained on, and no other one."""
        return self.train_on == "last" and not self.mask

    @property
    def keeps_turns(self) -> bool:
        """True if a completion keeps its earlier turns instead of giving them to the prompt."""
        return self.train_on in ("all", "completion")


def loss_masks(
    row: dict[str, Any], sides: tuple[str, ...], processing_class: Any, selection: Selection
) -> dict[str, list[bool]]:
    """`<side>_loss_mask` of a tokenized row: for each token of `<side>_ids`, whether it is in the loss.

    Raises:
        SpanFault: the row's turns or spans cannot be located.
    """
    return {f"{side}{LOSS_MASK}": side_mask(row, side, processing_class, selection).tolist() for side in sides}


def side_mask(row: dict[str, Any], side: str, processing_class: Any, selection: Selection) -> Any:
    """The mask of one side, bool, (tokens of the side,)."""
    ids = [*row["prompt_ids"], *row[f"{side}_ids"]]
    if selection.train_on == "completion" and not selection.mask:
        return np.ones(len(row[f"{side}_ids"]), bool)
    if is_conversation(row[side]):
        conversation = Rendering(processing_class, [*row["prompt"], *row[side]], template_arguments(row))
        text, special = conversation.text, False
    else:
        conversation, text, special = None, row["prompt"] + row[side], True
    offsets = offsets_of(processing_class, text, ids, add_special_tokens=special)
    if offsets is None:
        raise SpanFault(
            "`train_on` and `mask` cannot place text in the tokens, since the tokenizer has no offsets for them. "
            "Fix: use a fast tokenizer (`use_fast`), or remove `train_on` and `mask`."
        )
    starts = np.maximum.accumulate(offsets[:, 0])
    ends = np.maximum(offsets[:, 1], starts)
    begin = len(row["prompt_ids"])
    if conversation is None:
        turns = [(int(starts[begin]) if begin < len(ids) else len(text), len(text))]
        out = _out(text, turns[0], think_blocks(text, *turns[0]), selection)
    else:
        turns, out = _turns(conversation, len(row["prompt"]), selection)
    kept = np.zeros(len(ids), bool)
    for start, end in [(0, len(text))] if selection.train_on == "completion" else turns:
        behind = np.inf if end == len(text) else end  # what a tokenizer adds to the end
        kept |= ((ends > start) | ((starts == ends) & (starts >= start))) & (ends <= behind) & (starts < behind)
    for start, end in out:
        kept &= ~((starts < end) & (ends > start))
    return kept[begin:]


def _turns(conversation: "Rendering", first: int, selection: Selection) -> tuple[list[Span], list[Span]]:
    """The assistant's turns that are trained on, from message `first`, and the spans in them that are not."""
    last = len(conversation.messages) - 1
    numbers = [last]
    if selection.keeps_turns:
        numbers = [n for n in range(first, last + 1) if conversation.messages[n]["role"] == "assistant"]
    turns = conversation.turns(numbers)
    out: list[Span] = []
    for number, turn in turns.items():
        asked = "think" in selection.mask or selection.train_on == "final_answer"
        blocks = conversation.think(number, turn) if asked else []
        out += _out(conversation.text, turn, blocks, selection)
        if selection.train_on != "completion":
            out += conversation.results(turn)
        if "tool_calls" in selection.mask:
            out += conversation.calls(number, turn)
    return list(turns.values()), out


def _out(text: str, turn: Span, blocks: list[Span], selection: Selection) -> list[Span]:
    """The spans of the text of one turn that are not in the loss."""
    out = blocks if "think" in selection.mask else []
    if selection.train_on == "final_answer" and blocks:
        out = [*out, (turn[0], max(end for _, end in blocks))]
    for name, pattern in (("tool_results", RESULTS), ("tool_calls", CALLS)):
        if name in selection.mask:
            out = [*out, *(found.span() for found in pattern.finditer(text, *turn))]
    return out


def think_blocks(text: str, start: int = 0, end: int | None = None) -> list[Span]:
    """The thinking blocks of a turn, tags included. One at its beginning that is never closed reaches to its end.

    Args:
        start, end: where the turn begins and ends in the text. The prompt before it may have opened a block.
    """
    end = len(text) if end is None else end
    found: list[Span] = []
    if not any(character in text for character in _IN_EVERY_TAG):  # most texts: preflight asks for every response
        return found
    for opener, closer, closes_alone in THINKING:
        position = start
        opening, closing = text.find(opener, start, end), text.find(closer, start, end)
        begins = opening >= 0 and not text[start:opening].strip()
        if begins and closing >= 0 and closing < opening:
            closing = text.find(closer, opening, end)
        opened_before = text[:start].rstrip().endswith(opener)
        alone = closes_alone and closing >= 0 and not 0 <= opening < closing and not _in_prose(text, closing, closer)
        if begins or opened_before or alone:
            position = end if closing < 0 else closing + len(closer)
            found.append((start, position))
        while (opening := text.find(opener, position, end)) >= 0:
            closing = text.find(closer, opening, end)
            if closing < 0:
                break
            position = closing + len(closer)
            if text[opening - 1] in "\n>]":  # not a tag that a sentence mentions
                found.append((opening, position))
    return sorted(found)


def _in_prose(text: str, place: int, tag: str) -> bool:
    """True if a sentence mentions the tag at a place: between backticks or spaces."""
    around = text[max(0, place - 1) : place], text[place + len(tag) : place + len(tag) + 1]
    return around[0] == "`" or around == (" ", " ")


class Rendering:
    """A conversation as a chat template writes it, and where its parts are in it.

    Args:
        arguments: what else the template is given.

    Attributes:
        text: the conversation as it is tokenized.
        messages: its messages, as the template takes them.
    """

    def __init__(self, processing_class: Any, messages: list[Message], arguments: dict[str, Any]) -> None:
        self._processing_class, self._arguments, self.messages = processing_class, arguments, messages
        self.text = self._write(messages)
        free = iter(_free_marks(self.text + str(messages)))
        self._marks: list[dict[str, str]] = []
        self._marked: list[Message] = []
        for message in messages:
            marks: dict[str, str] = {}
            self._marked.append(_marked(message, marks, free))
            self._marks.append(marks)
        self._known: dict[int, tuple[str, dict[str, int]]] = {}

    def _write(self, messages: list[Message], opened: bool = False) -> str:
        return write(self._processing_class, messages, add_generation_prompt=opened, **self._arguments)

    def _until(self, number: int) -> tuple[str, dict[str, int]]:
        """The text of the conversation that ends with a message, and the place of each mark in it."""
        if number not in self._known:
            plain = self.text if number == len(self.messages) - 1 else self._write(self.messages[: number + 1])
            marked, places = self._write(self._marked[: number + 1]), {}
            every = {mark for marks in self._marks for mark in marks.values()}
            parts, length = [], 0
            for part in re.split(f"([{''.join(sorted(every))}])", marked) if every else [marked]:
                if part in every:
                    places.setdefault(part, length)
                else:
                    parts.append(part)
                    length += len(part)
            if "".join(parts) != plain:
                raise SpanFault(
                    "the chat template writes other text when a turn changes, so its parts cannot be located for "
                    "`train_on` and `mask`. Fix: use another template (`chat_template_path`; TRL ships training "
                    "templates), or remove the keys."
                )
            self._known[number] = plain, places
        return self._known[number]

    def turns(self, numbers: Iterable[int]) -> dict[int, Span]:
        """Earlier turns of the assistant by the number of their message; one that writes nothing is left out."""
        found: dict[int, Span] = {}
        behind = 0
        for number in numbers:
            turn = self._turn(number, behind)
            if turn is not None:
                found[number] = turn
                behind = turn[1]
        return found

    def _turn(self, number: int, behind: int) -> Span | None:
        whole, places = self._until(len(self.messages) - 1)
        alone, own = self._until(number)
        opened = self._write(self.messages[:number], opened=True)
        begin = _shared(opened, alone)
        marks = sorted((mark for mark in self._marks[number].values() if mark in places and mark in own), key=own.get)
        if not _only_tags(opened[begin:]) and marks:  # the template writes earlier turns in another way, too
            header = opened[_shared(self._write(self.messages[:number]), opened) :]
            begin = self._behind_header(alone, header, 0, own[marks[0]], number)
        if number == len(self.messages) - 1:
            return begin, len(whole)
        if not marks:
            if self._marks[number]:
                raise SpanFault(
                    f"the chat template leaves out message {number}, which `train_on` asks for. Fix: use a template "
                    "that writes every turn, or `train_on: last`."
                )
            return None
        first, last = marks[0], marks[-1]
        shared = _shared(whole[: places[first]][::-1], alone[begin : own[first]][::-1])
        if shared == own[first] - begin:
            start = places[first] - shared
        else:  # the template writes this turn in another way when others follow
            header = alone[_shared(self._write(self.messages[:number]), alone) : begin]
            start = self._behind_header(whole, header, behind, places[first], number)
        end = places[last] + _shared(whole[places[last] :], alone[own[last] :])
        if last == self._marks[number].get("answer end") and len(alone) - own[last] > end - places[last]:
            end = places[last] + len(_HALF_A_TAG.sub("", whole[places[last] : end]))
        return start, end

    def _behind_header(self, text: str, header: str, behind: int, before: int, number: int) -> int:
        """The place behind the header of a turn. The end of a header that opens a thinking block may be missing."""
        for length in range(len(header), 0, -1):
            place = text.rfind(header[:length], behind, before)
            if place >= 0:
                if _only_tags(header[length:]) and header[:length].strip():
                    return place + length
                break
        raise SpanFault(
            f"the beginning of message {number} cannot be located in what the chat template writes, for `train_on` and "
            "`mask`. Fix: use another template (`chat_template_path`), or remove the keys."
        )

    def think(self, number: int, turn: Span) -> list[Span]:
        """The thinking blocks of a turn."""
        _, places = self._until(len(self.messages) - 1)
        marks = self._marks[number]
        found = think_blocks(self.text, *turn)
        for name in ("answer", "opened"):  # a block that is never closed or opened, behind what the template writes
            place = places.get(marks.get(name, ""))
            if place is not None:
                found += [block for block in think_blocks(self.text, place, turn[1]) if block not in found]
        trace = places.get(marks.get("think", ""))
        if trace is not None and not any(start <= trace < end for start, end in found):
            raise SpanFault(
                f"the chat template writes the thinking trace of message {number} between tags that are not known "
                "here. Fix: use a template that writes it as <think>...</think>, or remove `mask: think` and "
                "`train_on: final_answer`."
            )
        return sorted(found)

    def results(self, turn: Span) -> list[Span]:
        """Results of tools that the template writes inside a turn of the assistant."""
        _, places = self._until(len(self.messages) - 1)
        inside = [places[m["result"]] for m in self._marks if m.get("result") in places]
        inside = [place for place in inside if turn[0] <= place < turn[1]]
        if not inside:
            return []
        spans = [found.span() for found in RESULTS.finditer(self.text, *turn)]
        if any(not any(start <= place < end for start, end in spans) for place in inside):
            raise SpanFault(
                "the chat template writes results of tools inside the assistant's turn, between tags that are not "
                "known here. Fix: use another template (`chat_template_path`), or `train_on: last`."
            )
        return spans

    def calls(self, number: int, turn: Span) -> list[Span]:
        """The tool calls of a turn, with what the template writes round them."""
        message = self.messages[number]
        if not message.get("tool_calls"):
            return []
        _, places = self._until(len(self.messages) - 1)
        marks = self._marks[number]
        start, end = turn
        if marks.get("call") not in places:
            raise SpanFault(
                f"the chat template does not write the tool calls of message {number}, which `mask: tool_calls` looks "
                "for. Fix: use a template that writes them, or remove them from the rows."
            )
        call = places[marks["call"]]
        blocks = [block[1] for block in think_blocks(self.text, start, end) if block[1] <= call]
        results = [result[0] for result in self.results(turn) if result[0] >= call]
        answer, behind = places.get(marks.get("answer", "")), places.get(marks.get("answer end", ""))
        if answer is not None and answer > call:
            return [(max([start, *blocks]), min([answer, *results]))]
        begin = max([start, *blocks, *([behind] if behind is not None else [])])
        return [(begin, min([end - self._closing(number, end), *results]))]

    def _closing(self, number: int, end: int) -> int:
        """Length of what closes a turn at the end of its calls: what closes one that only holds text."""
        before = self.messages[:number]
        text = "alphabetagamma"
        content = [{"type": "text", "text": text}] if isinstance(self.messages[number].get("content"), list) else text
        written = self._write([*before, {"role": "assistant", "content": content}])
        closing = written[written.rfind(text) + len(text) :]
        shared = closing[len(closing) - _shared(self.text[:end][::-1], closing[::-1]) :]
        return len(_REST_OF_A_TAG.sub("", shared))


def _shared(a: str, b: str) -> int:
    """Number of characters that two texts begin with alike."""
    return len(commonprefix([a, b]))  # noqa: RUF071


def _only_tags(text: str) -> bool:
    """True if text is nothing but the tags of a thinking block."""
    for opener, closer, _ in THINKING:
        text = text.replace(opener, "").replace(closer, "")
    return not text.strip()


def _free_marks(text: str) -> Iterator[str]:
    used = set(text)
    return (chr(code) for code in range(_FIRST_MARK, _LAST_MARK + 1) if chr(code) not in used)


def _marked(message: Message, marks: dict[str, str], free: Iterator[str]) -> Message:
    """A message of the assistant or a tool with marks round its texts, which `marks` gets by what they stand for."""
    new = dict(message)
    if message["role"] in ("tool", "function", "ipython") and isinstance(message.get("content"), str):
        new["content"] = _enclosed(message["content"], 0, "result", marks, free)
    if message["role"] != "assistant":
        return new
    for key in THINKING_KEYS:
        if isinstance(message.get(key), str):
            new[key] = _enclosed(message[key], 0, "think", marks, free)
    content = message.get("content")
    if isinstance(content, str):
        new["content"] = _enclosed_answer(content, marks, free)
    elif isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        text = content[0].get("text")
        if isinstance(text, str):
            new["content"] = [{**content[0], "text": _enclosed_answer(text, marks, free)}]
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls and isinstance(calls[0], dict):
        new["tool_calls"] = [_marked_call(calls[0], marks, free), *calls[1:]]
    return new


def _enclosed_answer(text: str, marks: dict[str, str], free: Iterator[str]) -> str:
    blocks = think_blocks(text)
    behind = blocks[-1][1] if blocks and blocks[-1][1] < len(text) else 0
    text = _enclosed(text, behind, "answer", marks, free)
    if blocks and not any(text.lstrip().startswith(opener) for opener, _, _ in THINKING):  # which the prompt opened
        marks["opened"] = next(free)
        place = len(text) - len(text.lstrip())
        text = text[:place] + marks["opened"] + text[place:]
    return text


def _enclosed(text: str, start: int, name: str, marks: dict[str, str], free: Iterator[str]) -> str:
    """The text with marks round what it holds from `start`, white space at its ends left outside of them."""
    part = text[start:]
    core = part.strip()
    if not core:
        return text
    marks[name], marks[f"{name} end"] = next(free), next(free)
    place = start + part.index(core)
    return text[:place] + marks[name] + core + marks[f"{name} end"] + text[place + len(core) :]


def _marked_call(call: Message, marks: dict[str, str], free: Iterator[str]) -> Message:
    inner = call.get("function")
    if isinstance(inner, dict):
        return {**call, "function": _marked_call(inner, marks, free)}
    if not isinstance(call.get("name"), str):
        return call
    marks["call"] = next(free)
    return {**call, "name": marks["call"] + call["name"]}
