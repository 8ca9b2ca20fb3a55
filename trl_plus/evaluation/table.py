"""The tables of an evaluation in the terminal."""

import math
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trl_plus.evaluation.measures import FEWEST, PER_TOKEN, REWARD, ByLabel, ByLength, Group
from trl_plus.evaluation.run import Evaluation
from trl_plus.evaluation.shortcut import TRAIN, ByShortcut
from trl_plus.evaluation.statistics import Estimate
from trl_plus.ui.printable import printable

_TITLES = {REWARD: "By the method's reward", PER_TOKEN: "By log-probability per token (nats)"}
_SHORT = {REWARD: "reward", PER_TOKEN: "per token"}
_KINDS = {"better": "better sides", "worse": "worse sides", "all": "all completions"}
_NOT_A_KL = "These are the dataset's completions and not samples of the tuned model, so this is no KL divergence."
_LENGTH = (
    "balanced: mean accuracy of pairs whose better side is longer and of pairs whose better side is shorter. length ρ: "
    "Spearman's correlation of margin and length difference."
)


def evaluation_report(evaluation: Evaluation) -> Iterator[Any]:
    """What to print, one after the other: sentences and tables."""
    tuned = "" if evaluation.tuned is None else f"; tuned: {evaluation.tuned}"
    yield f"{evaluation.method} on {evaluation.dataset}; base: {evaluation.base}{tuned}"
    pairs = "" if evaluation.pairs is None else f", {evaluation.pairs.pairs:,} pairs"
    yield f"{evaluation.rows:,} held-out rows{pairs}; brackets are 95% intervals."
    yield from evaluation.notes
    for measure in (REWARD, PER_TOKEN):
        if evaluation.pairs is not None and _known(evaluation.pairs, measure):
            yield _comparison(evaluation, evaluation.pairs, measure)
    if evaluation.labels is not None:
        yield _labels(evaluation.labels)
    if evaluation.lengths is not None:
        yield _groups("Accuracy by length difference (tokens, better minus worse)", evaluation.lengths.buckets)
        yield f"Preferring the longer side would win {evaluation.lengths.longer_wins:.3f} of all pairs; {_LENGTH}"
    if evaluation.shortcut is not None:
        yield from _shortcut(evaluation.shortcut)
    if evaluation.sources:
        yield _groups(f"Accuracy by source (`{evaluation.source_column}`)", evaluation.sources)
    if evaluation.divergence is not None:
        yield _divergence(evaluation.divergence)


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=Text(f"\n{printable(title)}"), title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.pad_edge = False
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    return table


def _known(group: Group, measure: str) -> bool:
    return any(by_measure[measure] is not None for by_measure in group.models.values())


def _comparison(evaluation: Evaluation, pairs: Group, measure: str) -> Table:
    """Base against tuned by one measure."""
    table = _table(_TITLES[measure], ["", "accuracy", "mean margin", "balanced", "length ρ"])
    lengths = evaluation.lengths
    for model, by_measure in pairs.models.items():
        cell = by_measure[measure]
        if cell is None:
            table.add_row(model, "-", "-", "-", "-")
            continue
        balanced = lengths.balanced[model][measure] if lengths is not None and _has_both(lengths) else None
        correlation = None if lengths is None else lengths.correlation[model][measure]
        shown = "-" if balanced is None else f"{balanced:.3f}"
        ranks = None if correlation is None else Estimate(correlation.value)  # its interval would not fit
        row = (estimate_text(cell.accuracy, 3), estimate_text(cell.margin, 3, "+"), shown, estimate_text(ranks, 2, "+"))
        table.add_row(model, *row)
    change = pairs.change.get(measure)
    if change is not None:
        table.add_row("change", "", estimate_text(change, 3, "+"), "", "")
    if evaluation.reference and measure == REWARD:
        table.caption = "The reward is a log-ratio to the base, so the base itself has none."
    return table


def _has_both(lengths: ByLength) -> bool:
    """Whether there are enough pairs on each side of zero for a mean of two accuracies to say anything."""
    return all(group and group.pairs >= FEWEST for group in (lengths.better_longer, lengths.better_shorter))


def _labels(labels: ByLabel) -> Table:
    models = list(labels.auc)
    table = _table("Single rows by label", ["", "rows", *models])
    for measure in (REWARD, PER_TOKEN):
        for label in ("desirable", "undesirable"):
            values = (getattr(labels, label)[model][measure] for model in models)
            table.add_row(
                f"{label}, {_SHORT[measure]}", f"{labels.rows[label]:,}", *(estimate_text(v, 3, "+") for v in values)
            )
        areas = (labels.auc[model][measure] for model in models)
        table.add_row(
            f"AUC, {_SHORT[measure]}", f"{sum(labels.rows.values()):,}", *(estimate_text(area, 3) for area in areas)
        )
    table.caption = "AUC: the chance that a desirable row scores above an undesirable one."
    return table


def _groups(title: str, groups: list[Group]) -> Table:
    """Accuracies of each group: by reward where every model has one, else also by log-probability per token."""
    models = groups[0].models
    everywhere = all(by_measure[REWARD] is not None for by_measure in models.values())
    columns = [
        (model, measure)
        for measure in ((REWARD,) if everywhere else (PER_TOKEN, REWARD))
        for model in models
        if models[model][measure] is not None
    ]
    table = _table(title, ["", "pairs", *(f"{model}, {_SHORT[measure]}" for model, measure in columns)])
    for group in groups:
        cells = (group.models[model][measure] for model, measure in columns)
        shown = ("-" if cell is None else estimate_text(cell.accuracy, 2) for cell in cells)
        table.add_row(Text(printable(group.name)), f"{group.pairs:,}", *shown)
    return table


def _shortcut(found: ByShortcut) -> Iterator[Any]:
    """What surface features alone reach, and how the models do where these are right and where they are wrong."""
    groups = [group for group in (found.right, found.wrong) if group is not None]
    if groups:
        yield _groups("Accuracy by what surface features alone say", groups)
    yield shortcut_sentence(found)


def shortcut_sentence(found: ByShortcut) -> str:
    """What surface features alone reach, and which rows they were fitted on."""
    which = "the training rows" if found.fitted_on == TRAIN else "the other held-out rows (cross-fitted)"
    reached = [
        f"would win {estimate_text(found.accuracy, 3)} of all pairs" if found.accuracy is not None else "",
        f"would reach an AUC of {estimate_text(found.auc, 3)}" if found.auc is not None else "",
    ]
    return f"Surface features alone, fitted on {found.rows:,} of {which}, {' and '.join(filter(None, reached))}."


def _divergence(found: dict[str, Estimate | None]) -> Table:
    table = _table("Log-ratio of tuned to base, nats per token", ["", "mean"])
    for kind, estimate in found.items():
        table.add_row(_KINDS[kind], estimate_text(estimate, 4, "+"))
    table.caption = _NOT_A_KL
    return table


def estimate_text(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    """ "0.931 [0.881, 0.961]", without an interval where there is none; "-" where the value is not defined."""
    if estimate is None or math.isnan(estimate.value):
        return "-"
    shown = f"{estimate.value:{sign}.{digits}f}"
    if math.isnan(estimate.low):
        return shown
    return f"{shown} [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"
