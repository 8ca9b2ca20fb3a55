"""`balance: true`: row weights under which surface features no longer tell the preferred side.

The weights are those nearest to the given ones in entropy (Hainmueller 2012) whose weighted mean of each evened feature
is 0: w_i proportional to q_i exp(-l.x_i), with q the column `weight` or ones, x the standardised differences of
`data.shortcut_rule`, and l the minimum of the convex log(sum_i q_i exp(-l.x_i)). At these weights the gradient of that
rule's loss is 0 at no rule at all, so it finds nothing in these features. Of labelled rows both labels keep what they
weigh in all, and their weighted means of each feature become equal.

Features are evened that differ by `CLEAR` standard errors; those that differ by as much afterwards join them. A
feature that hardly any row contradicts cannot be evened: `Balance.left` names it. A row weighs at most `CAP` times, and
at least one `CAP`-th, of what the middle row weighs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trl_plus.data.shortcut_rule import (
    CLIP,
    PROMPTS,
    ROWS,
    SIZE,
    Examples,
    Floats,
    Masks,
    cross_fitted,
    right,
    surface_rows,
)
from trl_plus.data.surface import FEATURES
from trl_plus.errors import DataError

CLEAR = 3.0  # standard errors, under independent prompts
CAP = 20.0
_LEAST = 0.01
_ROUNDS, _STEPS, _CLOSE, _RIDGE = 8, 100, 1e-10, 1e-4
_HELP = 0.02  # by which the rule's accuracy has to fall if some feature cannot be evened
_DIGITS = 6  # of a weight: two machines agree on these
_NAMED = 6  # features that the note names


@dataclass(frozen=True)
class Balance:
    """Weights of N rows.

    Attributes:
        weights: (N,), with the sum, of labelled rows the sum of each label, that they had.
        evened, left: names of features that were evened, and of those that differ and could not be.
        effective: how many equally weighted rows say as much (Kish 1965).
        before, after: weighted share of rows that the cross-fitted rule judges right.
    """

    weights: Floats
    evened: tuple[str, ...]
    left: tuple[str, ...]
    effective: float
    before: float
    after: float


def balance(examples: Examples) -> Balance:
    """The weights that even out the features of some rows."""
    signed = _signed(examples)
    weights, used = examples.weights, np.zeros(len(FEATURES), bool)
    contradicted = _contradicted(signed, examples)
    for _ in range(_ROUNDS):
        more = (np.abs(_distance(signed, weights, examples)) >= CLEAR) & contradicted & ~used
        if not more.any():
            break
        used |= more
        weights = _weights(signed[:, used], examples)
    left = np.abs(_distance(signed, weights, examples)) >= CLEAR
    after = Examples(examples.x, examples.y, weights, examples.prompts, examples.paired)
    return Balance(
        weights=weights,
        evened=_names(used & ~left),
        left=_names(left),
        effective=float(weights.sum() ** 2 / (weights**2).sum()),
        before=_reached(examples),
        after=_reached(after),
    )


def balanced(dataset: Any, name: str) -> tuple[Any, str]:
    """A prepared training set with the weights of `balance` as its column `weight`, and what was done, one sentence.

    Raises:
        DataError: the rows are a stream, too few, or cannot be balanced.
    """
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"{name}: `balance: true` needs all rows at once. Fix: remove `dataset_streaming` or `balance`."
        )
    try:
        examples = surface_rows(dataset).examples
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    if not examples.enough:
        prompts = len(np.unique(examples.prompts))
        raise DataError(
            f"{name} has {len(examples.y)} rows with {prompts} different prompts, and `balance: true` needs {ROWS} "
            f"with {PROMPTS}, of both labels. Fix: remove `balance`."
        )
    found = balance(examples)
    if not found.evened:
        why = f"hardly any row contradicts {', '.join(found.left)}" if found.left else "no surface feature is uneven"
        return dataset, f"{name}: balance: {why}, so weights stay as they are."
    if found.left and found.after > found.before - _HELP:
        raise DataError(
            f"{name}: `balance: true` cannot even out {', '.join(found.left)}: hardly any row contradicts it. Fix: add "
            "rows in which it points the other way, or remove `balance`."
        )
    weights = found.weights.round(_DIGITS)
    kept = dataset.remove_columns("weight") if "weight" in dataset.column_names else dataset
    return kept.add_column("weight", weights), f"{name}: {_sentence(found, len(weights))}"


def _sentence(found: Balance, rows: int) -> str:
    more = f" and {len(found.evened) - _NAMED} more" if len(found.evened) > _NAMED else ""
    left = f" Hardly any row contradicts {', '.join(found.left)}." if found.left else ""
    return (
        f"balance: the column `weight` evens out {', '.join(found.evened[:_NAMED])}{more}; it leaves as much as "
        f"{found.effective:,.0f} of {rows:,} equally weighted rows, and surface features alone reach "
        f"{found.after:.1%} instead of {found.before:.1%}.{left}"
    )


def _contradicted(signed: Floats, examples: Examples) -> Masks:
    """(F,): features for which the rows of either direction pull at least `_LEAST` times as much as the others."""
    weights = examples.even
    up, down = weights @ np.maximum(signed, 0), weights @ np.maximum(-signed, 0)
    return np.minimum(up, down) >= _LEAST * np.maximum(up, down)


def _names(used: Masks) -> tuple[str, ...]:
    """Of features; those of length are one."""
    names = ("length",) if used[SIZE].any() else ()
    return names + tuple(feature.name for feature, one in zip(FEATURES, used & ~SIZE, strict=True) if one)


def _reached(examples: Examples) -> float:
    weights = examples.even
    return float(weights @ right(cross_fitted(examples), examples) / weights.sum())


def _groups(examples: Examples) -> list[Masks]:
    """Rows whose weights keep their sum."""
    if examples.paired:
        return [np.ones(len(examples.y), bool)]
    return [examples.y > 0, examples.y < 0]


def _signed(examples: Examples) -> Floats:
    """(N, F): standardised features, of rows that are not wanted with the other sign."""
    weights, x = examples.even / examples.even.sum(), examples.x
    x = x if examples.paired else x - weights @ x
    scale = np.sqrt(weights @ x**2)
    return np.clip(x / np.where(scale > 1e-6, scale, np.inf), -CLIP, CLIP) * examples.y[:, None]


def _distance(signed: Floats, weights: Floats, examples: Examples) -> Floats:
    """(F,): how far the weighted means are from even, in standard errors."""
    _, own = np.unique(examples.prompts, return_inverse=True)
    total, variance = np.zeros(signed.shape[1]), np.full(signed.shape[1], 1e-12)
    for group in _groups(examples):
        share = weights[group] / weights[group].sum()
        mean = share @ signed[group]
        away = share[:, None] * (signed[group] - mean)
        sums = np.zeros((own.max() + 1, signed.shape[1]))
        np.add.at(sums, own[group], away)
        total, variance = total + mean, variance + (sums**2).sum(0)
    return total / np.sqrt(variance)


def _weights(signed: Floats, examples: Examples) -> Floats:
    """(N,): the weights at the minimum of the dual, capped. Newton's method with halved steps."""
    groups, given = _groups(examples), examples.weights
    found = np.zeros(signed.shape[1])

    def tilted(at: Floats, group: Masks) -> tuple[float, Floats]:
        """log sum q exp(-l.x), and the shares of the rows."""
        power = -(signed[group] @ at)
        top = power.max()
        terms = given[group] * np.exp(power - top)
        return float(top + np.log(terms.sum())), terms / terms.sum()

    def loss(at: Floats) -> float:
        return sum(tilted(at, group)[0] for group in groups) + _RIDGE / 2 * float(at @ at)

    now = loss(found)
    for _ in range(_STEPS):
        gradient, curve = _RIDGE * found, _RIDGE * np.eye(len(found))
        for group in groups:
            share, x = tilted(found, group)[1], signed[group]
            mean = share @ x
            gradient = gradient - mean
            curve = curve + (x * share[:, None]).T @ x - np.outer(mean, mean)
        step = np.linalg.solve(curve, gradient)
        while (then := loss(found - step)) > now + 1e-13 * abs(now):
            step = step / 2
        found, gain, now = found - step, now - then, then
        if gain <= _CLOSE:
            break
    return _capped(signed, found, given, groups)


def _capped(signed: Floats, at: Floats, given: Floats, groups: list[Masks]) -> Floats:
    factors = np.zeros(len(given))
    for group in groups:
        power = -(signed[group] @ at)
        ratio = np.exp(np.clip(power - np.median(power[given[group] > 0]), -np.log(CAP), np.log(CAP)))
        factors[group] = ratio * given[group].sum() / (ratio @ given[group])
    return given * factors
