"""APO-zero raises the chosen answers, APO-down lowers both sides, on five draws of the quickstart's pairs.

python benchmarks/claims/signs_apo.py
"""

import sys

from common import Figure, main
from signs import base, draw, over_seeds, pairs, run, sums

CLAIM = "APO-zero raises the chosen answers and lowers the rejected ones; APO-down lowers both."
SOURCE = "D'Oosterlinck et al. 2024 (https://huggingface.co/papers/2408.06266)"
WANTED = {
    ("apo_zero", "chosen"): "above 0",
    ("apo_zero", "rejected"): "below 0",
    ("apo_down", "chosen"): "below 0",
    ("apo_down", "rejected"): "below 0",
}


def figures(small: bool) -> list[Figure]:
    seeds, steps = (2, 2) if small else (5, 20)
    held = pairs("test")[: 16 if small else 160]
    model, tokenizer = base()
    drawn = [draw(pairs("train"), 16 * steps, seed) for seed in range(seeds)]
    scored = {"training pairs": [rows[: len(held)] for rows in drawn], "held-out pairs": [held] * seeds}
    found = []
    for loss in ("apo_zero", "apo_down"):
        keys = {"beta": 0.1, "loss_type": [loss], "learning_rate": 1e-4}
        tuned = [run("DPO", rows, seed, **keys) for seed, rows in enumerate(drawn)]
        for where, sets in scored.items():
            for side in ("chosen", "rejected"):
                gains = [
                    sums(one, tokenizer, rows, side) - sums(model, tokenizer, rows, side)
                    for one, rows in zip(tuned, sets, strict=True)
                ]
                change, wanted = over_seeds([float(gain.mean()) for gain in gains]), WANTED[loss, side]
                what = f"{loss}, {steps} steps, {seeds} seeds, {where}: change of the {side} answers' log-probability"
                holds = change.agrees(1 if wanted == "above 0" else -1, small)
                found.append(Figure(what, wanted, str(change), holds))
    return found


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
