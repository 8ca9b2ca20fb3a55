"""D4xx, too: what the chat template leaves out, refuses, or is not asked for."""

import re
from functools import cache
from typing import Any

import numpy as np

from trl_plus.preflight.checks.tokens import TAIL
from trl_plus.preflight.checks.turns import templated
from trl_plus.preflight.registry import ERROR, WARNING, token_check
from trl_plus.preflight.rows import THINKING_KEYS, Row, excerpt, message_text
from trl_plus.preflight.tally import Hits
from trl_plus.preflight.target import Target
from trl_plus.preflight.tokens import TokenRows

_PROBE = 24  # characters by which a text is found again in what the template wrote
_THINK = re.compile(r"<think(?:ing)?>(.+?)</think(?:ing)?>", re.DOTALL)


@token_check(
    "D407",
    WARNING,
    "the chat template leaves out a tool call or a thinking trace of the response",
    "Use a template that writes them, or remove them from the rows: they are not trained on.",
)
def dropped_by_template(tokens: TokenRows, target: Target) -> Hits | None:
    if not target.kind.conversational:
        return None
    lost: dict[int, str] = {}
    for place, row in enumerate(tokens.rows):
        for side in tokens.sides:
            probes = _probes(row.last_message(_raw_side(row, side, tokens, place)))
            if probes:
                written = _squeezed(target.tokenizer.decode(tokens.sides[side][place]))
                gone = [what for what, text in probes if text not in written]
                if gone:
                    lost[place] = f"{side}: {gone[0]}"
    mask = np.zeros(len(tokens.index), bool)
    mask[list(lost)] = True
    return Hits(mask, lambda place: lost[place])


def _raw_side(row: Row, side: str, tokens: TokenRows, place: int) -> str:
    """The column that a token row's side comes from: a pair that was split in two has two of them."""
    if not row.paired or side != "completion":
        return side
    return "chosen" if tokens.label is not None and tokens.label[place] else "rejected"


def _probes(message: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, text to look for) of the parts of a message that templates are known to leave out."""
    found = []
    for call in message.get("tool_calls") or []:
        name = (call.get("function") or call).get("name") if isinstance(call, dict) else None
        if name:
            found.append((f"the call of {name}", _squeezed(name)))
    thoughts = [message.get(key) for key in THINKING_KEYS]
    match = _THINK.search(message_text(message))
    for text in (*thoughts, match and match.group(1)):
        if isinstance(text, str) and text.strip():
            found.append((f"the thinking {excerpt(text)[:40]!r}", _squeezed(text)[:_PROBE]))
    return found


def _squeezed(text: str) -> str:
    return "".join(text.split())


@token_check(
    "D408",
    WARNING,
    "the chat template leaves out the system message",
    "Put its text into the first user message, or use a template that has a place for it.",
)
def system_dropped(tokens: TokenRows, target: Target) -> Hits | None:
    if not target.kind.conversational:
        return None
    mask = np.zeros(len(tokens.index), bool)
    for place, row in enumerate(tokens.rows):
        if row.turns and row.turns[0]["role"] in ("system", "developer"):
            probe = _squeezed(message_text(row.turns[0]))[:_PROBE]
            ids = tokens.prompt[place]
            parts = (ids[: 4 * _PROBE + 64], ids) if probe else ()  # a preamble of the template may stand before it
            mask[place] = bool(probe) and not any(probe in _squeezed(target.tokenizer.decode(part)) for part in parts)
    return Hits(mask, lambda place: excerpt(message_text(tokens.rows[place].turns[0])))


@token_check(
    "D410",
    ERROR,
    "the chat template refuses the row",
    "Mend these rows, or use a template that takes them: training would stop at the first one.",
)
def refused_by_template(tokens: TokenRows, target: Target) -> None:
    """Found while the rows are tokenized (`TokenRows.failed`): there is nothing left to look at here."""


@token_check(
    "D416",
    ERROR,
    "`train_on` or `mask` cannot be placed in what the chat template writes",
    "Do as its message says: training would stop at the first such row.",
)
def unplaced(tokens: TokenRows, target: Target) -> None:
    """Found while the rows are tokenized (`TokenRows.unplaced`)."""


@token_check(
    "D417",
    ERROR,
    "a response has nothing left to train on: `train_on` and `mask` take out every token",
    "Remove these rows, or give them an answer behind the thinking block or the calls.",
)
def all_masked(tokens: TokenRows, target: Target) -> Hits | None:
    if not tokens.loss:
        return None
    empty = {side: mask.count([1]) == 0 for side, mask in tokens.loss.items()}

    def detail(place: int) -> str:
        side = next(side for side, mask in empty.items() if mask[place])
        return f"{side}: {excerpt(target.tokenizer.decode(tokens.sides[side][place]))}"

    return Hits(np.any(list(empty.values()), axis=0), detail)


@token_check(
    "D412",
    ERROR,
    "of a wanted response only the stop token is trained on: the chat template leaves out all it says",
    "Use a template that writes tool calls, or remove these rows: they teach the model to say nothing.",
)
def nothing_left(tokens: TokenRows, target: Target) -> Hits | None:
    wanted = [side for side in tokens.sides if side != "rejected"]
    if not target.kind.conversational or (tokens.label is not None and not tokens.label.any()):
        return None
    mask = np.zeros(len(tokens.index), bool)
    for side in wanted:
        ids, context = tokens.sides[side], tokens.context[side]
        for place in np.flatnonzero(ids.lengths - context <= TAIL):
            row = tokens.rows[place]
            message = row.last_message(_raw_side(row, side, tokens, place))
            said = message_text(message).strip() or message.get("tool_calls")
            left = target.tokenizer.decode(ids[place][context[place] :], skip_special_tokens=True).strip()
            mask[place] |= bool(said and not left and (tokens.label is None or tokens.label[place]))

    def detail(place: int) -> str:
        row = tokens.rows[place]
        return excerpt(str(row.last_message(_raw_side(row, wanted[0], tokens, place))))

    return Hits(mask, detail)


@token_check(
    "D413",
    WARNING,
    "a text is trained on without the turns that the model's chat template writes",
    "Set `converter: text`, which makes messages of the texts (`converter: hh` for dialogues written out as Human: and "
    "Assistant:), or `plain_text: true` if it is meant.",
)
def text_without_turns(tokens: TokenRows, target: Target) -> Hits | None:
    if target.kind.conversational or target.plain_text or getattr(target.processor, "chat_template", None) is None:
        return None
    begins = target.tokenizer.bos_token_id
    marks = [token for token in target.control_tokens if token != begins]
    found = tokens.prompt.count(marks) > 0
    written = np.array([templated(row.prompt) for row in tokens.rows], bool)
    return Hits(~found & ~written, lambda place: excerpt(tokens.rows[place].prompt))


@cache
def _control_pattern(special: tuple[str, ...]) -> re.Pattern[str] | None:
    names = [re.escape(token) for token in special if len(token) > 3 and not token.isalnum()]
    return re.compile("|".join(names)) if names else None


@token_check(
    "D411",
    WARNING,
    "the text of a message holds a control token of the tokenizer",
    "Remove or rewrite it: it becomes one control token, as if the template had written it.",
)
def control_tokens(tokens: TokenRows, target: Target) -> Hits | None:
    pattern = _control_pattern(tuple(target.control_tokens.values()))
    if not target.kind.conversational or pattern is None:
        return None
    found: dict[int, str] = {}
    for place, row in enumerate(tokens.rows):
        for where, text in row.texts:
            match = pattern.search(text)
            if match:
                found[place] = f"{where}: {excerpt(text, match.start())}"
                break
    mask = np.zeros(len(tokens.index), bool)
    mask[list(found)] = True
    return Hits(mask, lambda place: found[place])
