"""Prepared rows of a dataset as a rule that reads nothing sees them: features, prompts, labels, weights."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from os.path import commonprefix  # of characters, which is meant here
from typing import Any

import numpy as np

from trl_plus.data.messages import message_text, said
from trl_plus.data.responses import is_conversation, sides_of, split_response
from trl_plus.data.shortcut_rule import Examples, Floats, Ints, Masks, of_labels, of_pairs
from trl_plus.data.surface import Features, Stock, read_responses, with_stock

_ROWS = 1000  # whose texts are held at once


@dataclass(frozen=True)
class SurfaceRows:
    """N rows.

    Attributes:
        features: (N, sides, F), the preferred side first.
        stock: how common openings and endings are among the rows that a rule is fitted on.
        prompts: (N,), rows of one number share a prompt.
        weights: (N,), the column `weight`, or ones.
        labels: (N,), of single completions; None for pairs.
    """

    features: Features
    stock: Stock
    prompts: Ints
    weights: Floats
    labels: Masks | None

    @property
    def examples(self) -> Examples:
        if self.labels is None:
            return of_pairs(self.features, self.prompts, self.weights)
        return of_labels(self.features[:, 0], self.labels, self.prompts, self.weights)


def surface_rows(rows: Iterable[dict[str, Any]], stock: Stock | None = None, skip: bool = False) -> SurfaceRows:
    """The features of rows as `formats.prepare` leaves them: pairs, or completions with labels.

    Args:
        stock: of other rows, which a rule was fitted on; None for these themselves.
        skip: leave out rows that the trainer would refuse.

    Raises:
        ValueError: a conversation does not end with the assistant's message, or its sides share no turn.
    """
    numbers: dict[str, int] = {}
    prompts, weights, labels, parts, paired = [], [], [], [], True
    for chunk in _chunks(rows):
        texts: list[tuple[str, ...]] = []
        asked: list[str] = []
        for row in chunk:
            try:
                prompt, question, responses = _read(row)
            except ValueError:
                if not skip:
                    raise
                continue
            asked.append(question)
            texts.append(tuple(responses.values()))
            paired = len(responses) == 2
            prompts.append(numbers.setdefault(prompt, len(numbers)))
            weights.append(float(row.get("weight", 1.0)))
            labels.append(row.get("label"))
        if texts:
            parts.append(read_responses(list(zip(*texts, strict=True)), asked))
    if not parts:
        parts = [read_responses([[]], [])]
    features, known = with_stock(*(np.concatenate(part) for part in zip(*parts, strict=True)), stock)
    return SurfaceRows(
        features, known, np.array(prompts), np.array(weights), None if paired else np.array(labels, bool)
    )


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _ROWS)):
        yield chunk


def _read(row: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    """The whole prompt of a row, the message that is answered, and the responses by side."""
    sides = sides_of(list(row))
    if is_conversation(row[sides[0]]):
        split = split_response(row, sides)
        responses = {side: said(split[side][-1]) for side in sides}
        return repr(split["prompt"]), message_text(split["prompt"][-1]), responses
    if row.get("prompt") is not None:
        return row["prompt"], row["prompt"], {side: row[side] for side in sides}
    shared = commonprefix([row[side] for side in sides])  # noqa: RUF071
    return shared, shared, {side: row[side][len(shared) :] for side in sides}
