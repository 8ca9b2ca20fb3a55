"""D4xx: the token ids that the trainer gets: template, boundaries, begin and end of sequence."""

import numpy as np

from trl_plus.data.spans import Selection
from trl_plus.preflight.registry import ERROR, INFO, WARNING, summary_check, token_check
from trl_plus.preflight.rows import Row
from trl_plus.preflight.tally import Hits, Summary, Verdict
from trl_plus.preflight.target import Target
from trl_plus.preflight.tokens import TokenRows

TAIL = 3  # ids at the end among which the stop token is looked for: templates write a line break behind it
_TRIED = 20  # rows of a batch that are tokenized again although nothing is suspected of them


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
        spoken = [all(text.strip() for text in row.responses.values()) for row in tokens.rows]
        mask = (np.array([len(ids) for ids in alone], np.int64) > tokens.prompt.lengths) & np.array(spoken, bool)
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
    from trl_plus.data.responses import split_response
    from trl_plus.data.templates import tokenize_messages

    if Selection.of(target.args).keeps_turns:
        asked = split_response(row.raw, tuple(row.responses), keep_turns=True)["prompt"]
        return tokenize_messages(target.processor, asked, add_generation_prompt=True, **target.arguments(row.raw))
    contexts = list(row.context.values())
    if any(context != contexts[0] for context in contexts):
        return []
    return tokenize_messages(target.processor, contexts[0], add_generation_prompt=True, **target.arguments(row.raw))


@token_check(
    "D402",
    ERROR,
    "a response does not end with a token that generation stops on",
    "Use a chat template that closes the assistant's turn with such a token, or add it to `eos_token_id` of the "
    "model's generation config: the model never learns to stop.",
)
def no_stop_token(tokens: TokenRows, target: Target) -> Hits:
    missing = {side: ~ids.tail_has(sorted(target.stop_ids), TAIL) for side, ids in tokens.sides.items()}
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
