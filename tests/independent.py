"""Loss and gradient of every method, from a model's own logits, in plain torch: what the trainers must reproduce.

Nothing of trl_plus and no batching takes part. Each completion is one unpadded row, its log-probabilities come from the
full logits of the model's own forward, and the losses are the formulas of the papers (docs/objectives.md).

    from independent import loss_and_gradient

    loss, gradient = loss_and_gradient("SimPO", model, trainer.train_dataset, beta=2.0, gamma=1.0)

Everything is computed in the model's dtype or wider: `model.double()` gives float64.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


@dataclass(frozen=True)
class Completion:
    """Log-probabilities of one completion of N tokens, with the reference's.

    Args:
        logps: (N,), of the completion's tokens under the policy.
        reference: (N,), under the reference; zeros without one.
        prompt: (M - 1,), of the prompt's tokens but the first, which nothing predicts.
        alignment: (N,), log of the sum of squared probabilities of each predicted distribution, without gradient.
    """

    logps: Tensor
    reference: Tensor
    prompt: Tensor
    alignment: Tensor

    def total(self, tail: float = 1.0, shared: int | None = None) -> Tensor:
        """The summed log-ratio; tokens after the first `shared` count `tail` times (LD-DPO)."""
        factor = torch.ones_like(self.logps)
        if shared is not None:
            factor[shared:] = tail
        return ((self.logps - self.reference) * factor).sum()

    @property
    def wpo_weight(self) -> Tensor:
        """The completion's factor of WPO's weight, without gradient."""
        return (self.logps.detach() - self.alignment).mean().exp()


# -- log-probabilities ------------------------------------------------------------------------------------------------


def own_logits(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """(T, V): the logits of one row of T token ids, from the model's own forward, in float32 or wider."""
    inputs = {name: value for name, value in ({"use_cache": False} | inputs).items() if value is not None}
    output = model(input_ids=ids[None].clone(), attention_mask=torch.ones_like(ids)[None], **inputs)
    logits = output["logits"] if isinstance(output, Mapping) else output[0]
    logits = logits[0, -len(ids) :]  # virtual tokens of prompt-learning adapters come first
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def row(
    model: Any, prompt: Sequence[int], completion: Sequence[int], reference: Any = None, **inputs: Any
) -> Completion:
    """The completion's log-probabilities after its prompt under `model`, and under `reference` if there is one."""
    ids = torch.tensor([*prompt, *completion], device=next(model.parameters()).device)
    start = max(len(prompt) - 1, 0)

    def each(scorer: Any) -> tuple[Tensor, Tensor]:
        distributions = own_logits(scorer, ids, **inputs)[:-1].log_softmax(-1)
        return distributions.gather(1, ids[1:, None])[:, 0], (2 * distributions.detach()).logsumexp(-1)

    logps, alignment = each(model)
    if reference is None:
        under_reference = torch.zeros_like(logps)
    else:
        with torch.no_grad():
            under_reference = each(reference)[0].to(logps.device)
    return Completion(logps[start:], under_reference[start:], logps[:start], alignment[start:])


def _cut(prompt: Sequence[int], completion: Sequence[int], max_length: int | None) -> Sequence[int]:
    return completion if max_length is None else completion[: max(max_length - len(prompt), 0)]


def _divergence(ratio: Tensor, kind: str, coefficient: float) -> Tensor:
    """The derivative f' of an f-divergence at the probability ratio exp(ratio)."""
    if kind == "forward_kl":
        return 1 - torch.exp(-ratio)
    if kind == "js_divergence":
        return math.log(2) + logsigmoid(ratio)
    if kind == "alpha_divergence" and coefficient != 1:
        return (torch.exp((coefficient - 1) * ratio) - 1) / (coefficient - 1)
    return ratio


def _dpo_losses(
    loss_type: str, c: Tensor, r: Tensor, chosen: Tensor, rejected: Tensor, lengths: tuple[Tensor, Tensor], o: Mapping
) -> Tensor:
    """(B,): one loss type. `c`, `r` are log-ratios, `chosen`, `rejected` the same after the f-divergence."""
    beta, e, tau = o["beta"], o["label_smoothing"], o["discopop_tau"]
    d, (lc, lr) = chosen - rejected, lengths
    if loss_type in ("aot", "aot_unpaired"):
        if loss_type == "aot":
            x = (o["policy"][0] - o["policy"][1]).sort()[0] - (o["policy"][2] - o["policy"][3]).sort()[0]
        else:
            x = c.sort()[0] - r.sort()[0]
        return -(1 - e) * logsigmoid(beta * x) - e * logsigmoid(-beta * x)
    x = d if o["ipo_reduction"] == "sum" else chosen / lc - rejected / lr
    if loss_type == "exo_pair":
        p = torch.sigmoid(beta * d)
        return p * (p.log() - math.log(1 - e)) + (1 - p) * (torch.sigmoid(-beta * d).log() - math.log(e))
    losses = {
        "sigmoid": lambda: -(1 - e) * logsigmoid(beta * d) - e * logsigmoid(-beta * d),
        "robust": lambda: (-(1 - e) * logsigmoid(beta * d) + e * logsigmoid(-beta * d)) / (1 - 2 * e),
        "hinge": lambda: relu(1 - beta * d),
        "ipo": lambda: (x - 1 / (2 * beta)) ** 2,
        "sigmoid_norm": lambda: -logsigmoid(beta * (chosen / lc - rejected / lr)),
        "apo_zero": lambda: 1 - torch.sigmoid(beta * c) + torch.sigmoid(beta * r),
        "apo_down": lambda: torch.sigmoid(beta * c) + 1 - torch.sigmoid(beta * (c - r)),
        "nca_pair": lambda: -logsigmoid(beta * c) - (logsigmoid(-beta * c) + logsigmoid(-beta * r)) / 2,
        "bco_pair": lambda: -logsigmoid(beta * c) - logsigmoid(-beta * r),
        "sppo_hard": lambda: (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2,
        "discopop": lambda: (
            -torch.sigmoid(-beta * d / tau) * logsigmoid(beta * d)
            + torch.sigmoid(beta * d / tau) * torch.exp(-beta * d)
        ),
    }
    return losses[loss_type]()


def _family(pairs: Sequence[tuple[Completion, Completion]], nll: Tensor, weights: Tensor, o: Mapping) -> Tensor:
    """The mean loss of the pairs under `loss_type`, one name or a list with `loss_weights`."""
    alpha = o["ld_alpha"]
    shared = [None if alpha is None else min(len(a.logps), len(b.logps)) for a, b in pairs]
    tail = 1.0 if alpha is None else alpha
    c = torch.stack([a.total(tail, n) for (a, _), n in zip(pairs, shared, strict=True)])
    r = torch.stack([b.total(tail, n) for (_, b), n in zip(pairs, shared, strict=True)])
    lengths = tuple(torch.tensor([float(len(p[i].logps)) for p in pairs], dtype=c.dtype) for i in (0, 1))
    summed = [torch.stack([getattr(p[i], of).sum() for p in pairs]) for of in ("logps", "reference") for i in (0, 1)]
    scores = [_divergence(x, o["f_divergence_type"], o["f_alpha_divergence_coef"]) for x in (c, r)]
    names = [o["loss_type"]] if isinstance(o["loss_type"], str) else list(o["loss_type"])
    factor = torch.stack([a.wpo_weight * b.wpo_weight for a, b in pairs]) if o["use_weighting"] else 1
    loss = torch.zeros((), dtype=c.dtype)
    for name, share in zip(names, o["loss_weights"] or [1.0] * len(names), strict=True):
        if name == "sft":
            loss = loss + share * nll
        else:
            each = _dpo_losses(name, c, r, *scores, lengths, {**o, "policy": summed})
            loss = loss + share * _mean(each * factor, weights)
    return loss


# -- the other losses on pairs ----------------------------------------------------------------------------------------


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum()


def _log_odds(log_p: Tensor) -> Tensor:
    return log_p - torch.log(-torch.expm1(log_p))


def _without_reference(method: str, chosen: Tensor, rejected: Tensor, o: Mapping) -> Tensor:
    """The preference term of one pair; `chosen`, `rejected` hold the log-probability of each token."""
    beta, e = o["beta"], o["label_smoothing"]
    if method == "orpo":
        if o["odds"] == "token":
            return -beta * logsigmoid(_log_odds(chosen).mean() - _log_odds(rejected).mean())
        return -beta * logsigmoid(_log_odds(chosen.mean()) - _log_odds(rejected.mean()))
    if method == "cpo" and o["loss_type"] == "ipo":
        return (chosen.mean() - rejected.mean() - 1 / (2 * beta)) ** 2
    if method == "simpo":
        gamma = beta * o["gamma_beta_ratio"] if o["gamma"] is None else o["gamma"]
        margin = beta * (chosen.mean() - rejected.mean()) - gamma
    else:
        margin = beta * (chosen.sum() - rejected.sum())
    if o["loss_type"] == "hinge":
        return relu(1 - margin)
    return -(1 - e) * logsigmoid(margin) - e * logsigmoid(-margin)


def paired_loss(
    method: str, model: Any, rows: Sequence[Mapping], reference: Any, inputs: Mapping, o: Mapping
) -> Tensor:
    """The loss of an effective batch: rows of `prompt_ids`, `chosen_ids`, `rejected_ids` and maybe `weight`."""
    pairs = [
        tuple(
            row(model, p["prompt_ids"], _cut(p["prompt_ids"], p[side], o["max_length"]), reference, **inputs)
            for side in ("chosen_ids", "rejected_ids")
        )
        for p in rows
    ]
    first = pairs[0][0].logps
    weights = torch.tensor([float(p.get("weight", 1.0)) for p in rows], dtype=first.dtype, device=first.device)
    tokens = [torch.cat([a.prompt, a.logps]) if o["nll_scope"] == "full" else a.logps for a, _ in pairs]
    sums = torch.stack([-t.sum() for t in tokens])
    counts = torch.tensor([float(len(t)) for t in tokens], dtype=sums.dtype, device=sums.device)
    nll = (sums * weights).sum() / (counts * weights).sum()
    if o["nll_reduction"] == "sequence":
        nll = _mean(sums / counts, weights)
    if method == "dpo":
        return _family(pairs, nll, weights, o)
    each = torch.stack([_without_reference(method, a.logps, b.logps, o) for a, b in pairs])
    nll_weight = {"simpo": o["sft_weight"], "cpo": o["cpo_alpha"], "orpo": 1.0}[method]
    return _mean(each, weights) + nll_weight * nll


def unpaired_loss(model: Any, rows: Sequence[Mapping], reference: Any, inputs: Mapping, o: Mapping) -> Tensor:
    """KTO's loss of an effective batch: rows of `prompt_ids`, `completion_ids`, `label` and maybe `weight`.

    `partners[i]` is the index of the row whose completion is scored after row i's prompt for the reference point. Two
    rows of different prompts can only be each other's: `[1, 0]`.
    """

    def scored(prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        return row(model, prompt, _cut(prompt, completion, o["max_length"]), reference, **inputs).total()

    ratios = torch.stack([scored(x["prompt_ids"], x["completion_ids"]) for x in rows])
    weights = torch.tensor([float(x.get("weight", 1.0)) for x in rows], dtype=ratios.dtype, device=ratios.device)
    z_ref = torch.zeros((), dtype=ratios.dtype)
    if o["loss_type"] != "apo_zero_unpaired":
        with torch.no_grad():
            pairs = [(x["prompt_ids"], rows[i]["completion_ids"]) for x, i in zip(rows, o["partners"], strict=True)]
            z_ref = _mean(torch.stack([scored(*pair) for pair in pairs]), weights).clamp(min=0)
    signs = torch.tensor([1.0 if x["label"] else -1.0 for x in rows], dtype=ratios.dtype)
    lambdas = [o["desirable_weight"] if x["label"] else o["undesirable_weight"] for x in rows]
    each = torch.tensor(lambdas, dtype=ratios.dtype) * (1 - torch.sigmoid(signs * o["beta"] * (ratios - z_ref)))
    return _mean(each, weights)


# -- what tests call --------------------------------------------------------------------------------------------------

# The trainers' defaults; the names are those of their configurations
DEFAULTS: dict[str, Any] = {
    "label_smoothing": 0.0, "loss_type": "sigmoid", "loss_weights": None, "ipo_reduction": "mean", "discopop_tau": 0.05,
    "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "ld_alpha": None, "use_weighting": False,
    "gamma": None, "gamma_beta_ratio": 0.5, "sft_weight": 0.0, "cpo_alpha": 1.0, "odds": "sequence",
    "nll_scope": "completion", "nll_reduction": "token", "desirable_weight": 1.0, "undesirable_weight": 1.0,
    "partners": None, "max_length": None,
}  # fmt: skip


def loss_of(
    method: str,
    model: Any,
    rows: Iterable[Mapping],
    *,
    reference: Any = None,
    inputs: Mapping | None = None,
    **settings,
) -> Tensor:
    """The loss of one effective batch, a scalar with gradient.

    Args:
        method: "DPO", "SimPO", "CPO", "ORPO" or "KTO".
        model: the policy, in the mode that it is to be computed in.
        rows: tokenized rows, as in `trainer.train_dataset`.
        reference: the reference model of DPO and KTO; without one its log-probabilities are zero.
        inputs: further arguments of the model's forward; `use_cache` is False, and is left out if it is None.
        **settings: fields of the method's configuration by name. `beta` defaults to the method's own.
    """
    unknown = settings.keys() - DEFAULTS.keys() - {"beta"}
    assert not unknown, f"no such settings: {unknown}"
    method, rows, inputs = method.lower(), [dict(r) for r in rows], inputs or {}
    o = {"beta": 2.0 if method == "simpo" else 0.1} | DEFAULTS | settings
    if method == "kto":
        return unpaired_loss(model, rows, reference, inputs, o)
    if method != "dpo" and not isinstance(o["loss_type"], str):
        (o["loss_type"],) = o["loss_type"]
    return paired_loss(method, model, rows, reference, inputs, o)


def gradient(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """{name: gradient in float64} of every trainable parameter; zeros for one that the loss does not touch."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    pairs = zip(trained.items(), grads, strict=True)
    return {name: torch.zeros_like(p).double() if g is None else g.double() for (name, p), g in pairs}


def loss_and_gradient(
    method: str, model: Any, rows: Iterable[Mapping], **kwargs: Any
) -> tuple[float, dict[str, Tensor]]:
    """The loss of one effective batch, and its gradient by parameter in float64. Arguments as for `loss_of`."""
    loss = loss_of(method, model, rows, **kwargs)
    return loss.item(), gradient(model, loss)


def distance(gradient: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The relative L2 distance of two gradients over the same parameters."""
    assert gradient.keys() == expected.keys(), gradient.keys() ^ expected.keys()
    gap = sum(((gradient[name].double() - expected[name].double()) ** 2).sum() for name in expected)
    size = sum((expected[name].double() ** 2).sum() for name in expected)
    assert size > 0, "the expected gradient is zero"
    return float((gap / size) ** 0.5)
