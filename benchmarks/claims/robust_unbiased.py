"""Robust DPO's loss and gradient on labels that are flipped at random are, on average, DPO's on the true labels.

python benchmarks/claims/robust_unbiased.py
"""

import sys
from collections.abc import Callable

import torch
from common import Figure, completions, main
from torch import Tensor

from trl_plus.objectives import dpo, robust

CLAIM = "Robust DPO is unbiased under label flips; DPO and cDPO are not."
SOURCE = "Chowdhury, Kini and Natarajan 2024, section 3 (https://huggingface.co/papers/2403.00409)"
BETA, Z = 0.1, 1.959964  # of a 95% interval


def each(loss: Callable, ratios: Tensor, flipped: Tensor, **keys: float) -> Tensor:
    """(B, 3): per row the loss and its derivatives by both log-ratios (B, 2), of labels that are flipped or not."""
    ratios = ratios.clone().requires_grad_()
    first, second = (torch.where(flipped, ratios[:, 1 - side], ratios[:, side]) for side in (0, 1))
    values = loss(completions(first), completions(second), beta=BETA, **keys)
    (gradient,) = torch.autograd.grad(values.sum(), ratios)
    return torch.cat([values.detach()[:, None], gradient], 1)


def deviations(loss: Callable, seed: int, draws: int, noise: float, **keys: float) -> Tensor:
    """(3,): how many standard errors the mean over flipped labels lies from DPO's on the true ones."""
    generator = torch.Generator().manual_seed(seed)
    ratios = 10 * torch.randn(64, 2, generator=generator, dtype=torch.float64)
    true = each(dpo, ratios, torch.zeros(64, dtype=torch.bool)).mean(0)
    flipped = torch.rand(64 * draws, generator=generator) < noise
    values = each(loss, ratios.repeat(draws, 1), flipped, **keys).reshape(draws, 64, 3).mean(1)
    return (values.mean(0) - true) / (values.std(0) / draws**0.5)


def figures(small: bool) -> list[Figure]:
    seeds, draws, noise = (20, 400, 0.2) if small else (200, 2000, 0.2)
    off = torch.stack([deviations(robust, seed, draws, noise, label_smoothing=noise) for seed in range(seeds)])
    inside = (off.abs() < Z).double().mean(0)
    spread = 4 * (0.95 * 0.05 / seeds) ** 0.5  # four standard errors of a share of 95%
    found = [
        Figure(
            f"robust, 20% of labels flipped, {seeds} seeds of {64 * draws} labels: share of 95% intervals around "
            f"{what} that hold DPO's on the true labels",
            f"0.95, within {spread:.2f}",
            f"{float(share):.3f}",
            abs(float(share) - 0.95) < spread,
        )
        for what, share in zip(("the loss", "the gradient, chosen", "the gradient, rejected"), inside, strict=True)
    ]
    for name, keys in (("DPO", {}), ("cDPO", {"label_smoothing": noise})):
        worst = float(deviations(dpo, 0, draws, noise, **keys)[0])
        what = f"{name} on the same labels, one seed: distance of its loss from DPO's on the true labels"
        found.append(Figure(what, "more than 5 standard errors", f"{worst:.0f} standard errors", abs(worst) > 5))
    return found


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
