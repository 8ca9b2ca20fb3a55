"""ORPO and SFT alone: what becomes of the rejected answers, on five draws of the quickstart's pairs.

python benchmarks/claims/signs_orpo.py

The quickstart's model has learned both sides of its pairs, so SFT on the chosen side alone lowers the rejected one: the
case of the claim does not arise. A second set of pairs makes it arise as a base model meets it, by a form that both
sides share and that the model has never seen: each answer ends with the same new sentence. SFT is ORPO with weight 0 of
the odds term, on the same rows in the same order.
"""

import sys

from common import Figure, main
from signs import base, draw, minus, over_seeds, pairs, run, sums

CLAIM = "ORPO pushes the rejected answers down where SFT alone raises them."
SOURCE = "Hong, Lee and Thorne 2024 (https://huggingface.co/papers/2403.07691), section 3 and figure 3"
CLOSING = " Did I get that right?"
SIDES = ("chosen", "rejected")


def closed(rows: list[dict]) -> list[dict]:
    """The rows with one more sentence at the end of both answers."""
    return [
        row | {side: [row[side][0] | {"content": row[side][0]["content"] + CLOSING}] for side in SIDES} for row in rows
    ]


def figures(small: bool) -> list[Figure]:
    seeds, steps = (2, 2) if small else (5, 15)
    model, tokenizer = base()
    found = []
    for name, form in (("the quickstart's pairs", list), ("pairs with a new sentence", closed)):
        train, held = form(pairs("train")), form(pairs("test")[: 16 if small else 160])
        before = sums(model, tokenizer, held, "rejected")
        moved = {}
        for method, weight in (("SFT", 0.0), ("ORPO", 1.0)):
            tuned = [run("ORPO", draw(train, 16 * steps, seed), seed, beta=weight) for seed in range(seeds)]
            change = [float((sums(one, tokenizer, held, "rejected") - before).mean()) for one in tuned]
            moved[method] = over_seeds(change)
        less = minus(moved["ORPO"], moved["SFT"])
        after = f"{name}, {steps} steps, {seeds} seeds: change of the rejected answers' log-probability"
        found += [
            Figure(f"{after}, SFT", "above 0", str(moved["SFT"]), moved["SFT"].agrees(1, small)),
            Figure(f"{after}, ORPO of weight 1", "below 0", str(moved["ORPO"]), moved["ORPO"].agrees(-1, small)),
            Figure(f"{after}, ORPO minus SFT", "below 0", str(less), less.agrees(-1, small)),
        ]
    return found


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
