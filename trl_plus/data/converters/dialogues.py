"""Converters of datasets that hold a chosen and a rejected answer, or one labelled answer, in a shape of their own."""

import json
import re
from collections.abc import Iterable
from typing import Any

from trl_plus.data.converters.rows import (
    Row,
    Shape,
    Unconvertible,
    WrongShape,
    assistant,
    from_value,
    in_form,
    labelled,
    messages,
    optional_text,
    pair,
    text,
    user,
    with_system,
)
from trl_plus.data.responses import Message

_TURN = re.compile(r"\n\n(Human|Assistant):")


def hh(fields: Row, paired: bool) -> list[Row]:
    """Two transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ..."; spaces around a turn go."""
    prompt = optional_text(fields, "prompt")

    def turns(side: str) -> list[Message]:
        content = text(fields, side)
        return transcript(content if _TURN.match(content) else prompt + content, side)

    return [pair([], turns("chosen"), turns("rejected"))]


def transcript(content: str, name: str) -> list[Message]:
    """The messages of a transcript, which must begin with the human and take turns."""
    opening, *parts = _TURN.split(content)
    if opening.strip() or not parts:
        raise Unconvertible(f"`{name}` does not begin with '\\n\\nHuman:'")
    speakers, contents = parts[::2], parts[1::2]
    for index, speaker in enumerate(speakers):
        if speaker != ("Human", "Assistant")[index % 2]:
            raise Unconvertible(f"turn {index} of `{name}` is {speaker}'s, out of turn")
    roles = {"Human": user, "Assistant": assistant}
    return [roles[speaker](turn.strip()) for speaker, turn in zip(speakers, contents, strict=True)]


def sharegpt_pair(fields: Row, paired: bool) -> list[Row]:
    """`conversations` and one answer per side; or sides that are whole or stand beside a `prompt`."""
    if "conversations" not in fields:
        fields = _renamed(fields, ("chosen", "rejected"))
        return [{**answers({"prompt": None, **fields}), **tools_of(fields)}]
    if "prompt" in fields:
        raise WrongShape("`prompt` and `conversations` are both there, and only one of them can be the prompt")
    sides = (from_value(fields.get(side), side) for side in ("chosen", "rejected"))
    return [{**pair(_conversation(fields), *sides), **tools_of(fields)}]


def sharegpt_labelled(fields: Row, paired: bool) -> list[Row]:
    """`conversations` whose last turn is the answer, and a label."""
    return [{**labelled([], _conversation(fields), fields["kto_tag"], "kto_tag", "conversations"), **tools_of(fields)}]


def sharegpt_completion(fields: Row, paired: bool) -> list[Row]:
    """`completion` and its label, with or without a `prompt`."""
    fields = _renamed(fields, ("completion",))
    prompt = fields.get("prompt")
    context = prompt if isinstance(prompt, list) else [user(prompt)] if prompt is not None else []
    context = with_system(fields, context)
    return [{**labelled(context, fields["completion"], fields["kto_tag"], "kto_tag"), **tools_of(fields)}]


def _parts(fields: Row, sides: tuple[str, ...]) -> tuple[str, ...]:
    """The fields that hold messages: the sides, and a prompt that is no text."""
    prompt = fields.get("prompt")
    return sides if prompt is None or isinstance(prompt, str) else ("prompt", *sides)


def _renamed(fields: Row, sides: tuple[str, ...]) -> Row:
    """The fields with their messages as {role, content}."""
    return {**fields, **{part: from_value(fields[part], part) for part in _parts(fields, sides)}}


def _pair_in_form(fields: Row) -> bool:
    return "conversations" not in fields and in_form(fields, _parts(fields, ("chosen", "rejected")))


def _completion_in_form(fields: Row) -> bool:
    return in_form(fields, _parts(fields, ("completion",)))


def _conversation(fields: Row) -> list[Message]:
    return with_system(fields, from_value(fields.get("conversations"), "conversations"))


def tools_of(fields: Row) -> Row:
    """The column `tools`, if there is one. TRL reads its text as JSON, so blank text must be null."""
    if "tools" not in fields:
        return {}
    tools = fields["tools"]
    return {"tools": None if not tools or (isinstance(tools, str) and not tools.strip()) else _as_json(tools)}


def openai(fields: Row, paired: bool) -> list[Row]:
    """OpenAI's preference format: `input` with messages and tools, two lists of output messages."""
    given = fields["input"]
    if given is None:
        raise Unconvertible("`input` is null")
    if not isinstance(given, dict) or "messages" not in given:
        raise WrongShape(f"`input` must be {{messages, tools}}, but is {given!r:.60}")
    context = messages(given["messages"], "input.messages")
    names = ("preferred_output", "non_preferred_output")
    return [
        {
            **pair(context, *(messages(fields[name], name) for name in names), names),
            **tools_of({"tools": given.get("tools")}),
        }
    ]


def _as_json(tools: Any) -> str:
    """Tools as JSON text without the nulls with which a table fills the keys that a tool does not have."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(part) for key, part in value.items() if part is not None}
        return [bare(part) for part in value] if isinstance(value, list) else value

    return tools if isinstance(tools, str) else json.dumps(bare(tools), ensure_ascii=False)


def alpaca_pair(fields: Row, paired: bool) -> list[Row]:
    """`instruction`, `input` and two texts."""
    return [pair(_alpaca_prompt(fields), *([assistant(text(fields, side))] for side in ("chosen", "rejected")))]


def alpaca_preference(fields: Row, paired: bool) -> list[Row]:
    """Two outputs and `preference`: 1 for the first, 2 for the second, numbers between for how sure; 0 and 1.5 draw."""
    prompt, value = _alpaca_prompt(fields), fields["preference"]
    if value is None:
        raise Unconvertible("`preference` is null")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value == 0 or 1 <= value <= 2):
        raise WrongShape(f"`preference` must be a number from 1 to 2, but is {value!r:.60}")
    if value in (0, 1.5):
        raise Unconvertible("`preference` is a draw")
    first, second = ([assistant(text(fields, side))] for side in ("output_1", "output_2"))
    return [pair(prompt, first, second) if value < 1.5 else pair(prompt, second, first)]


def doubtful_coding(values: Iterable[Any]) -> str | None:
    """Why a column `preference` of zeros and ones cannot be read: 0 is a draw in Alpaca and an output elsewhere."""
    if {value for value in values if isinstance(value, (int, float)) and value == value} != {0, 1}:
        return None
    return (
        "`preference` is always 0 or 1, and 0 may stand for an output or for a draw: write 1 where `output_1` is "
        "better and 2 where `output_2` is, as Alpaca does, and remove draws, or make `chosen` and `rejected`"
    )


def alpaca_ordered(fields: Row, paired: bool) -> list[Row]:
    """`instruction`, `input`, and a list of two outputs, the better one first."""
    given = fields["output"]
    if not isinstance(given, list) or len(given) > 2 or not all(isinstance(answer, str) for answer in given):
        raise WrongShape(f"`output` must be a list of two texts, but is {given!r:.60}")
    if len(given) < 2:
        raise Unconvertible(f"`output` holds {len(given)} answers and not two")
    return [pair(_alpaca_prompt(fields), *([assistant(answer)] for answer in given))]


def alpaca_labelled(fields: Row, paired: bool) -> list[Row]:
    """`instruction`, `input`, one `output` and its label."""
    return [labelled(_alpaca_prompt(fields), [assistant(text(fields, "output"))], fields["kto_tag"], "kto_tag")]


def _alpaca_prompt(fields: Row) -> list[Message]:
    """System text, earlier exchanges, and the instruction with its input on the next line."""
    given = optional_text(fields, "input")
    last = user(text(fields, "instruction") + (f"\n{given}" if given else ""))
    turns: list[Message] = []
    for exchange in fields.get("history") or []:
        if not isinstance(exchange, list) or len(exchange) != 2 or not all(isinstance(part, str) for part in exchange):
            raise WrongShape(f"`history` must hold [question, answer] texts, but holds {exchange!r:.60}")
        turns += [user(exchange[0]), assistant(exchange[1])]
    return with_system(fields, [*turns, last])


def pairs_to_unpaired(fields: Row, paired: bool) -> list[Row]:
    """A pair -> its chosen side, desirable, and its rejected side, undesirable, one after the other."""
    if isinstance(fields["chosen"], str) or isinstance(fields["rejected"], str):
        if "prompt" not in fields:
            raise WrongShape("`chosen` is text and there is no column `prompt` to tell where the answer begins")
        prompt: Any = text(fields, "prompt")
        sides = {side: text(fields, side) for side in ("chosen", "rejected")}
    else:
        split = answers(fields)
        prompt, sides = split["prompt"], {side: split[side] for side in ("chosen", "rejected")}
    return [{"prompt": prompt, "completion": sides[side], "label": side == "chosen"} for side in sides]


def answers(fields: Row) -> Row:
    """The pair of message lists `chosen` and `rejected`, beside a prompt of any kind.

    A text prompt becomes the user's turn where the sides are single answers; where they are whole conversations it
    repeats their first turns and is not needed.
    """
    chosen, rejected = (messages(fields[side], side) for side in ("chosen", "rejected"))
    prompt = fields.get("prompt")
    if isinstance(prompt, list):
        context = messages(prompt, "prompt")
    else:
        context = [user(text(fields, "prompt"))] if len(chosen) == len(rejected) == 1 else []
    own_system = not context and chosen[0]["role"] == "system"
    return pair(context if own_system else with_system(fields, context), chosen, rejected)


_LABEL = ("kto_tag", "label")
_ALPACA = (("input",), ("system",), ("history",))

HH = (Shape((("chosen",), ("rejected",)), hh, (("prompt",),)),)
SHAREGPT = (
    Shape(
        (("chosen",), ("rejected",)),
        sharegpt_pair,
        (("conversations",), ("prompt",), ("system",), ("tools",)),
        in_form=_pair_in_form,
    ),
    Shape((("conversations",), _LABEL), sharegpt_labelled, (("system",), ("tools",)), labelled=True),
    Shape(
        (("completion",), _LABEL),
        sharegpt_completion,
        (("prompt",), ("system",), ("tools",)),
        labelled=True,
        in_form=_completion_in_form,
    ),
)
OPENAI = (Shape((("input",), ("preferred_output",), ("non_preferred_output",)), openai),)
ALPACA = (
    Shape((("instruction",), ("chosen",), ("rejected",)), alpaca_pair, _ALPACA),
    Shape(
        (("instruction",), ("output_1",), ("output_2",), ("preference",)),
        alpaca_preference,
        _ALPACA,
        refuse=("preference", doubtful_coding),
    ),
    Shape((("instruction",), ("output",), _LABEL), alpaca_labelled, _ALPACA, labelled=True),
    Shape((("instruction", "prompt"), ("output", "outputs")), alpaca_ordered, _ALPACA, holds=("output", list)),
)
PAIRS_TO_UNPAIRED = (Shape((("chosen",), ("rejected",)), pairs_to_unpaired, (("prompt",),), many=True),)
