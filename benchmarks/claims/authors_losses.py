"""50 optimizer steps of a plain loop with each paper's loss, against the trainer of the same method: the same weights.

    python benchmarks/claims/authors_losses.py

The plain loop shares nothing with the package but the tokens of the rows: each completion is one unpadded row, its
log-probabilities come from the model's own logits, and the losses below are written from the papers' equations. Both
sides use torch's AdamW in float64 on a tiny model. For KTO, which completion stands under which prompt is the package's
choice (`mismatched_partners`), since the paper leaves it open.
"""

import sys
from collections.abc import Callable

import torch
from common import Figure, main, tiny, token_log_probs, train
from torch import Tensor

from tests.conftest import make_pairs, make_unpaired

CLAIM = "Our trainers do what the papers' losses do: 50 steps of AdamW end at the same weights."
SOURCE = "the papers named in docs/objectives.md"
BAR = 1e-5
RATE = 1e-3
sig = torch.sigmoid


class Row:
    """A completion's token log-probabilities under the policy (N,), and under the reference (N,)."""

    def __init__(self, policy: Tensor, reference: Tensor) -> None:
        self.length = len(policy)
        self.log_p, self.log_ref = policy.sum(), reference.sum()
        self.ratio = self.log_p - self.log_ref
        self.average = self.log_p / self.length


# -- losses of a pair, as the papers write them: yw is the chosen side, yl the rejected one ---------------------------


def dpo(yw: Row, yl: Row, beta: float) -> Tensor:
    return -torch.log(sig(beta * yw.ratio - beta * yl.ratio))


def ipo(yw: Row, yl: Row, beta: float) -> Tensor:
    return (yw.ratio / yw.length - yl.ratio / yl.length - 1 / (2 * beta)) ** 2


def dpo_norm(yw: Row, yl: Row, beta: float) -> Tensor:
    return -torch.log(sig(beta / yw.length * yw.ratio - beta / yl.length * yl.ratio))


def apo_zero(yw: Row, yl: Row, beta: float) -> Tensor:
    return 1 - sig(beta * yw.ratio) + sig(beta * yl.ratio)


def simpo(yw: Row, yl: Row, beta: float, gamma: float) -> Tensor:
    return -torch.log(sig(beta / yw.length * yw.log_p - beta / yl.length * yl.log_p - gamma))


def cpo(yw: Row, yl: Row, beta: float) -> Tensor:
    return -torch.log(sig(beta * yw.log_p - beta * yl.log_p))


def orpo(yw: Row, yl: Row, beta: float) -> Tensor:
    odds_yw, odds_yl = (row.average.exp() / (1 - row.average.exp()) for row in (yw, yl))
    return -beta * torch.log(sig(torch.log(odds_yw / odds_yl)))


# -- the loss of a step ----------------------------------------------------------------------------------------------


def of_pairs(loss: Callable, nll: float = 0.0, **keys: float) -> Callable:
    """The mean loss of the pairs, plus `nll` times the mean over all chosen tokens of -log p."""

    def step_loss(model: torch.nn.Module, reference: torch.nn.Module, rows: list[dict]) -> Tensor:
        sides = [[_row(model, reference, row["prompt_ids"], row[side]) for row in rows] for side in _SIDES]
        value = torch.stack([loss(yw, yl, **keys) for yw, yl in zip(*sides, strict=True)]).mean()
        if nll:
            value = value - nll * sum(yw.log_p for yw in sides[0]) / sum(yw.length for yw in sides[0])
        return value

    return step_loss


_SIDES = ("chosen_ids", "rejected_ids")


def kto(model: torch.nn.Module, reference: torch.nn.Module, rows: list[dict]) -> Tensor:
    """KTO, eq. 7, with lambda_D = lambda_U = 1 and beta 0.1."""
    from trl_plus.step.partners import KLRow, mismatched_partners

    keys = [KLRow(tuple(row["prompt_ids"]), tuple(row["completion_ids"])) for row in rows]
    others = mismatched_partners(keys)
    with torch.no_grad():
        mismatched = [
            _row(model, reference, row["prompt_ids"], rows[other]["completion_ids"]).ratio
            for row, other in zip(rows, others, strict=True)
        ]
        z = torch.stack(mismatched).mean().clamp(min=0)
    losses = []
    for row in rows:
        distance = 0.1 * (_row(model, reference, row["prompt_ids"], row["completion_ids"]).ratio - z)
        losses.append(1 - sig(distance if row["label"] else -distance))
    return torch.stack(losses).mean()


def _row(model: torch.nn.Module, reference: torch.nn.Module, prompt: list[int], completion: list[int]) -> Row:
    with torch.no_grad():
        base = token_log_probs(reference, prompt, completion)
    return Row(token_log_probs(model, prompt, completion), base)


CASES = {
    "DPO": ("DPO", of_pairs(dpo, beta=0.1), {"beta": 0.1}),
    "IPO": ("DPO", of_pairs(ipo, beta=0.1), {"beta": 0.1, "loss_type": ["ipo"]}),
    "DPO, length-normalised": ("DPO", of_pairs(dpo_norm, beta=5.0), {"beta": 5.0, "loss_type": ["sigmoid_norm"]}),
    "APO-zero": ("DPO", of_pairs(apo_zero, beta=0.1), {"beta": 0.1, "loss_type": ["apo_zero"]}),
    "SimPO": ("SimPO", of_pairs(simpo, beta=2.0, gamma=1.0), {"beta": 2.0, "gamma": 1.0}),
    "CPO": ("CPO", of_pairs(cpo, nll=1.0, beta=0.1), {"beta": 0.1}),
    "ORPO": ("ORPO", of_pairs(orpo, nll=1.0, beta=0.1), {"beta": 0.1}),
    "KTO": ("KTO", kto, {"beta": 0.1}),
}


def plain_loop(step_loss: Callable, rows: list[dict], steps: int) -> dict[str, Tensor]:
    """The weights after so many steps of AdamW, with all rows in each of them."""
    model, reference = tiny()[0], tiny()[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        step_loss(model, reference, rows).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def figures(small: bool) -> list[Figure]:
    count, steps = (4, 3) if small else (8, 50)
    found = []
    for name, (method, step_loss, config) in CASES.items():
        rows = make_unpaired(count, 3) if method == "KTO" else make_pairs(count, 3)
        trainer = train(method, rows, steps, learning_rate=RATE, **config)
        start = dict(tiny()[0].named_parameters())
        plain = plain_loop(step_loss, list(trainer.train_dataset), steps)
        ours = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
        worst = max(float((ours[key] - plain[key]).abs().max().detach()) for key in plain)
        moved = max(float((plain[key] - start[key]).abs().max().detach()) for key in plain)
        what = f"{name}, {steps} steps on {count} rows, weights that moved by up to {moved:.2g}: largest difference"
        found.append(Figure(what, f"below {BAR:g}", f"{worst:.1e}", worst < BAR and moved > 10 * BAR))
    return found


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
