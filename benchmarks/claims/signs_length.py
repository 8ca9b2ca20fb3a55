"""SimPO without its length normalisation exploits a length bias of the data, on five draws of the quickstart's pairs.

python benchmarks/claims/signs_length.py

In nine of ten training pairs the chosen answer is the longer one. The summed reward is that of CPO without its
likelihood term. Its beta is SimPO's divided by the mean length of an answer, so that both begin at one scale.
"""

import random
import sys
from typing import Any

import torch
from common import Figure, main
from signs import answers, base, draw, means, minus, over_seeds, pairs, run, sums

CLAIM = "On pairs with a length bias the summed reward exploits it more than SimPO's length-normalised reward."
SOURCE = "Meng, Xia and Chen 2024 (https://huggingface.co/papers/2405.14734), section 4.2 and figure 2"
MEASURES = {
    "rank correlation of log-probability per token and length": "correlation",
    "tokens of a greedy answer": "length",
    "change of the accuracy on held-out pairs whose chosen answer is the shorter one": "against",
}


def biased(rows: list[dict], count: int, seed: int) -> list[dict]:
    """`count` pairs, of which nine in ten have a longer chosen answer, in the order of the seed."""
    longer = [row for row in rows if _length(row, "chosen") > _length(row, "rejected")]
    shorter = [row for row in rows if _length(row, "chosen") < _length(row, "rejected")]
    few = round(count / 10)
    drawn = draw(longer, count - few, seed) + draw(shorter, few, seed)
    random.Random(seed).shuffle(drawn)
    return drawn


def _length(row: dict, side: str) -> int:
    return len(row[side][0]["content"])


def measures(model: Any, tokenizer: Any, held: list[dict], reward: Any) -> dict[str, float]:
    """What `MEASURES` names, of one model; `reward` is what its training compares, a function like `sums`."""
    logps = torch.cat([means(model, tokenizer, held, side) for side in ("chosen", "rejected")])
    size = torch.tensor([_length(row, side) for side in ("chosen", "rejected") for row in held])
    short = [row for row in held if _length(row, "chosen") < _length(row, "rejected")]
    right = reward(model, tokenizer, short, "chosen") > reward(model, tokenizer, short, "rejected")
    greedy = answers(model, tokenizer, held[:40])
    return {
        "correlation": float(torch.corrcoef(torch.stack([_ranks(logps), _ranks(size.double())]))[0, 1]),
        "length": sum(map(len, greedy)) / len(greedy),
        "against": float(right.double().mean()),
    }


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 0; equal values share the mean of theirs."""
    below = (values[:, None] > values).sum(1).double()
    return below + ((values[:, None] == values).sum(1).double() - 1) / 2


def figures(small: bool) -> list[Figure]:
    seeds, steps = (2, 2) if small else (5, 12)
    train, held = pairs("train"), pairs("test")[: 16 if small else 160]
    model, tokenizer = base()
    rewards = {"SimPO": means, "summed": sums}
    before = {name: measures(model, tokenizer, held, reward)["against"] for name, reward in rewards.items()}
    found: dict[str, list[dict[str, float]]] = {"SimPO": [], "summed": []}
    for seed in range(seeds):
        rows = biased(train, 16 * steps, seed)
        simpo = run("SimPO", rows, seed, beta=2.0, gamma_beta_ratio=0.5)
        summed = run("CPO", rows, seed, beta=0.15, cpo_alpha=0.0)
        for name, tuned in (("SimPO", simpo), ("summed", summed)):
            after = measures(tuned, tokenizer, held, rewards[name])
            found[name].append(after | {"against": after["against"] - before[name]})
    figures = []
    for what, key in MEASURES.items():
        each = {name: over_seeds([one[key] for one in found[name]]) for name in found}
        more = minus(each["summed"], each["SimPO"])
        wanted = -1 if key == "against" else 1
        values = ", ".join(f"{name} {value.mean:.3f}" for name, value in each.items())
        what = f"{what}, {steps} steps, {seeds} seeds ({values}): summed minus SimPO"
        figures.append(Figure(what, "above 0" if wanted > 0 else "below 0", str(more), more.agrees(wanted, small)))
    return figures


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
