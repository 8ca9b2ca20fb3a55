"""D4xx: the token ids that the trainer gets: template, boundaries, begin and end of sequence."""

import re
from functools import cache
from typing import Any

import numpy as np

from trl_plus.preflight.registry import ERROR, INFO, WARNING, summary_check, token_check
from trl_plus.preflight.rows import THINKING_KEYS, Row, excerpt, message_text
from trl_plus.preflight.tally import Hits, Summary, Verdict
from trl_plus.preflight.target import Target
from trl_plus.preflight.tokens import TokenRows

_TAIL = 3  # ids at the end among which the stop token is looked for: templates write a line break behind it
_TRIED = 20  # rows of a batch that are tokenized again although nothing is suspected of them
_PROBE = 24  # characters by which a text is found again in what the template wrote
_THINK = re.compile(r"<think(?:ing)?>(.+?)</think(?:ing)?>", re.DOTALL)


@token_check(
    "D401",
    WARNING,
    "the tokenized prompt is not the beginning of prompt and response: the end of the prompt is left out",
    "End text prompts at a token's end (no trailing space), or use a chat template that writes the prompt alike with "
    "and without a response: the model otherwise trains on another context than it meets.",
)
def prompt_is_no_prefix(tokens: TokenRows, target: Target) -> Hits:
    mask = np.zeros(len(tokens.index), bool)
    if not target.kind.conversational:
        alone = target.processor(text=[row.prompt for row in tokens.rows])["input_ids"] if tokens.rows else []
        mask = np.array([len(ids) for ids in alone], np.int64) > tokens.prompt.lengths
    else:
        opening = target.generation_prompt
        suspects = ~tokens.prompt.ends_with(opening) if opening else np.ones(len(mask), bool)
        suspects[:_TRIED] = True
        for place in np.flatnonzero(suspects):
            mask[place] = len(_prompt_alone(tokens.rows[place], target)) > tokens.prompt.lengths[place]

    def detail(place: int) -> str:
        tail = target.tokenizer.decode(tokens.prompt[place][-8:])
        return f"the prompt ends after {tail!r}"

    return Hits(mask, detail)


def _prompt_alone(row: Row, target: Target) -> list[int]:
    """The ids of the prompt by itself; [] for sides with different histories, whose shared part is no prompt."""
    from trl_plus.trainers.upstream import tokenize_messages

    contexts = list(row.context.values())
    if any(context != contexts[0] for context in contexts):
        return []
    return tokenize_messages(target.processor, contexts[0], add_generation_prompt=True, **template_arguments(row))


def template_arguments(row: Row) -> dict[str, Any]:
    """What the trainers pass to the chat template besides the messages."""
    import json

    tools = row.raw.get("tools")
    return {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(row.raw.get("chat_template_kwargs") or {}),
    }


@token_check(
    "D402",
    ERROR,
    "a response does not end with a token that generation stops on",
    "Use a chat template that closes the assistant's turn with such a token, or add it to `eos_token_id` of the "
    "model's generation config: the model never learns to stop.",
)
def no_stop_token(tokens: TokenRows, target: Target) -> Hits:
    missing = {side: ~ids.tail_has(sorted(target.stop_ids), _TAIL) for side, ids in tokens.sides.items()}
    stops = target.tokenizer.convert_ids_to_tokens(sorted(target.stop_ids))

    def detail(place: int) -> str:
        side = next(side for side, mask in missing.items() if mask[place])
        return f"{side} ends with {target.tokenizer.decode(tokens.sides[side][place][-6:])!r}, not {' or '.join(stops)}"

    return Hits(np.any(list(missing.values()), axis=0), detail)


@token_check(
    "D403",
    ERROR,
    "a response holds the stop token more than once",
    "Remove it from the text: the template or the trainer adds one, and what follows the first is never generated.",
)
def stop_token_twice(tokens: TokenRows, target: Target) -> Hits:
    stops = sorted(target.stop_ids)
    twice = {side: ids.count(stops, tokens.context[side]) > 1 for side, ids in tokens.sides.items()}

    def detail(place: int) -> str:
        side = next(side for side, mask in twice.items() if mask[place])
        ids = tokens.sides[side][place]
        first = int(np.flatnonzero(np.isin(ids, stops))[0])
        return f"{side}: ...{target.tokenizer.decode(ids[max(0, first - 8) : first + 8])!r}"

    return Hits(np.any(list(twice.values()), axis=0), detail)


@token_check(
    "D404",
    ERROR,
    "the sequence begins with the begin-of-sequence token twice",
    "Remove it from the text or from the chat template: the tokenizer adds one.",
)
def begins_twice(tokens: TokenRows, target: Target) -> Hits | None:
    bos = target.tokenizer.bos_token_id
    if bos is None:
        return None
    mask = np.array(
        [len(tokens.prompt[i]) > 1 and (tokens.prompt[i][:2] == bos).all() for i in range(len(tokens.index))]
    )
    return Hits(mask.astype(bool), lambda place: target.tokenizer.decode(tokens.prompt[place][:8]))


@token_check(
    "D405",
    WARNING,
    "the sequence lacks the begin-of-sequence token that the tokenizer puts before plain text",
    "Let the chat template begin with it, if the model was trained so.",
)
def begins_without(tokens: TokenRows, target: Target) -> Hits | None:
    bos = target.tokenizer.bos_token_id
    if bos is None or target.tokenizer("a")["input_ids"][:1] != [bos]:
        return None
    mask = np.array([not len(tokens.prompt[i]) or tokens.prompt[i][0] != bos for i in range(len(tokens.index))], bool)
    return Hits(mask, lambda place: target.tokenizer.decode(tokens.prompt[place][:8]))


@summary_check(
    "D406",
    INFO,
    "the padding token is the end-of-sequence token",
    "Nothing has to be done for training here: padding is masked by length, not by its id. Other tools may differ.",
)
def pad_is_end(summary: Summary, target: Target) -> Verdict | None:
    if target.processor is None or summary.split != "train":
        return None
    pad, end = target.tokenizer.pad_token_id, target.tokenizer.eos_token_id
    if pad is not None and pad != end:
        return None
    which = "has no padding token, so the trainer pads with" if pad is None else "pads with"
    return Verdict(f"The tokenizer {which} {target.tokenizer.eos_token!r}, its end-of-sequence token.")


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
            start = target.tokenizer.decode(tokens.prompt[place][: 4 * _PROBE + 64]) if probe else ""
            mask[place] = bool(probe) and probe not in _squeezed(start)
    return Hits(mask, lambda place: excerpt(message_text(tokens.rows[place].turns[0])))


@token_check(
    "D409",
    WARNING,
    "text becomes unknown tokens: the vocabulary does not have its characters",
    "Use a tokenizer that covers the text, or remove these characters.",
)
def unknown_tokens(tokens: TokenRows, target: Target) -> Hits | None:
    unknown = target.tokenizer.unk_token_id
    if unknown is None or unknown in {*target.stop_ids, target.tokenizer.bos_token_id, target.tokenizer.pad_token_id}:
        return None
    counts = tokens.prompt.count([unknown]) + sum(ids.count([unknown]) for ids in tokens.sides.values())
    return Hits(counts > 0, lambda place: f"{counts[place]} tokens")


@token_check(
    "D410",
    ERROR,
    "the chat template refuses the row",
    "Mend these rows, or use a template that takes them: training would stop at the first one.",
)
def refused_by_template(tokens: TokenRows, target: Target) -> None:
    """Found while the rows are tokenized (`TokenRows.failed`): there is nothing left to look at here."""


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
