"""Results of a sweep: figures of each value, differences that hold, and sentences."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trl_plus.errors import DataError
from trl_plus.evaluation.held_out_scores import PairScores, read_scores
from trl_plus.evaluation.measures import PER_TOKEN, REWARD
from trl_plus.evaluation.statistics import Floats, Ints
from trl_plus.sweep.grid import Plan
from trl_plus.sweep.runs import scores_path
from trl_plus.sweep.statistics import FEWEST_PROMPTS, LEVEL, Difference, compare, prompts_needed, seeds_needed

FILE = "sweep.json"
SCHEMA_VERSION = 1
MEASURES = {REWARD: "the method's own reward", PER_TOKEN: "log-probability per token"}
# Keys that change the unit of a reward
_SCALES = {
    "beta",
    "gamma",
    "gamma_beta_ratio",
    "loss_type",
    "ipo_reduction",
    "method",
    "model_name_or_path",
    "ld_alpha",
}


@dataclass(frozen=True)
class Scored:
    """The scores of all runs that can be compared.

    Attributes:
        measure, unit: what accuracies and margins are taken from. They differ if a swept key scales rewards.
        accuracy, margin: (K, S, N), NaN for a run that is missing.
        weights, prompts: (N,).
        left_out: held-out pairs that some run lacks.
    """

    measure: str
    unit: str
    accuracy: Floats
    margin: Floats
    weights: Floats
    prompts: Ints
    left_out: int


@dataclass(frozen=True)
class Row:
    """The figures of one value; NaN for a seed whose run is missing.

    Attributes:
        left: the optimizer step after which successive halving left it; None if it stayed.
    """

    label: str
    values: Mapping[str, Any]
    accuracies: list[float]
    margins: list[float]
    left: int | None = None

    @property
    def accuracy(self) -> float:
        """The mean over its seeds."""
        return _mean(self.accuracies)

    @property
    def margin(self) -> float:
        """The mean over its seeds."""
        return _mean(self.margins)


@dataclass(frozen=True)
class Results:
    """The results of a sweep.

    Attributes:
        rows: of every value, in the order in which they were given.
        differences: of the values that were trained to the end, by accuracy; `first` and `second` are places in `rows`.
        margins: the same by margin.
        unit: of the margins: those of the reward, or of the log-probability per token if a swept key scales rewards.
        best: place of the best value; None if nothing was scored.
        failed: why each failed run did, by its label.
    """

    plan: Plan
    measure: str
    unit: str
    pairs: int
    prompts: int
    left_out: int
    rows: list[Row]
    differences: list[Difference]
    margins: list[Difference]
    best: int | None
    failed: dict[str, str]
    sentences: list[str] = field(default_factory=list)


def results(plan: Plan, places: Sequence[int], left: Mapping[int, int], failed: Mapping[str, str]) -> Results:
    """Compare the values of a sweep.

    Args:
        places: the values that were trained to the end.
        left: the step at which each other value was left.
        failed: why each failed run did, by its name.

    Raises:
        DataError: the runs held out different rows.
    """
    labels = {run.name: f"{plan.label(run.place)}, seed {run.seed}" for run in plan.runs}
    told = {labels[name]: problem for name, problem in failed.items()}
    found = scored(plan, places, None)
    rows = []
    for place, values in enumerate(plan.variants):
        at = None if found is None or place not in places else list(places).index(place)
        earlier = scored(plan, [place], left[place]) if place in left else None
        own, at = (earlier, 0) if earlier is not None else (found, at)
        nothing = [math.nan] * len(plan.seeds)
        accuracies, margins = (nothing, nothing) if own is None or at is None else _figures(own, at)
        rows.append(Row(plan.label(place), values, accuracies, margins, left.get(place)))
    if found is None:
        done = Results(plan, REWARD, REWARD, 0, 0, 0, rows, [], [], None, told)
        return _told(done)
    differences = compare(found.accuracy, found.weights, found.prompts, shares=True)
    margins = compare(found.margin, found.weights, found.prompts, shares=False)
    prompts = len(np.unique(found.prompts))
    known = [place for place in places if not math.isnan(rows[place].accuracy)]
    best = max(known, key=lambda place: (round(rows[place].accuracy, 9), rows[place].margin), default=None)
    done = Results(
        plan, found.measure, found.unit, len(found.weights), prompts, found.left_out, rows,
        _placed(differences, places), _placed(margins, places), best, told,
    )  # fmt: skip
    return _told(done)


def _placed(differences: Sequence[Difference], places: Sequence[int]) -> list[Difference]:
    return [replace(each, first=places[each.first], second=places[each.second]) for each in differences]


def scored(plan: Plan, places: Sequence[int], until: int | None) -> Scored | None:
    """The scores of some values on the pairs that all their runs have; None without any.

    Raises:
        DataError: the runs held out different rows.
    """
    found: dict[tuple[int, int], PairScores] = {}
    for run in plan.runs:
        kept = read_scores(scores_path(plan.folder / run.name, until)) if run.place in places else None
        if kept is not None:
            found[list(places).index(run.place), plan.seeds.index(run.seed)] = kept
    if not found:
        return None
    if len({kept.digest for kept in found.values()}) > 1:
        raise DataError(
            f"The runs in {plan.folder} held out different rows, since the data changed between them. Fix: sweep "
            "again into another folder with --out."
        )
    rewards = all(REWARD in kept.margins for kept in found.values()) and "method" not in plan.keys
    measure = REWARD if rewards else PER_TOKEN
    unit = PER_TOKEN if _SCALES & set(plan.keys) else measure
    first = next(iter(found.values()))
    common = set(first.rows).intersection(*(kept.rows for kept in found.values()))
    every = set(first.rows).union(*(kept.rows for kept in found.values()))
    order = [name for name in first.rows if name in common]
    shape = (len(places), len(plan.seeds), len(order))
    accuracy, margin = np.full(shape, np.nan), np.full(shape, np.nan)
    for (place, seed), kept in found.items():
        at = {name: number for number, name in enumerate(kept.rows)}
        rows = [at[name] for name in order]
        accuracy[place, seed] = kept.margins[measure][rows] > 0
        margin[place, seed] = kept.margins[unit][rows]
    at = {name: number for number, name in enumerate(first.rows)}
    chosen = [at[name] for name in order]
    return Scored(
        measure, unit, accuracy, margin, first.weights[chosen], first.prompts[chosen], len(every) - len(common)
    )


def ranking(plan: Plan, places: Sequence[int], until: int, failed: Mapping[str, str]) -> list[int]:
    """The values by mean accuracy over their seeds at a step, then by margin, the best first; without scores last."""
    found = scored(plan, places, until)
    if found is None:
        return list(places)

    def order(at: int) -> tuple[float, ...]:
        accuracies, margins = _figures(found, at)
        mean, margin = _mean(accuracies), _mean(margins)
        return (-math.inf, 0.0) if math.isnan(mean) else (round(mean, 9), margin)

    return [places[at] for at in sorted(range(len(places)), key=order, reverse=True)]


def _figures(found: Scored, at: int) -> tuple[list[float], list[float]]:
    """Accuracy and mean margin of each seed."""
    share = found.weights / found.weights.sum()
    return (found.accuracy[at] @ share).tolist(), (found.margin[at] @ share).tolist()


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


# -- sentences ----------------------------------------------------------------------------------------------------


def _told(found: Results) -> Results:
    """The results with their sentences."""
    found.sentences.extend(_sentences(found))
    return found


def _sentences(found: Results) -> list[str]:
    if found.best is None:
        return ["No run was scored, so there is nothing to compare."]
    name = {place: row.label for place, row in enumerate(found.rows)}
    said = [better(each, name) for each in found.differences if each.holds]
    rows = found.rows
    with_best = [each for each in found.differences if found.best in (each.first, each.second) and not each.holds]
    for each in sorted(with_best, key=lambda each: -rows[_other(each, found.best)].accuracy):
        said.append(f"{name[found.best]} and {name[_other(each, found.best)]}: {no_verdict(each)}")
    if not any(each.holds for each in found.differences):
        highest = f"{name[found.best]} has the highest accuracy, {rows[found.best].accuracy:.3f}"
        said.insert(0, f"No value is shown to be better than another. {highest}.")
    return said


def _other(each: Difference, place: int) -> int:
    return each.second if each.first == place else each.first


def better(each: Difference, name: Mapping[int, str]) -> str:
    """The sentence of a verdict: by how many percentage points of accuracy."""
    first, second, low, high = each.first, each.second, each.low, each.high
    if each.value < 0:
        first, second, low, high = second, first, -high, -low
    return f"{name[first]} is better than {name[second]} by {points(low, high)}."


def points(low: float, high: float) -> str:
    """A range of shares as percentage points, with a decimal if whole ones would read as none or as equal."""
    low, high = 100 * low, 100 * min(high, 1.0)
    digits = 0 if round(low) >= 1 and round(low) != round(high) else 1
    return f"{low:.{digits}f} to {high:.{digits}f} points"


def no_verdict(each: Difference) -> str:
    """The reason why there is no verdict on two values, and what would be needed for one on what they differ by."""
    if not each.seeds:
        return "no seed has a run of both."
    if each.prompts < FEWEST_PROMPTS:
        return f"no verdict on {each.prompts} held-out prompts; at least {FEWEST_PROMPTS} are needed."
    if each.seeds < 2:
        return f"{_seen(each)}, which cannot tell a better value from a luckier seed. Give --seeds 3 or more."
    nothing = f"no difference that this data can show ({_seen(each)})"
    if not each.value:
        return f"{nothing}."
    prompts = prompts_needed(each)
    if prompts is not None:
        more = max(1, prompts - each.prompts)
        return f"{nothing}; about {more:,} more held-out prompts would be needed for a difference of this size."
    seeds = seeds_needed(each)
    if seeds is not None:
        return f"{nothing}; about {_more_seeds(seeds - each.seeds)} would be needed for a difference of this size."
    for factor in (2, 4, 8, 16):
        seeds = seeds_needed(each, each.prompts * factor)
        if seeds is not None:
            prompts = each.prompts * (factor - 1)
            more = f"about {prompts:,} more held-out prompts and {_more_seeds(seeds - each.seeds)}"
            return f"{nothing}; {more} would be needed for a difference of this size."
    return f"{nothing}; if there is one, it is too small to be worth the runs that would show it."


def _more_seeds(count: int) -> str:
    return f"{count} more seed{'' if count == 1 else 's'}"


def _seen(each: Difference) -> str:
    seeds = "one seed" if each.seeds == 1 else f"{each.seeds} seeds"
    return f"{100 * abs(each.value):.1f} points apart on {each.prompts:,} prompts with {seeds}"


# -- the file -----------------------------------------------------------------------------------------------------


def as_object(found: Results) -> dict[str, Any]:
    """The results as plain dicts, lists, strings, finite numbers and None."""
    plan = found.plan
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": plan.argument,
        "keys": plan.keys,
        "seeds": plan.seeds,
        "budget": plan.budget,
        "measure": found.measure,
        "margin_unit": found.unit,
        "pairs": found.pairs,
        "prompts": found.prompts,
        "left_out": found.left_out,
        "level": LEVEL,
        "values": [
            {
                "values": dict(row.values),
                "accuracies": [_finite(value) for value in row.accuracies],
                "margins": [_finite(value) for value in row.margins],
                "left_at_step": row.left,
                "runs": [run.name for run in plan.runs if run.place == place],
            }
            for place, row in enumerate(found.rows)
        ],
        "differences": [_difference(each) for each in found.differences],
        "margin_differences": [_difference(each) for each in found.margins],
        "best": found.best,
        "failed": found.failed,
        "sentences": found.sentences,
    }


def _difference(each: Difference) -> dict[str, Any]:
    return {name: _finite(value) for name, value in vars(each).items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(found: Results) -> Path:
    """Write `sweep.json` into the folder of the sweep. The file is whole or as it was."""
    path = found.plan.folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{FILE}.part")
    part.write_text(json.dumps(as_object(found), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)
    return path
