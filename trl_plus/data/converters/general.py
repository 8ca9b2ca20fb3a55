"""General converters: text into messages, conversations under other names, and two answers with a preference."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from trl_plus.data.converters.dialogues import tools_of
from trl_plus.data.converters.parts import (
    ANSWER,
    CHOSEN,
    CONTEXT,
    PROMPT,
    REJECTED,
    answer_turns,
    conversation,
    dialogues,
    opened,
    prompt_turns,
    whole,
)
from trl_plus.data.converters.rows import COLUMNS, Row, Shape, Unconvertible, WrongShape, labelled, pair, with_system
from trl_plus.data.responses import Message, is_conversation

_LABEL = ("label", "kto_tag", "is_good", "is_safe", "is_desirable", "desirable", "thumbs_up", "liked", "feedback")
_WANTED = {"true", "1", "yes", "desirable", "chosen", "good", "positive", "preferred", "accepted", "like", "thumbs_up",
           "thumbs up", "up", "upvote", "👍"}  # fmt: skip
_UNWANTED = {"false", "0", "-1", "no", "undesirable", "rejected", "bad", "negative", "dislike", "thumbs_down",
             "thumbs down", "down", "downvote", "👎"}  # fmt: skip
_ADDED = ("context", "input", "history", "initial_reason_steps")
_SYSTEM = (("system", "system_prompt"), ("tools",))
PROMPT_AND = (*PROMPT, "context", "messages", "conversation")
_DIALOGUE = ("messages", "conversations", "conversation", "trajectory", "dialogue", "dialog", "context_messages",
             "prompt_messages", "contents")  # fmt: skip


def text_pair(fields: Row, paired: bool) -> list[Row]:
    """A prompt and two answers of any kind, as messages. Lists of texts on both sides become a pair each."""
    _refuse_messages(fields, ("prompt", "chosen", "rejected"))
    fields = dialogues(fields, ("chosen", "rejected"))
    context = prompt_turns(fields) if "prompt" in fields else with_system(fields, [])
    sides = [_several(fields[side]) for side in ("chosen", "rejected")]
    if not all(sides):
        raise Unconvertible("a side holds no answer")
    rows = []
    for number in range(max(map(len, sides))):
        chosen, rejected = (
            opened(answer_turns(side[number % len(side)], name), fields)
            for side, name in zip(sides, ("chosen", "rejected"), strict=True)
        )
        rows.append({**pair(whole(context, [chosen, rejected]), chosen, rejected), **tools_of(fields)})
    return rows


def _refuse_messages(fields: Row, names: tuple[str, ...]) -> None:
    """Refuse rows of messages, unless another column belongs into them."""
    if all(is_conversation(fields[name]) for name in names) and not any(fields.get(name) for name in _ADDED):
        raise WrongShape("every side is a list of messages already")


def _several(value: Any) -> list[Any]:
    """The answers of one side: a list of texts holds several."""
    return value if isinstance(value, list) and all(isinstance(part, str) for part in value) else [value]


def text_labelled(fields: Row, paired: bool) -> list[Row]:
    """A prompt, one answer and its label, which may be a word."""
    answer = opened(answer_turns(fields["completion"], "completion"), fields)
    row = labelled(whole(prompt_turns(fields), [answer]), answer, _as_label(fields["label"]))
    return [{**row, **tools_of(fields)}]


def _labelled_in_form(fields: Row) -> bool:
    """True if a labelled row holds messages and a label already, and nothing that belongs into them."""
    messages = all(is_conversation(fields[name]) for name in ("prompt", "completion"))
    return messages and fields["label"] in (0, 1) and not any(fields.get(name) for name in _ADDED)


def _as_label(value: Any) -> Any:
    """A label as true or false, if it is a word or a number for one."""
    if isinstance(value, float) and value in (-1, 0, 1):
        value = int(value)
    word = str(value).strip().lower()
    return True if word in _WANTED else False if word in _UNWANTED else value


def messages_pair(fields: Row, paired: bool) -> list[Row]:
    """A conversation with the wanted answer, and the other answer as text, a message or a whole conversation."""
    turns = with_system(fields, conversation(fields["messages"], "messages"))
    other = answer_turns(fields["rejected_messages"], "rejected_messages")
    context = turns[:-1]
    if len(other) > 1 and other[0]["role"] in ("system", "user"):
        other, context = (with_system(fields, other) if turns[0]["role"] == "system" else other), []
        return [{**pair([], turns, other, ("messages", "rejected_messages")), **tools_of(fields)}]
    return [{**pair(context, turns[-1:], other, ("messages", "rejected_messages")), **tools_of(fields)}]


def messages_labelled(fields: Row, paired: bool) -> list[Row]:
    """A conversation whose last turn is the answer, and a label."""
    turns = with_system(fields, conversation(fields["messages"], "messages"))
    return [{**labelled([], turns, _as_label(fields["label"]), source="messages"), **tools_of(fields)}]


def messages_and_sides(fields: Row, paired: bool) -> list[Row]:
    """A conversation as the prompt, and two answers of any kind."""
    context = with_system(fields, conversation(fields["messages"], "messages"))
    chosen, rejected = (answer_turns(fields[side], side) for side in ("chosen", "rejected"))
    return [{**pair(whole(context, [chosen, rejected]), chosen, rejected), **tools_of(fields)}]


# -- two answers and a preference ----------------------------------------------------------------------------------

_STEMS = ("response", "answer", "completion", "output", "conversation", "conv", "human_ref", "candidate", "summary",
          "reply", "generation")  # fmt: skip
_BESIDE = re.compile(r"model|score|rating|reward|rank|source|safe|sever|categ|token|length|sha|id$|_id|name|critique|"
                     r"feedback|rational|embed|label|tag|winner|harm|quotes|log")  # fmt: skip
_ENDS = (("0", "1"), ("1", "2"), ("a", "b"), ("A", "B"))
_RATED = ("score", "rating", "reward", "winner_model", "pm_score")
_PREFERENCE = ("preference", "better_response_id", "overall_preference", "preference_strength", "winner", "preferred",
               "better_response", "better", "choice", "chosen_id", "best", "labels", "label",
               "safer_response_id")  # fmt: skip
_STRENGTHS = {"overall_preference", "preference_strength", "strength"}
_TIES = ("tie", "draw", "both", "equal", "same", "neither", "none")


def by_preference(fields: Row, paired: bool) -> list[Row]:
    """Two answers and the column that tells which one is better. Ties are left out."""
    columns = fields[COLUMNS]
    first = _first_is_better(fields["preference"], (columns["first"], columns["second"]), columns["preference"])
    if first is None:
        raise Unconvertible("`preference` is a tie")
    return _ordered(fields, first)


def by_scores(fields: Row, paired: bool) -> list[Row]:
    """Two answers with a score each, or with a mark of 1 for the better one. Equal scores are left out."""
    a, b = (_number(fields[f"{which}_score"]) for which in ("first", "second"))
    if a is None or b is None:
        raise Unconvertible("an answer has no score")
    if a == b:
        raise Unconvertible("both answers have the same score")
    rows = _ordered(fields, a > b)
    if fields[COLUMNS]["first_score"].startswith("winner"):
        return rows
    return [{**row, "score_chosen": max(a, b), "score_rejected": min(a, b)} for row in rows]


def _number(value: Any) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise WrongShape(f"a score must be a number, but is {value!r:.60}") from None
    if not isinstance(value, (int, float)):
        raise WrongShape(f"a score must be a number, but is {value!r:.60}")
    return float(value)


def _ordered(fields: Row, first: bool) -> list[Row]:
    fields = dialogues(fields, ("first", "second"))
    first_turns, second_turns = (
        _until(answer_turns(fields[which], which), fields.get("turn")) for which in ("first", "second")
    )
    chosen, rejected = (first_turns, second_turns) if first else (second_turns, first_turns)
    if "prompt" in fields:
        context = whole(prompt_turns(fields), [chosen, rejected])
    elif len(chosen) == 1:
        raise WrongShape("there is no prompt beside the answers")
    else:
        context = []
    row = {**pair(context, chosen, rejected, ("first", "second")), **tools_of(fields)}
    for name in ("weight", "margin"):
        if name in fields:
            strength = _number(fields[name])
            if strength is None:
                raise Unconvertible(f"`{name}` is null")
            row[name] = abs(strength)
    return [row]


def _until(turns: list[Message], turn: Any) -> list[Message]:
    """A conversation up to the answer that was judged, counted from 1; whole if `turn` is no number of an answer."""
    answers = [place for place, message in enumerate(turns) if message["role"] == "assistant"]
    return turns[: answers[turn - 1] + 1] if isinstance(turn, int) and 0 < turn < len(answers) else turns


def _first_is_better(value: Any, names: tuple[str, str], column: str) -> bool | None:
    """True if the first answer is preferred; None for a tie.

    Text names an answer by its column, or by the end of that. A strength is below 0 for the first answer and above for
    the second. Another number is the one that the columns of the answers end in; `labels` beside human_ref_A, as in
    SHP, is 1 for A.
    """
    ends = _ends(names)
    if value is None:
        raise Unconvertible("`preference` is null")
    if isinstance(value, str):
        return _named(value, names, ends)
    if not isinstance(value, (bool, int, float)) or value != value:
        raise WrongShape(f"`preference` must name one of the answers, but is {value!r:.60}")
    if column in _STRENGTHS or value < 0:
        return None if value == 0 else value < 0
    if ends[0].isdigit():
        if value in (int(ends[0]), int(ends[1])):
            return bool(value == int(ends[0]))
    elif names[0].startswith("human_ref"):
        return bool(value)
    raise WrongShape(f"`preference` is {value!r}, which could stand for `{names[0]}` or for `{names[1]}`")


def _named(value: str, names: tuple[str, str], ends: list[str]) -> bool | None:
    said = value.strip().lower()
    for first, name, end in zip((True, False), names, ends, strict=True):
        other = "first" if first else "second"
        stems = ("", "model_", "response_", "response ", "model ", "answer_", "assistant_", "assistant ", "output_")
        if said in {name.lower(), other, "left" if first else "right", *(stem + end.lower() for stem in stems)}:
            return first
    if not said or any(said.startswith(word) for word in _TIES):
        return None
    raise WrongShape(f"`preference` is {value!r:.60}, which names neither `{names[0]}` nor `{names[1]}`")


@cache
def _ends(names: tuple[str, str]) -> list[str]:
    """The parts in which two names differ."""
    for ends in _ENDS:
        if any(pair == names for _, pair in twins(names, ends)):
            return list(ends)
    return list(names)


def unclear_preference(values: Iterable[Any]) -> str | None:
    """Why numbers cannot be read: from 0 to 2 they may count from 0, from 1, or have 0 for a tie."""
    found = {value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)}
    if found and min(found) >= 0 and max(found) >= 2 and 0 in found:
        return "`preference` holds 0 and 2, so its numbers count no two answers: write the name of the better one"
    return None


@dataclass(frozen=True)
class TwoAnswers(Shape):
    """Rows of two answers under numbered or lettered names, as `response_0` and `response_1`.

    Attributes:
        scored: the answers have a score each, under a name with the same ends; otherwise a column names the better one.
    """

    scored: bool = False

    def columns(self, available: Sequence[str]) -> dict[str, str] | None:
        for prefix, found in self._sides(available):
            rest = [column for column in available if column not in found.values()]
            known = {column.removeprefix(prefix): column for column in sorted(rest, key=lambda c: c.startswith(prefix))}
            others = super().columns([*known, *found])  # the fields of the sides are there under their own names
            if others is not None:
                return {**{field: known.get(column, column) for field, column in others.items()}, **found}
        return None

    def _sides(self, available: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """The beginning that all names of a dataset may share, and the columns of both answers."""
        if {names[0] for names in self.needs if names[0] in _FIELDS} <= set(available):
            yield "", {field: field for field in _FIELDS if field in available}
            return
        for ends in _ENDS:
            pairs = dict(twins(available, ends))
            rated = next((pairs[frame] for word in _RATED for frame in pairs if word in frame.lower()), None)
            for frame in sorted(pairs, key=len):
                stem = next((stem for stem in _STEMS if stem in frame.lower()), None)
                if (
                    stem is None
                    or _BESIDE.search(frame.lower().removeprefix("model_"))
                    or (self.scored and rated is None)
                ):
                    continue
                sides = dict(zip(_FIELDS, (*pairs[frame], *(rated if self.scored and rated else ())), strict=False))
                prefix = frame[: frame.lower().index(stem)]
                yield prefix, sides
                if prefix:
                    yield "", sides


def twins(columns: Sequence[str], ends: tuple[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(what both names have in common, the two names) for columns whose names differ only in these ends."""
    mark = re.compile(rf"(?<![A-Za-z0-9]){ends[0]}(?![A-Za-z0-9])|(?<=[a-z]){ends[0]}(?![A-Za-z0-9])")
    for name in columns:
        for found in mark.finditer(name):
            head, tail = name[: found.start()], name[found.end() :]
            if ends[0] == "a" and head[-1:].isalpha():
                continue  # the last letter of a word
            other = f"{head}{ends[1]}{tail}"
            if other in columns:
                yield f"{head}*{tail}", (name, other)


_FIELDS = ("first", "second", "first_score", "second_score")
_CONTEXT = (PROMPT_AND, *(names for names in CONTEXT if names[0] != "history"))
_BESIDE_PAIR = (("weight",), ("margin",), ("turn",))
TEXT = (
    Shape((PROMPT, (*CHOSEN, *ANSWER), REJECTED), text_pair, CONTEXT, many=True),
    Shape(
        (PROMPT, ("completion", "response", "output", "answer"), _LABEL),
        text_labelled,
        CONTEXT,
        labelled=True,
        in_form=_labelled_in_form,
    ),
)
MESSAGES = (
    Shape((_DIALOGUE, ("rejected_messages", "rejected_response")), messages_pair, _SYSTEM),
    Shape((_DIALOGUE, CHOSEN, REJECTED), messages_and_sides, _SYSTEM),
    Shape((_DIALOGUE, _LABEL), messages_labelled, _SYSTEM, labelled=True),
)
PREFERENCE = (
    TwoAnswers((("first",), ("second",), _PREFERENCE), by_preference, (*_CONTEXT, *_BESIDE_PAIR), named=True,
               refuse=("preference", unclear_preference)),
    TwoAnswers(tuple((field,) for field in _FIELDS), by_scores, _CONTEXT, named=True, scored=True),
)  # fmt: skip
