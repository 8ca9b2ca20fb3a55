"""Wilson's interval. Imports the standard library only: commands that load no numpy print it, too."""

import math

NORMAL_95 = 1.959964  # 97.5% quantile of the standard normal distribution


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share observed on `count` rows (Wilson 1927).

    >>> wilson_interval(0.5, 100)
    (0.4038315..., 0.5961684...)
    """
    square = NORMAL_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding passes these ends at a share of 0 or 1
