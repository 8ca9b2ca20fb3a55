"""On a preference that never varies, DPO's margin grows without bound and IPO's stops at 1 / (2 beta).

python benchmarks/claims/deterministic_preferences.py
"""

import sys
from collections.abc import Callable
from math import log

import torch
from common import Figure, completions, main, margin, train

from trl_plus.objectives import dpo, ipo

CLAIM = "On deterministic preferences DPO diverges, and IPO stops at a margin of 1 / (2 beta)."
SOURCE = "Azar et al. 2023, section 4.2 and eq. 17 (https://huggingface.co/papers/2310.12036)"


def descended(loss: Callable, steps: list[int], rate: float = 1.0, **keys: float) -> list[float]:
    """Margins after so many steps of gradient descent on the logits of two completions."""
    logits, margins = torch.zeros(2, dtype=torch.float64, requires_grad=True), []
    for step in range(1, max(steps) + 1):
        ratio = logits.log_softmax(-1) - torch.full((2,), 0.5, dtype=torch.float64).log()
        value = loss(completions(ratio[:1]), completions(ratio[1:]), **keys).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        with torch.no_grad():
            logits -= rate * gradient
        if step in steps:
            margins.append(float((logits[0] - logits[1]).detach()))
    return margins


def figures(small: bool) -> list[Figure]:
    decades = [100, 1000] if small else [100, 1000, 10_000]
    grown = descended(dpo, decades, beta=1.0)
    steps = ", ".join(f"{step}" for step in decades)
    rise = grown[-1] - grown[-2]
    found = [
        Figure(
            f"DPO, beta 1, gradient descent: margins after {steps} steps",
            f"a rise of ln 10 = {log(10):.3f} each time, which has no limit",
            ", ".join(f"{value:.3f}" for value in grown),
            abs(rise - log(10)) < 0.05,
        )
    ]
    for beta in (0.1, 0.5, 1.0):
        (stopped,) = descended(ipo, [200], rate=0.2, beta=beta, reduction="sum")
        wanted = 1 / (2 * beta)
        found.append(
            Figure(f"IPO, beta {beta:g}: margin", f"{wanted:g}", f"{stopped:.9f}", abs(stopped - wanted) < 1e-6)
        )
    return [*found, *_trained(40 if small else 200, 0.5, 0.05 if small else 1e-2)]


def _trained(steps: int, beta: float, bar: float) -> list[Figure]:
    """The same with DPOTrainer on one pair and a tiny model. IPO stops within `bar` of its margin."""
    rows = [{"prompt": "colour:", "chosen": " red", "rejected": " blue sky"}]
    common = {"beta": beta, "learning_rate": 2e-3}
    ours = [margin(train("DPO", rows, count, **common)) for count in (steps, 4 * steps)]
    stopped = margin(
        train("DPO", rows, 2 * steps, loss_type=["ipo"], ipo_reduction="sum", lr_scheduler_type="cosine", **common)
    )
    what = f"DPOTrainer on a tiny model, one pair, beta {beta:g}"
    wanted = 1 / (2 * beta)
    return [
        Figure(
            f"{what}: margins of DPO after {steps} and {4 * steps} steps",
            f"above {wanted:g}, and rising",
            f"{ours[0]:.2f}, {ours[1]:.2f}",
            wanted < ours[0] < ours[1] - 0.5,
        ),
        Figure(
            f"{what}: margin of IPO after {2 * steps} steps",
            f"{wanted:g}, within {bar:g}",
            f"{stopped:.4f}",
            abs(stopped - wanted) < bar,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
