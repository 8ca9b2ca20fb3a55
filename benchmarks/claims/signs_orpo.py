"""ORPO pushes the rejected answers down where SFT alone raises them, on five draws of the quickstart's pairs.

python benchmarks/claims/signs_orpo.py

The quickstart's model has learned both sides of its pairs, so SFT on the chosen side alone lowers the rejected one:
the case of the claim does not arise. The script makes it arise as a base model meets it, with a form of answer that
both sides share and that the model has never seen: each answer ends with the same new sentence. SFT is ORPO with
weight 0 of the odds term, on the same rows in the same order.
"""

import sys

from common import Figure, main
from signs import base, draw, minus, over_seeds, pairs, run, sums

CLAIM = "ORPO pushes the rejected answers down where SFT alone raises them."
SOURCE = "Hong, Lee and Thorne 2024 (https://huggingface.co/papers/2403.07691), section 3 and figure 3"
CLOSING = " Did I get that right?"


def closed(rows: list[dict]) -> list[dict]:
    """The rows with one more sentence at the end of both answers."""
    return [
        row | {side: [row[side][0] | {"content": row[side][0]["content"] + CLOSING}] for side in ("chosen", "rejected")}
        for row in rows
    ]


def figures(small: bool) -> list[Figure]:
    seeds, steps = (2, 2) if small else (5, 15)
    train, held = closed(pairs("train")), closed(pairs("test")[: 16 if small else 160])
    model, tokenizer = base()
    before = {side: sums(model, tokenizer, held, side) for side in ("chosen", "rejected")}
    moved = {}
    for name, weight in (("SFT", 0.0), ("ORPO, weight 0.1", 0.1), ("ORPO, weight 1", 1.0)):
        tuned = [run("ORPO", draw(train, 16 * steps, seed), seed, beta=weight) for seed in range(seeds)]
        for side in before:
            change = [float((sums(one, tokenizer, held, side) - before[side]).mean()) for one in tuned]
            moved[name, side] = over_seeds(change)
    found = []
    for name, wanted in (("SFT", 1), ("ORPO, weight 0.1", -1), ("ORPO, weight 1", -1)):
        change = moved[name, "rejected"]
        what = f"{name}, {steps} steps: change of the rejected answers' log-probability, {seeds} seeds"
        found.append(Figure(what, _sign(wanted), str(change), change.agrees(wanted, small)))
    for name in ("ORPO, weight 0.1", "ORPO, weight 1"):
        less = minus(moved[name, "rejected"], moved["SFT", "rejected"])
        what = f"{name}: the rejected answers' log-probability minus that after SFT, {seeds} seeds"
        found.append(Figure(what, _sign(-1), str(less), less.agrees(-1, small)))
    return found


def _sign(wanted: int) -> str:
    return "above 0" if wanted > 0 else "below 0"


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
