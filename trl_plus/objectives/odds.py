"""Log-odds of a log-probability, stable in value and gradient. Used by ORPO (https://huggingface.co/papers/2403.07691).

odds(p) = p / (1 - p), so log odds = log p - log(1 - p). Near p = 1 the naive log(1 - exp(log p)) rounds to -inf and its
gradient to NaN; masking that afterwards with `where` keeps the NaN in the gradient.
"""

import math

import torch
from torch import Tensor

from trl_plus.objectives.completions import at_least_float32


def log1mexp(log_p: Tensor) -> Tensor:
    """log(1 - exp(log_p)) for log_p <= 0, elementwise, in float32 or wider.

    1 - p is clamped from below at the machine epsilon of the computing dtype (1.2e-7 in float32), where its gradient is
    zero: at p = 1 the value is log(eps), not -inf. The two branches are those of Maechler, "Accurately Computing
    log(1 - exp(-|a|))" (2012): expm1 near p = 1, log1p elsewhere.
    """
    log_p = at_least_float32(log_p)
    near_one = log_p > -math.log(2)
    eps = torch.finfo(log_p.dtype).eps
    # Each branch sees only arguments for which it is finite, so no NaN enters the gradient of the other
    by_expm1 = torch.log(-torch.expm1(torch.where(near_one, log_p, -1.0).clamp(max=-eps)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near_one, -1.0, log_p)))
    return torch.where(near_one, by_expm1, by_log1p)


def log_odds(log_p: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p <= 0, elementwise. `log1mexp` bounds it by -log(eps): 15.9 in float32."""
    return at_least_float32(log_p) - log1mexp(log_p)
