"""Values with 95% intervals, and the table of held-out figures. Imports no numpy: commands without it print them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, PlainSerializer
from rich.table import Table

NORMAL_95 = 1.959964  # 97.5% quantile of the standard normal distribution


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


Figure = Annotated[float, PlainSerializer(_or_null)]  # in JSON null stands for NaN
ALL_REQUIRED = ConfigDict(json_schema_serialization_defaults_required=True)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval. An end is NaN if there are too few rows for one."""

    __pydantic_config__ = ALL_REQUIRED
    value: Annotated[Figure, Field(description="Null if it is not defined, such as a correlation of a constant.")]
    low: Annotated[Figure, Field(description="Lower end; null if there are too few rows for an interval.")] = math.nan
    high: Annotated[Figure, Field(description="Upper end of the interval.")] = math.nan


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share observed on `count` rows (Wilson 1927).

    >>> wilson_interval(0.5, 100)
    (0.4038315..., 0.5961684...)
    """
    square = NORMAL_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding passes these ends at a share of 0 or 1


ACCURACY, MARGIN, LOSS = "eval_rewards/accuracies", "eval_rewards/margins", "eval_loss"


# -- the table of held-out figures before and after training --------------------------------------------------------


def held_out_table(
    before: Mapping[str, float] | None, after: Mapping[str, float], rows: int | None, has_reference: bool
) -> Table:
    """Held-out reward accuracy with its interval, mean margin and loss.

    Args:
        before: metrics before training; None if they are not known (a resumed run).
        rows: number of held-out rows; None if they cannot be counted, and then there is no interval.
        has_reference: rewards are log-ratios to a reference, all 0 before training.
    """
    table = Table(title="Held-out rows" if rows is None else f"Held-out rows: {rows}", title_justify="left")
    table.add_column("metric")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    names = {"reward accuracy [95% interval]": ACCURACY, "mean reward margin": MARGIN, "loss": LOSS}
    for title, metric in names.items():
        if metric in after:
            table.add_row(title, _cell(before, metric, rows), _cell(after, metric, rows))
    if has_reference and before is not None:
        table.caption = (
            "Before training the policy is its own reference: all rewards are 0, so the margin is 0 and no pair counts "
            "as won."
        )
        table.caption_justify = "left"
    return table


def _cell(metrics: Mapping[str, float] | None, metric: str, rows: int | None) -> str:
    if metrics is None or metric not in metrics:
        return "-"
    value = metrics[metric]
    if metric != ACCURACY:
        return f"{value:.4f}"
    if rows is None:
        return f"{value:.3f}"
    low, high = wilson_interval(value, rows)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
