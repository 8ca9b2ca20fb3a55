"""A fifth of the training labels flipped: cDPO and robust DPO against DPO, on five draws of the quickstart's pairs.

python benchmarks/claims/signs_noise.py

The held-out labels are right. Both losses know the share of flips: `label_smoothing` is 0.2.
"""

import random
import sys

from common import Figure, main
from signs import base, draw, minus, over_seeds, pairs, run, sums

CLAIM = "With a fifth of the labels flipped, cDPO and robust DPO order more held-out pairs rightly than DPO."
SOURCE = "Chowdhury, Kini and Natarajan 2024 (https://huggingface.co/papers/2403.00409)"
LOSSES = {
    "DPO": {},
    "cDPO": {"label_smoothing": 0.2},
    "robust DPO": {"loss_type": ["robust"], "label_smoothing": 0.2},
}


def flipped(rows: list[dict], seed: int) -> list[dict]:
    """The rows with both answers exchanged in a fifth of them."""
    turned = set(random.Random(seed).sample(range(len(rows)), len(rows) // 5))
    return [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if i in turned else row
        for i, row in enumerate(rows)
    ]


def figures(small: bool) -> list[Figure]:
    seeds, count, epochs = (2, 32, 1) if small else (5, 96, 3)
    train, held = pairs("train"), pairs("test")[: 16 if small else 160]
    model, tokenizer = base()
    before = {side: sums(model, tokenizer, held, side) for side in ("chosen", "rejected")}
    accuracy = {}
    for name, keys in LOSSES.items():
        found = []
        for seed in range(seeds):
            rows = flipped(draw(train, count, seed), seed)
            tuned = run("DPO", rows, seed, beta=0.1, num_train_epochs=epochs, **keys)
            ratio = {side: sums(tuned, tokenizer, held, side) - before[side] for side in before}
            found.append(float((ratio["chosen"] > ratio["rejected"]).double().mean()))
        accuracy[name] = over_seeds(found)
    figures = []
    for name in ("cDPO", "robust DPO"):
        more = minus(accuracy[name], accuracy["DPO"])
        what = (
            f"held-out accuracy, {epochs} epochs of {count} pairs, {seeds} seeds "
            f"({name} {accuracy[name].mean:.3f}, DPO {accuracy['DPO'].mean:.3f}): {name} minus DPO"
        )
        figures.append(Figure(what, "above 0", str(more), more.agrees(1, small)))
    return figures


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
