"""The objectives of direct alignment: pure functions of per-token log-probabilities and masks.

No trainer, no model, no I/O; this package imports only torch. Every function takes `Completions` and returns one loss
per row, in float32 or the wider dtype of its input. Means over rows, weights and token-mean NLL terms belong to
whoever knows the whole effective batch (`trl_plus.step.exact_step`).
"""

from trl_plus.objectives.completions import Completions
from trl_plus.objectives.odds import log1mexp, log_odds
from trl_plus.objectives.paired import (
    apo_down,
    apo_zero,
    bco_pair,
    cpo,
    discopop,
    dpo,
    dpo_norm,
    exo_pair,
    hinge,
    ipo,
    log_odds_ratio,
    nca_pair,
    odds_ratio,
    robust,
    simpo,
    sppo_hard,
)
from trl_plus.objectives.unpaired import apo_zero_unpaired, kto, reference_point

__all__ = [
    "Completions",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco_pair",
    "cpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "exo_pair",
    "hinge",
    "ipo",
    "kto",
    "log1mexp",
    "log_odds",
    "log_odds_ratio",
    "nca_pair",
    "odds_ratio",
    "reference_point",
    "robust",
    "simpo",
    "sppo_hard",
]
