"""Values with 95% intervals, and Wilson's. Imports no numpy: commands that load none print them, too."""

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, PlainSerializer

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
