"""A rule that reads nothing: a logistic regression that tells the preferred side by surface features alone.

A pair is the difference of the features (`data.surface`) of its two sides, preferred minus other. The rule is a
logistic regression without intercept on differences, so it has no side: minimise

    sum_i w_i log(1 + exp(-y_i b.x_i)) + RIDGE / 2 |b|^2,      y_i = 1

over differences that are divided by their root mean square and clipped to +-4. Labelled rows are the features
themselves, centred, with y_i = +-1 and an intercept without penalty; both labels weigh the same in all. Weights are
scaled to a mean of 1.

**Cross-fitting.** Prompts are drawn into five folds. Each row is judged by the rule fitted on the other folds, so no
row and no other row of its prompt is known to its judge. Three draws are made, and a row's score is the mean.

Imports only numpy.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from os.path import commonprefix  # of characters, which is meant here
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_plus.data.messages import message_text, said
from trl_plus.data.responses import is_conversation, sides_of, split_response
from trl_plus.data.surface import FEATURES, Features, Stock, read_responses, with_stock

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Masks = NDArray[np.bool_]

ROWS, PROMPTS = 200, 100  # fewer say little about so many features
FOLDS, DRAWS, SEED = 5, 3, 0
RIDGE, CLIP = 10.0, 4.0
SIZE = np.array([feature.size for feature in FEATURES])
_STEPS, _CLOSE = 50, 1e-7


@dataclass(frozen=True)
class Examples:
    """N rows as a rule sees them.

    Attributes:
        x: (N, F), differences of pairs, preferred minus other; of labelled rows their features.
        y: (N,), 1, and -1 of labelled rows that are not wanted.
        weights: (N,), at least 0.
        prompts: (N,), rows of one number share a prompt.
        paired: x are differences.
    """

    x: Floats
    y: Floats
    weights: Floats
    prompts: Ints
    paired: bool

    @property
    def enough(self) -> bool:
        """There are rows, prompts and labels enough to fit a rule."""
        prompts = len(np.unique(self.prompts))
        both = self.paired or 0 < int((self.y > 0).sum()) < len(self.y)
        return len(self.y) >= ROWS and prompts >= PROMPTS and both

    def select(self, rows: Masks | Ints) -> "Examples":
        return Examples(self.x[rows], self.y[rows], self.weights[rows], self.prompts[rows], self.paired)

    @property
    def even(self) -> Floats:
        """(N,): the weights; of labelled rows so that both labels weigh the same in all."""
        if self.paired:
            return self.weights
        sums = {sign: max(float(self.weights[self.y == sign].sum()), 1e-300) for sign in (-1, 1)}
        return self.weights * np.where(self.y > 0, 1 / sums[1], 1 / sums[-1]) * self.weights.sum() / 2


@dataclass(frozen=True)
class Rule:
    """A fitted regression. `score` is the log-odds of the preferred side.

    Attributes:
        centre, scale, slope: (F,); features that do not vary have the slope 0.
    """

    centre: Floats
    scale: Floats
    slope: Floats
    intercept: float = 0.0

    def parts(self, x: Floats) -> Floats:
        """(N, F): what each feature adds to the score."""
        return np.clip((x - self.centre) / self.scale, -CLIP, CLIP) * self.slope

    def score(self, x: Floats) -> Floats:
        """(N,)"""
        return self.parts(x).sum(1) + self.intercept


def fit(examples: Examples, columns: Masks | None = None) -> Rule:
    """The rule of some rows.

    Args:
        columns: (F,), the features it may use; None for all.
    """
    x, weights = examples.x, examples.even
    total = max(float(weights.sum()), 1e-300)
    centre = np.zeros(x.shape[1]) if examples.paired else weights @ x / total
    scale = np.sqrt(np.maximum(weights @ (x - centre) ** 2 / total, 0))
    used = scale > 1e-6 if columns is None else (scale > 1e-6) & columns
    scale = np.where(scale > 1e-6, scale, 1.0)
    standard = np.clip((x[:, used] - centre[used]) / scale[used], -CLIP, CLIP)
    slope = np.zeros(x.shape[1])
    found = _minimum(standard, examples.y, weights * len(x) / total, not examples.paired)
    slope[used] = found[: used.sum()]
    return Rule(centre, scale, slope, 0.0 if examples.paired else float(found[-1]))


def _minimum(x: Floats, y: Floats, weights: Floats, intercept: bool) -> Floats:
    """Newton's method with halved steps; the intercept, if there is one, comes last."""
    if intercept:
        x = np.column_stack([x, np.ones(len(x))])
    penalty = np.full(x.shape[1], RIDGE)
    penalty[len(penalty) - intercept :] = 1e-6
    signed, found = x * y[:, None], np.zeros(x.shape[1])

    def loss(at: Floats) -> float:
        return float(weights @ np.logaddexp(0, -(signed @ at)) + penalty @ at**2 / 2)

    now = loss(found)
    for _ in range(_STEPS):
        wrong = 1 / (1 + np.exp(np.minimum(signed @ found, 500)))
        gradient = penalty * found - signed.T @ (weights * wrong)
        curve = (x * (weights * wrong * (1 - wrong))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curve, gradient)
        while (then := loss(found - step)) > now + 1e-12 * abs(now):
            step = step / 2
        found, gain, now = found - step, now - then, then
        if gain <= _CLOSE * max(abs(now), 1):
            break
    return found


def cross_fitted(examples: Examples, columns: Masks | None = None) -> Floats:
    """(N,): the mean score of each row by the rules of the folds that its prompt is not in, over `DRAWS` draws."""
    names, own = np.unique(examples.prompts, return_inverse=True)
    rng = np.random.default_rng(SEED)
    scores = np.zeros(len(examples.y))
    for _ in range(DRAWS):
        fold = (rng.permutation(len(names)) % FOLDS)[own]
        for number in range(FOLDS):
            judged = fold == number
            if judged.any() and not judged.all():
                scores[judged] += fit(examples.select(~judged), columns).score(examples.x[judged]) / DRAWS
    return scores


def right(scores: Floats, examples: Examples) -> Floats:
    """(N,): 1 for a row that is judged right, 0.5 for one without a verdict, 0 for one that is judged wrong."""
    signed = scores * examples.y
    return (signed > 0) + 0.5 * (signed == 0)


def of_pairs(features: NDArray[np.floating], prompts: Ints, weights: Floats | None = None) -> Examples:
    """Examples of pairs from features, (N, 2, F), the preferred side first."""
    x = features[:, 0].astype(float) - features[:, 1].astype(float)
    return Examples(x, np.ones(len(x)), np.ones(len(x)) if weights is None else weights, prompts, True)


def of_labels(features: NDArray[np.floating], labels: Masks, prompts: Ints, weights: Floats | None = None) -> Examples:
    """Examples of labelled rows from features, (N, F)."""
    count = len(features)
    signs = np.where(labels, 1.0, -1.0)
    return Examples(features.astype(float), signs, np.ones(count) if weights is None else weights, prompts, False)


# -- rows as the rule sees them: features, prompts, labels, weights -------------------------------------------------


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
