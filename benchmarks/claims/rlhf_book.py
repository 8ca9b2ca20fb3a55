"""The direct alignment code of the RLHF book, from a clone, against our objectives and trainers on one model and data.

    python benchmarks/claims/rlhf_book.py CLONE

CLONE is natolambert/rlhf-book. Read from it at run time: `loss.py` whole, and `train_step` of `train.py` with the two
functions that it calls. Three parts:

- their losses and our objectives on the same log-probabilities;
- 50 steps of their `train_step` against 50 of our trainers on the tiny model, in float64;
- the criteria of issue 358 of that repository for SimPO and ORPO, on the quickstart's model, theirs and ours.
"""

import argparse
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import signs
import torch
from authors_losses import BAR, RATE
from clones import definitions, skip
from common import Figure, main, tiny, train
from torch import Tensor

from tests.conftest import make_pairs

CLAIM = "The RLHF book's losses are ours, and SimPO and ORPO visibly learn with both."
SOURCE = "natolambert/rlhf-book, code/direct_alignment and issue 358"
SIDES = ("chosen_ids", "rejected_ids")
NEVER = float("inf")  # no clipping of gradients


def read(clone: Path) -> SimpleNamespace:
    """Their loss classes and functions, by name."""
    folder = clone / "code" / "direct_alignment"
    if not (folder / "loss.py").is_file():
        raise SystemExit(f"{folder} has no loss.py. Fix: name the top folder of a clone of natolambert/rlhf-book.")
    names = dict(runpy.run_path(str(folder / "loss.py")))
    names["clip_grad_norm_"] = torch.nn.utils.clip_grad_norm_
    return SimpleNamespace(
        **definitions(folder / "train.py", ["forward_pass", "compute_nll_loss", "train_step"], names)
    )


class Batch:
    """Rows as their `train_step` reads them: ids, attention and completion masks of each side, (B, T), padded right."""

    def __init__(self, rows: list[dict], pad: int) -> None:
        for side in SIDES:
            name = side.removesuffix("_ids")
            texts = [row["prompt_ids"] + row[side] for row in rows]
            completion = [[0] * len(row["prompt_ids"]) + [1] * len(row[side]) for row in rows]
            setattr(self, f"{name}_input_ids", _padded(texts, pad))
            setattr(self, f"{name}_labels", _padded(texts, pad))
            setattr(self, f"{name}_attention_mask", _padded([[1] * len(text) for text in texts], 0))
            setattr(self, f"{name}_response_mask", _padded(completion, 0))

    def to(self, device: Any) -> "Batch":
        return self


def _padded(rows: list[list[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


# -- the same log-probabilities ---------------------------------------------------------------------------------------


def same_log_probs(book: SimpleNamespace) -> list[Figure]:
    """Their loss of a batch minus the mean of ours, for random log-probabilities of completions of 3 to 12 tokens."""
    from trl_plus import objectives

    generator = torch.Generator().manual_seed(0)
    length = torch.randint(3, 13, (2, 16), generator=generator)
    mask = torch.arange(12) < length[..., None]
    policy, base = (-torch.rand(2, 16, 12, generator=generator, dtype=torch.float64) * 3 * mask for _ in range(2))
    chosen, rejected = (objectives.Completions(policy[i], mask[i], base[i]) for i in range(2))
    total, reference = policy.sum(-1), base.sum(-1)
    average, average_reference = total / length, reference / length
    sums, means = (*total, *reference), (*average, *average_reference)
    zero = torch.zeros(16, dtype=torch.float64)
    pairs = {
        "DPO": (book.DPOLoss(0.1)(*sums), objectives.dpo(chosen, rejected, beta=0.1), 0),
        "cDPO": (book.DPOLoss(0.1, 0.1)(*sums), objectives.dpo(chosen, rejected, beta=0.1, label_smoothing=0.1), 0),
        "DPO-norm": (book.DPOLoss(2.0)(*means), objectives.dpo_norm(chosen, rejected, beta=2.0), 0),
        "IPO": (book.IPOLoss(0.1)(*sums), objectives.ipo(chosen, rejected, beta=0.1, reduction="sum"), 0),
        "SimPO": (book.SimPOLoss(2.0, 0.5)(*average), objectives.simpo(chosen, rejected, beta=2.0, gamma=1.0), 0),
        "ORPO's odds term": (
            book.ORPOLoss(0.1)(*average, chosen_nll_loss=zero),
            objectives.odds_ratio(chosen, rejected, beta=0.1),
            0,
        ),
        "APO-zero": (book.APOZeroLoss(0.1)(*sums), objectives.apo_zero(chosen, rejected, beta=0.1), -1),
        "APO-down": (book.APODownLoss(0.1)(*sums), objectives.apo_down(chosen, rejected, beta=0.1), -1),
    }
    found = []
    for name, (theirs, ours, constant) in pairs.items():
        gap = float(theirs[0] - ours.mean())
        bar = 1e-6 if "ORPO" in name else 1e-12  # theirs computes the odds in float32
        what = f"{name} on the same log-probabilities: their loss minus ours"
        found.append(Figure(what, f"{constant} within {bar:g}", f"{gap:.1e}", abs(gap - constant) < bar))
    return [*found, _kto(book, sums)]


def _kto(book: SimpleNamespace, sums: tuple[Tensor, ...]) -> Figure:
    """Theirs adds the means of the two sides, ours is the mean over all rows; both take the same reference point."""
    from trl_plus import objectives

    kl = torch.full((16,), 0.7, dtype=torch.float64)
    theirs = book.KTOLoss(0.1)(*sums, policy_kl_logps=kl, ref_kl_logps=torch.zeros_like(kl))[0]
    mask = torch.ones(32, 1, dtype=torch.bool)
    rows = objectives.Completions(torch.cat(sums[:2])[:, None], mask, torch.cat(sums[2:])[:, None])
    label = torch.arange(32) < 16
    ours = objectives.kto(rows, label, z_ref=kl.mean(), beta=0.1, desirable_weight=1.0, undesirable_weight=1.0).mean()
    what = "KTO on the same log-probabilities and reference point: their loss / ours"
    return Figure(what, "2 within 1e-6", f"{float(theirs / ours):.8f}", abs(float(theirs / ours) - 2) < 1e-6)


# -- the same weights -------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[str, dict, dict]] = {
    "dpo": ("DPO", {"beta": 0.1}, {"beta": 0.1}),
    "cdpo": ("DPO", {"beta": 0.1}, {"beta": 0.1, "label_smoothing": 0.1}),
    "dpo_norm": ("DPO", {"beta": 2.0}, {"beta": 2.0, "loss_type": ["sigmoid_norm"]}),
    "ipo": ("DPO", {"beta": 0.1}, {"beta": 0.1, "loss_type": ["ipo"], "ipo_reduction": "sum"}),
    "simpo": ("SimPO", {"beta": 2.0, "gamma": 0.5}, {"beta": 2.0, "gamma_beta_ratio": 0.5}),
    "orpo": ("ORPO", {"beta": 0.1}, {"beta": 0.1, "nll_reduction": "sequence"}),
    "apo_zero": ("DPO", {"beta": 0.1}, {"beta": 0.1, "loss_type": ["apo_zero"]}),
    "apo_down": ("DPO", {"beta": 0.1}, {"beta": 0.1, "loss_type": ["apo_down"]}),
}
# Where theirs is another objective than our default: what differs, and our configuration that shows it
OTHERS = {
    "ipo": ("theirs sums the log-ratios, our default divides them by length", {"beta": 0.1, "loss_type": ["ipo"]}),
    "orpo": ("theirs averages the likelihood term by row, our default by token", {"beta": 0.1}),
}
AVERAGED = ("simpo", "orpo", "dpo_norm")  # losses that their script feeds with log-probabilities per token


def their_loop(book: SimpleNamespace, loss: str, keys: dict, rows: list[dict], steps: int) -> torch.nn.Module:
    """The tiny model after so many of their steps, each on all rows, without clipping."""
    model, tokenizer = tiny()
    reference = None if loss in ("simpo", "orpo") else tiny()[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    batch = Batch(rows, tokenizer.pad_token_id)
    function = book.get_loss_function(loss, **keys)
    for _ in range(steps):
        book.train_step(model, reference, batch, function, optimizer, NEVER, 1, 0, loss in AVERAGED)
    return model


def apart(first: torch.nn.Module, second: torch.nn.Module) -> float:
    others = dict(second.named_parameters())
    return max(float((p.detach() - others[name].detach()).abs().max()) for name, p in first.named_parameters())


def same_weights(book: SimpleNamespace, count: int, steps: int) -> list[Figure]:
    found = []
    for loss, (method, theirs, ours) in CASES.items():
        trainer = train(method, make_pairs(count, 3), steps, learning_rate=RATE, **ours)
        model = their_loop(book, loss, theirs, list(trainer.train_dataset), steps)
        gap = apart(trainer.model, model)
        what = f"{loss}, {steps} steps on {count} rows, weights: largest difference"
        found.append(Figure(what, f"below {BAR:g}", f"{gap:.1e}", gap < BAR))
        if loss in OTHERS:
            why, default = OTHERS[loss]
            gap = apart(train(method, make_pairs(count, 3), steps, learning_rate=RATE, **default).model, model)
            what = f"{loss} with our defaults ({why}), weights: largest difference"
            found.append(Figure(what, f"above {BAR:g}", f"{gap:.1e}", gap > BAR))
    return [*found, _reference_points(book, count, steps)]


def _reference_points(book: SimpleNamespace, count: int, steps: int) -> Figure:
    """KTO's z: their script takes the rejected answers under their own prompts, the paper mismatched ones."""
    from trl_plus.step.mismatched import KLRow, mismatched_partners

    rows = list(train("DPO", make_pairs(count, 3), 1, learning_rate=RATE).train_dataset)
    model, reference = their_loop(book, "kto", {"beta": 0.1}, rows, steps), tiny()[0]

    def mean_ratio(pairs: list[tuple[list[int], list[int]]]) -> float:
        from common import token_log_probs

        with torch.no_grad():
            ratios = [token_log_probs(model, *pair).sum() - token_log_probs(reference, *pair).sum() for pair in pairs]
        return float(torch.stack(ratios).mean())

    own = mean_ratio([(row["prompt_ids"], row["rejected_ids"]) for row in rows])
    singles = [(row["prompt_ids"], row[side]) for row in rows for side in SIDES]
    others = mismatched_partners([KLRow(tuple(prompt), tuple(completion)) for prompt, completion in singles])
    mixed = mean_ratio([(singles[i][0], singles[other][1]) for i, other in enumerate(others)])
    what = (
        f"kto after {steps} of their steps: mean log-ratio of the rejected answers (theirs), of mismatched rows (ours)"
    )
    return Figure(what, "two different reference points", f"{own:+.2f} and {mixed:+.2f}", abs(own - mixed) > 0.1)


# -- issue 358: SimPO and ORPO that visibly learn ---------------------------------------------------------------------


def learns(book: SimpleNamespace, loss: str, keys: dict, ours: dict, steps: int, held: list[dict]) -> list[Figure]:
    """Accuracy and margin per token of held-out pairs before and after, odds term, and greedy answers; both codes."""
    method = {"simpo": "SimPO", "orpo": "ORPO"}[loss]
    rows = signs.draw(signs.pairs("train"), 16 * steps, 0)
    settings = {"train_sampling_strategy": "sequential", "max_grad_norm": 1.0, "max_steps": steps} | ours
    trainer = signs.trainer(method, rows, 0, logging_strategy="steps", logging_steps=1, **settings)
    trainer.train()
    model, tokenizer = signs.base()
    curve = _their_steps(book, model, loss, keys, list(trainer.train_dataset), tokenizer.pad_token_id)
    log = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    ours_curve = [
        {
            "margins": entry["rewards/margins"],
            "accuracy": entry["rewards/accuracies"],
            **({"sft_loss": entry["nll_loss"], "or_loss": entry["loss"] - entry["nll_loss"]} if loss == "orpo" else {}),
        }
        for entry in log
    ]
    # Their margins are log-probabilities per token for SimPO, beta times that for ORPO; ours are beta times that
    scales = (1.0 if loss == "simpo" else keys["beta"], keys["beta"])
    name = f"{loss}, beta {keys['beta']:g}"
    found = []
    for whose, seen, scale, after in (
        ("theirs", curve, scales[0], model.eval()),
        ("ours", ours_curve, scales[1], trainer.model.eval()),
    ):
        found += _criteria(f"{name}, {whose}", seen, scale, after, tokenizer, held)
    return found


def _their_steps(
    book: SimpleNamespace, model: torch.nn.Module, loss: str, keys: dict, rows: list[dict], pad: int
) -> list[dict]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=signs.RATE, weight_decay=0.0)
    function = book.get_loss_function(loss, **keys)
    model.train()
    return [
        book.train_step(model, None, Batch(rows[at : at + 16], pad), function, optimizer, 1.0, 1, 0, True)
        for at in range(0, len(rows), 16)
    ]


def _criteria(
    name: str, curve: list[dict], scale: float, model: torch.nn.Module, tokenizer: Any, held: list[dict]
) -> list[Figure]:
    part = max(1, len(curve) // 4)

    def ends(key: str, scale: float = 1.0) -> tuple[float, float]:
        values = [entry[key] / scale for entry in curve]
        return sum(values[:part]) / part, sum(values[-part:]) / part

    margins, accuracy = ends("margins", scale), ends("accuracy")
    when = f"means of the first and the last {part} of {len(curve)} steps"
    found = [
        Figure(f"{name}: margin per token, {when}", "rises", _arrow(margins), margins[1] > margins[0]),
        Figure(f"{name}: accuracy, {when}", "rises", _arrow(accuracy), accuracy[1] > accuracy[0]),
    ]
    if "or_loss" in curve[0]:
        share = sum(e["or_loss"] for e in curve) / sum(e["sft_loss"] for e in curve)
        what = f"{name}: odds term / likelihood term, mean over the steps"
        found.append(Figure(what, "above 0.1", f"{share:.2f}", share > 0.1))
    texts = signs.answers(model, tokenizer, held)
    ended = sum(tokenizer.eos_token_id in text for text in texts)
    again = max(repeated(text) for text in texts)
    what = f"{name}: greedy answers that end, and largest share of repeated 4-grams in one"
    return [
        *found,
        Figure(what, f"{len(held)}, below 0.2", f"{ended}, {again:.2f}", ended == len(held) and again < 0.2),
    ]


def _arrow(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3f} -> {pair[1]:.3f}"


def repeated(tokens: list[int]) -> float:
    """The share of a text's 4-grams that it has already had."""
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def figures(small: bool, clones: list[Path] = ()) -> list[Figure]:
    if not clones:
        return skip("name a clone of natolambert/rlhf-book on the command line.")
    book = read(clones[0])
    found = [*same_log_probs(book), *same_weights(book, *((4, 3) if small else (8, 50)))]
    runs: list[tuple[str, dict, dict]] = [
        ("simpo", {"beta": 2.0, "gamma": 0.5}, {"beta": 2.0, "gamma_beta_ratio": 0.5}),
        ("orpo", {"beta": 0.1}, {"beta": 0.1, "nll_reduction": "sequence"}),
        ("orpo", {"beta": 1.0}, {"beta": 1.0, "nll_reduction": "sequence"}),
    ]
    held = signs.pairs("test")[: 4 if small else 40]
    learn: Callable = partial(learns, book, steps=8 if small else 20, held=held)
    return found + [figure for loss, keys, ours in runs for figure in learn(loss, keys, ours)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("clones", metavar="CLONE", nargs="*", type=Path, help="the top folder of a clone")
    parser.add_argument("--small", action="store_true", help="a few steps on a few rows")
    sys.exit(main(CLAIM, SOURCE, partial(figures, clones=parser.parse_args().clones)))
