"""Conservative DPO stops at the margin at which its label noise is the policy's own doubt.

python benchmarks/claims/cdpo_margin.py
"""

import sys
from math import log

import torch
from common import Figure, completions, descend, main, margin, train

from trl_plus.objectives import dpo

CLAIM = "cDPO stops at a margin of log((1 - e) / e) / beta."
SOURCE = "Mitchell 2023 (https://ericmitchell.ai/cdpo.pdf)"


def figures(small: bool) -> list[Figure]:
    found = []
    for beta in (0.1, 1.0):
        for noise in (0.05, 0.1, 0.2, 0.4):
            zero = completions(torch.zeros(1, dtype=torch.float64))

            def loss(d: torch.Tensor, beta: float = beta, noise: float = noise, zero: object = zero) -> torch.Tensor:
                return dpo(completions(d), zero, beta=beta, label_smoothing=noise).sum()

            stopped, wanted = float(descend(loss, torch.zeros(1))), log((1 - noise) / noise) / beta
            what = f"beta {beta:g}, label_smoothing {noise:g}: margin"
            found.append(Figure(what, f"{wanted:.6f}", f"{stopped:.6f}", abs(stopped - wanted) < 1e-5))
    rows = [{"prompt": "colour:", "chosen": " red", "rejected": " blue sky"}]
    keys = {"beta": 0.5, "label_smoothing": 0.2, "learning_rate": 2e-3, "lr_scheduler_type": "cosine"}
    steps = 80 if small else 300
    stopped, wanted = margin(train("DPO", rows, steps, **keys)), log(0.8 / 0.2) / 0.5
    what = f"DPOTrainer on a tiny model, one pair, {steps} steps, beta 0.5, label_smoothing 0.2: margin"
    return [*found, Figure(what, f"{wanted:.4f}", f"{stopped:.4f}", abs(stopped - wanted) < 1e-2)]


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
