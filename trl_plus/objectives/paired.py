"""Losses on pairs: a chosen and a rejected completion of one prompt.

Every function takes two `Completions` of B rows each and returns the loss of each pair, (B,). Notation of the formulas:
S and M are the summed and the mean log-likelihood of a completion, c and r the log-ratio (policy minus reference) of
the chosen and the rejected one, d = c - r, s the sigmoid, ls its logarithm.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trl_plus.objectives.completions import Completions
from trl_plus.objectives.odds import log_odds


def _smoothed(margin: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - e) ls(margin) - e ls(-margin): binary cross-entropy against a label that is wrong with probability e."""
    loss = -(1 - label_smoothing) * logsigmoid(margin)
    if label_smoothing:
        loss = loss - label_smoothing * logsigmoid(-margin)
    return loss


def dpo(
    chosen: Completions,
    rejected: Completions,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    margin: Tensor | None = None,
) -> Tensor:
    """-ls(beta d). Rafailov et al. 2023, eq. 7 (https://huggingface.co/papers/2305.18290).

    With `label_smoothing` e > 0 it is conservative DPO, cDPO (Mitchell 2023, https://ericmitchell.ai/cdpo.pdf, eq. 3).
    With `margin` D, (B,), in units of the reward, it is -ls(beta d - D): DPO with an offset, ODPO (Amini et al. 2024,
    eq. 8, https://huggingface.co/papers/2402.10571).
    """
    return _smoothed(_beyond(beta * (chosen.log_ratio - rejected.log_ratio), margin), label_smoothing)


def _beyond(difference: Tensor, margin: Tensor | None) -> Tensor:
    """By how much a difference of rewards exceeds what is asked of each pair, both (B,)."""
    return difference if margin is None else difference - margin.to(difference.dtype)


def robust(chosen: Completions, rejected: Completions, *, beta: float, label_smoothing: float) -> Tensor:
    """(-(1-e) ls(beta d) + e ls(-beta d)) / (1 - 2e). rDPO (https://huggingface.co/papers/2403.00409)."""
    margin = beta * (chosen.log_ratio - rejected.log_ratio)
    e = label_smoothing
    return (-(1 - e) * logsigmoid(margin) + e * logsigmoid(-margin)) / (1 - 2 * e)


def ipo(chosen: Completions, rejected: Completions, *, beta: float, reduction: str = "mean") -> Tensor:
    """(x - 1 / (2 beta))^2. IPO, eq. 17 with tau = beta (https://huggingface.co/papers/2310.12036).

    `reduction="mean"`: x = c/|yw| - r/|yl|, the form that the authors confirmed to TRL's; `"sum"`: x = d, as written.
    """
    if reduction == "mean":
        difference = chosen.mean_log_ratio - rejected.mean_log_ratio
    else:
        difference = chosen.log_ratio - rejected.log_ratio
    return (difference - 1 / (2 * beta)) ** 2


def hinge(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """relu(1 - beta d). SLiC-HF's hinge on log-ratios, as in RSO (https://huggingface.co/papers/2309.06657)."""
    return torch.relu(1 - beta * (chosen.log_ratio - rejected.log_ratio))


def dpo_norm(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """-ls(beta (c/|yw| - r/|yl|)). Length-normalised DPO of Tulu 3 (https://huggingface.co/papers/2411.15124)."""
    return -logsigmoid(beta * (chosen.mean_log_ratio - rejected.mean_log_ratio))


def apo_zero(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """1 - s(beta c) + s(beta r). APO-zero, eq. 7 plus one (https://huggingface.co/papers/2408.06266)."""
    return torch.sigmoid(-beta * chosen.log_ratio) + torch.sigmoid(beta * rejected.log_ratio)


def apo_down(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """s(beta c) + 1 - s(beta d). APO-down, eq. 8 plus one (https://huggingface.co/papers/2408.06266)."""
    c, r = chosen.log_ratio, rejected.log_ratio
    return torch.sigmoid(beta * c) + torch.sigmoid(-beta * (c - r))


def simpo(
    chosen: Completions,
    rejected: Completions,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
    margin: Tensor | None = None,
) -> Tensor:
    """-ls(beta (Mw - Ml) - gamma). SimPO, eq. 6 (https://huggingface.co/papers/2405.14734). No reference.

    `gamma` is the target margin itself (the repository's `gamma_beta_ratio` times beta). `loss_type="hinge"`:
    relu(1 - (beta (Mw - Ml) - gamma)), as in the authors' code. `margin`, (B,), is added to gamma, pair by pair.
    """
    beyond = _beyond(beta * (chosen.mean - rejected.mean) - gamma, margin)
    return torch.relu(1 - beyond) if loss_type == "hinge" else _smoothed(beyond, label_smoothing)


def cpo(
    chosen: Completions,
    rejected: Completions,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
) -> Tensor:
    """-ls(beta (Sw - Sl)). CPO's preference term (https://huggingface.co/papers/2401.08417). No reference.

    The paper adds the NLL of the chosen completions with weight 1; that token mean is the trainer's.
    `loss_type="hinge"`: relu(1 - beta (Sw - Sl)); `"ipo"`: (Mw - Ml - 1 / (2 beta))^2, both of the author's trainer.
    """
    if loss_type == "ipo":
        return (chosen.mean - rejected.mean - 1 / (2 * beta)) ** 2
    margin = beta * (chosen.total - rejected.total)
    return torch.relu(1 - margin) if loss_type == "hinge" else _smoothed(margin, label_smoothing)


def log_odds_ratio(chosen: Completions, rejected: Completions, *, odds: str = "sequence") -> Tensor:
    """o(yw) - o(yl), the logarithm of ORPO's odds ratio, eq. 4 and 5 (https://huggingface.co/papers/2403.07691).

    `odds="sequence"`: o = log odds of exp(M), the length-normalised likelihood, as in the paper.
    `odds="token"`: o = the mean over tokens of each token's own log-odds.
    """
    if odds == "sequence":
        return log_odds(chosen.mean) - log_odds(rejected.mean)
    # The mask goes first: log-odds of what a masked position holds may be NaN
    per_token = [Completions(log_odds(x.logps.masked_fill(~x.mask.bool(), -1.0)), x.mask) for x in (chosen, rejected)]
    return per_token[0].mean - per_token[1].mean


def odds_ratio(chosen: Completions, rejected: Completions, *, beta: float, odds: str = "sequence") -> Tensor:
    """-beta ls(o(yw) - o(yl)). ORPO's odds-ratio term, eq. 7, with its weight in eq. 6 (https://huggingface.co/papers/2403.07691).

    The paper adds the NLL of the chosen completions; that token mean is the trainer's.
    """
    return -beta * logsigmoid(log_odds_ratio(chosen, rejected, odds=odds))


def exo_pair(chosen: Completions, rejected: Completions, *, beta: float, label_smoothing: float) -> Tensor:
    """KL(softmax(beta c, beta r) || (1-e, e)). EXO-pref, eq. 16 with K = 2 (https://huggingface.co/papers/2402.00856)."""
    margin = beta * (chosen.log_ratio - rejected.log_ratio)
    target = margin.new_tensor([1 - label_smoothing, label_smoothing]).log()
    to_chosen = torch.sigmoid(margin) * (logsigmoid(margin) - target[0])
    to_rejected = torch.sigmoid(-margin) * (logsigmoid(-margin) - target[1])
    return to_chosen + to_rejected


def nca_pair(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """-ls(beta c) - (ls(-beta c) + ls(-beta r)) / 2. NCA, K = 2 (https://huggingface.co/papers/2402.05369)."""
    c, r = beta * chosen.log_ratio, beta * rejected.log_ratio
    return -logsigmoid(c) - 0.5 * (logsigmoid(-c) + logsigmoid(-r))


def bco_pair(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """-ls(beta c) - ls(-beta r). BCO without reward shift (https://huggingface.co/papers/2404.04656), part of MPO."""
    return -logsigmoid(beta * chosen.log_ratio) - logsigmoid(-beta * rejected.log_ratio)


def sppo_hard(chosen: Completions, rejected: Completions, *, beta: float) -> Tensor:
    """(c - 1/(2 beta))^2 + (r + 1/(2 beta))^2. SPPO, eq. 4.7, wins certain (https://huggingface.co/papers/2405.00675)."""
    return (chosen.log_ratio - 0.5 / beta) ** 2 + (rejected.log_ratio + 0.5 / beta) ** 2


def discopop(chosen: Completions, rejected: Completions, *, beta: float, tau: float = 0.05) -> Tensor:
    """(1-m) -ls(x) + m exp(-x), x = beta d, m = s(x / tau). DiscoPOP, eq. 5 (https://huggingface.co/papers/2406.08414)."""
    x = beta * (chosen.log_ratio - rejected.log_ratio)
    # m exp(-x) as one exponential: apart, the factors are 0 and infinity for a large negative x
    return -torch.sigmoid(-x / tau) * logsigmoid(x) + torch.exp(logsigmoid(x / tau) - x)
