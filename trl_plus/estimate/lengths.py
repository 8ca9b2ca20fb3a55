"""How long the rows are: a sample of the data through the model's own tokenizer, or `max_length` as the bound."""

import random
from dataclasses import dataclass
from typing import Any

from trl_plus.data.responses import is_conversation, sides_of, split_response
from trl_plus.estimate.step import Shape

SAMPLE, DRAWS = 1000, 200
Lengths = tuple[int, int]  # tokens of a sequence with its prompt, and of its completion


@dataclass(frozen=True)
class Rows:
    """The sequences of a sample of rows, cut at `max_length`: two per pair, one per labelled row.

    Attributes:
        sequences: one entry per row; empty where the data could not be read, and `bound` then speaks for it.
        bound: `max_length`, or the longest sequence of the sample where there is none.
        multiple: lengths are padded to a multiple of this.
        per_row: sequences of a row.
        scores_prompt: ORPO's `nll_scope: full` scores the chosen side's prompt too.
    """

    sequences: list[tuple[Lengths, ...]]
    bound: int
    per_row: int
    multiple: int = 1
    scores_prompt: bool = False

    def worst(self, batch: int) -> Shape:
        """The largest micro-batch that these rows can make: its longest row, and the longest completions."""
        if not self.sequences:
            return Shape(self.per_row * batch, self._padded(self.bound), self.per_row * batch * (self.bound - 1))
        totals = [total for row in self.sequences for total, _ in row]
        scored = sorted((self._scored(row) for row in self.sequences), reverse=True)
        most = sum((scored * (batch // len(scored) + 1))[:batch])
        return Shape(self.per_row * batch, self._padded(max(totals)), most)

    def mismatched(self, batch: int) -> Shape:
        """KTO's largest micro-batch of mismatched rows: the longest prompt before the longest completion."""
        if not self.sequences:
            return self.worst(batch)
        both = [lengths for row in self.sequences for lengths in row]
        longest = min(self.bound, max(t - c for t, c in both) + max(c for _, c in both))
        completion = min(max(c for _, c in both), longest - 1)
        return Shape(batch, longest, batch * completion)

    def mean_padded(self, batch: int) -> float:
        """Padded tokens of an average micro-batch, over random draws."""
        if not self.sequences:
            return float(self.worst(batch).padded)
        draw = random.Random(0)
        sizes = [
            self._padded(max(t for row in draw.choices(self.sequences, k=batch) for t, _ in row)) for _ in range(DRAWS)
        ]
        return self.per_row * batch * sum(sizes) / len(sizes)

    def _padded(self, tokens: int) -> int:
        return -(-tokens // self.multiple) * self.multiple

    def _scored(self, row: tuple[Lengths, ...]) -> int:
        first, *others = row
        return (first[0] - 1 if self.scores_prompt else first[1]) + sum(completion for _, completion in others)


def sampled(data: Any, processor: Any, max_length: int | None, seed: int, unpair: bool) -> list[tuple[Lengths, ...]]:
    """Tokens of a random sample of the training rows.

    Args:
        data: training rows as `trl_plus.data.loading.load` gives them; a stream's first rows are taken.
        unpair: pairs are trained on as single rows.
    """
    if hasattr(data, "__len__"):
        rows = [data[i] for i in sorted(random.Random(seed).sample(range(len(data)), min(SAMPLE, len(data))))]
    else:
        rows = list(data.take(SAMPLE))
    found: list[tuple[Lengths, ...]] = []
    for row in rows:
        lengths = _lengths(row, processor, max_length)
        if all(completion > 0 for _, completion in lengths):  # the trainer drops prompts that fill `max_length`
            found += [(side,) for side in lengths] if unpair else [tuple(lengths)]
    return found


def _lengths(row: dict[str, Any], processor: Any, max_length: int | None) -> list[Lengths]:
    from trl import apply_chat_template, extract_prompt

    tokenizer = getattr(processor, "tokenizer", processor)
    sides = sides_of(list(row))
    if is_conversation(row[sides[0]]):
        texts = apply_chat_template({**split_response(row, sides)}, tokenizer)
    else:
        texts = row if "prompt" in row else extract_prompt(row)
        texts = {**texts, **{side: texts[side] + tokenizer.eos_token for side in sides}}
    prompt = len(tokenizer(texts["prompt"], add_special_tokens=False)["input_ids"])
    lengths = []
    for side in sides:
        total = len(tokenizer(texts["prompt"] + texts[side], add_special_tokens=False)["input_ids"])
        cut = total if max_length is None else min(total, max_length)
        lengths.append((cut, max(0, cut - prompt)))
    return lengths
