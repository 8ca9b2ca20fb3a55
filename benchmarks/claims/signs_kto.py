"""KTO on one good answer for nine bad ones, with and without the paper's weights, on five draws of rows.

python benchmarks/claims/signs_kto.py

The paper sets the weights so that desirable weight times desirable rows is 1 to 4/3 times the same of the undesirable
ones: here 9 and 1.
"""

import sys

from common import Figure, main
from signs import base, draw, minus, over_seeds, pairs, run, sums

CLAIM = "With one good answer for nine bad ones, KTO learns better with the paper's class weights than without."
SOURCE = "Ethayarajh et al. 2024 (https://huggingface.co/papers/2402.01306), on imbalanced data"


def imbalanced(rows: list[dict], count: int, seed: int) -> list[dict]:
    """`count` answers to as many prompts, one in ten of them the chosen one of its pair."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if i % 10 == 0 else "rejected"], "label": i % 10 == 0}
        for i, row in enumerate(draw(rows, count, seed))
    ]


def figures(small: bool) -> list[Figure]:
    seeds, steps = (2, 2) if small else (5, 15)
    train, held = pairs("train"), pairs("test")[: 16 if small else 160]
    model, tokenizer = base()
    before = {side: sums(model, tokenizer, held, side) for side in ("chosen", "rejected")}
    found: dict[str, list[tuple[float, float]]] = {}
    for name, weight in (("weights 9 and 1", 9.0), ("weights 1 and 1", 1.0)):
        for seed in range(seeds):
            rows = imbalanced(train, 16 * steps, seed)
            tuned = run("KTO", rows, seed, beta=0.1, desirable_weight=weight)
            ratio = {side: sums(tuned, tokenizer, held, side) - before[side] for side in before}
            accuracy = float((ratio["chosen"] > ratio["rejected"]).double().mean())
            found.setdefault(name, []).append((float(ratio["chosen"].mean()), accuracy))
    figures = []
    for i, measure in enumerate(("change of the chosen answers' log-probability", "accuracy of KTO's reward")):
        with_, without = (over_seeds([one[i] for one in found[name]]) for name in found)
        more = minus(with_, without)
        values = f"with {with_}, without {without}"
        what = f"held-out {measure}, {steps} steps, {seeds} seeds ({values}): with minus without"
        figures.append(Figure(what, "above 0", str(more), more.agrees(1, small)))
    return figures


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
