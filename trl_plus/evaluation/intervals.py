"""Values with 95% intervals, and Wilson's. Standard library only: `train` prints one too."""

import math
from dataclasses import dataclass

NORMAL_95 = 1.959964  # 97.5% quantile of the standard normal distribution


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval. An end is NaN where there are too few rows for one."""

    value: float
    low: float = math.nan
    high: float = math.nan


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share observed on `count` rows (Wilson 1927).

    >>> wilson_interval(0.5, 100)
    (0.4038315..., 0.5961684...)
    """
    square = NORMAL_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding passes these ends at a share of 0 or 1
