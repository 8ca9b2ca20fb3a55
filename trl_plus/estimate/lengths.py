"""How long the rows are: a sample of the data through the model's own tokenizer."""

import random
from itertools import takewhile
from typing import Any

from trl_plus.data.responses import is_conversation, sides_of, split_response
from trl_plus.estimate.shapes import Row

SAMPLE = 1000


def sampled(data: Any, processor: Any, max_length: int | None, seed: int, unpair: bool) -> list[Row]:
    """The lengths of a random sample of the training rows.

    Args:
        data: training rows as `trl_plus.data.loading.load` gives them; a stream's first rows are taken.
        unpair: pairs are trained on as single rows.
    """
    if hasattr(data, "__len__"):
        rows = [data[i] for i in sorted(random.Random(seed).sample(range(len(data)), min(SAMPLE, len(data))))]
    else:
        rows = list(data.take(SAMPLE))
    found: list[Row] = []
    for row in rows:
        measured = _measured(row, processor, max_length)
        if all(completion > 0 for _, completion in measured.sides):  # prompts that fill `max_length` are dropped
            found += [Row((side,)) for side in measured.sides] if unpair else [measured]
    return found


def _measured(row: dict[str, Any], processor: Any, max_length: int | None) -> Row:
    from trl import apply_chat_template, extract_prompt

    tokenizer = getattr(processor, "tokenizer", processor)
    sides = sides_of(list(row))
    if is_conversation(row[sides[0]]):
        texts = apply_chat_template({**split_response(row, sides)}, tokenizer)
    else:
        texts = row if "prompt" in row else extract_prompt(row)
        texts = {**texts, **{side: texts[side] + tokenizer.eos_token for side in sides}}

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = tokens(texts["prompt"])
    # TRL takes as a completion what comes after as many tokens as the prompt has alone
    ids = [(prompt + tokens(texts["prompt"] + texts[side])[len(prompt) :])[:max_length] for side in sides]
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids[0], ids[-1], strict=False)))
    lengths = tuple((len(side), max(0, len(side) - len(prompt))) for side in ids)
    return Row(lengths, common if len(ids) > 1 else 0)
