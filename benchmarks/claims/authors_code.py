"""The authors' own loss functions, from clones of their repositories, in a plain loop of 50 steps against our trainers.

    python benchmarks/claims/authors_code.py CLONE...

A clone is a folder with princeton-nlp/SimPO, xfactlab/orpo, ContextualAI/HALOs or
eric-mitchell/direct-preference-optimization. Which one it is shows in its files. The loops, rows and models are those
of authors_losses.py: the losses are read from the clone, and of xfactlab/orpo the whole `compute_loss`.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from authors_losses import BAR, RATE, plain_loop
from clones import definitions, skip
from common import Figure, main, tiny, token_log_probs, train
from torch import Tensor
from torch.nn import functional

from tests.conftest import make_pairs, make_unpaired

CLAIM = "Our trainers do what the authors' code does: 50 steps of AdamW end at the same weights."
SOURCE = (
    "clones of princeton-nlp/SimPO, xfactlab/orpo, ContextualAI/HALOs, eric-mitchell/direct-preference-optimization"
)
GLOBALS = {"torch": torch, "F": functional}
SIDES = ("chosen_ids", "rejected_ids")


def tokens(model: torch.nn.Module, rows: list[dict], side: str) -> Tensor:
    """(B, T), log-probabilities of the completions' tokens, 0 right of each."""
    found = [token_log_probs(model, row["prompt_ids"], row[side]) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


def lengths(rows: list[dict], side: str) -> Tensor:
    return torch.tensor([len(row[side]) for row in rows])


def simpo(clone: Path) -> dict:
    """`simpo_loss` of princeton-nlp/SimPO, on log-probabilities per token."""
    loss = definitions(clone / "scripts/simpo_trainer.py", ["SimPOTrainer.simpo_loss"], dict(GLOBALS))["simpo_loss"]
    it = SimpleNamespace(
        beta=2.0, gamma_beta_ratio=0.5, label_smoothing=0.0, loss_type="sigmoid", accelerator=_device()
    )

    def step(model: torch.nn.Module, reference: torch.nn.Module, rows: list[dict]) -> Tensor:
        return loss(it, *(tokens(model, rows, side).sum(-1) / lengths(rows, side) for side in SIDES))[0].mean()

    return {"SimPO": ("SimPO", step, {"beta": 2.0, "gamma_beta_ratio": 0.5})}


def _device() -> SimpleNamespace:
    """Accelerate's accelerator of one process, as far as the losses use it."""
    return SimpleNamespace(device="cpu", reduce=lambda tensor, reduction: tensor)


def mitchell(clone: Path) -> dict:
    """`preference_loss` of eric-mitchell/direct-preference-optimization: DPO, cDPO and IPO."""
    loss = definitions(clone / "trainers.py", ["preference_loss"], dict(GLOBALS))["preference_loss"]

    def step(model: torch.nn.Module, reference: torch.nn.Module, rows: list[dict], **keys: float) -> Tensor:
        policy = [tokens(model, rows, side).sum(-1) for side in SIDES]
        with torch.no_grad():
            policy += [tokens(reference, rows, side).sum(-1) for side in SIDES]
        return loss(*policy, beta=0.1, **keys)[0].mean()

    ipo = {"beta": 0.1, "loss_type": ["ipo"], "ipo_reduction": "sum"}
    return {
        "DPO": ("DPO", step, {"beta": 0.1}),
        "cDPO": ("DPO", partial(step, label_smoothing=0.2), {"beta": 0.1, "label_smoothing": 0.2}),
        "IPO, summed": ("DPO", partial(step, ipo=True), ipo),
    }


def halos(clone: Path) -> dict:
    """`loss` of the trainers of ContextualAI/HALOs: DPO, SimPO and KTO, on (B, T) log-probabilities.

    Its IPO divides by the number of tokens whose log-ratio is not 0, which is 0 / 0 where policy and reference agree.
    """
    path = clone / "train/trainers.py"
    config = {"beta": 0.1, "gamma_beta_ratio": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0}

    def bound(trainer: str, **keys: float) -> Callable:
        named = definitions(path, ["BasicTrainer.get_sequence_rewards", f"{trainer}.loss"], dict(GLOBALS))
        it = SimpleNamespace(accelerator=_device(), policy_dtype=torch.float64)
        it.config = SimpleNamespace(humanline=False, loss=SimpleNamespace(**config | keys))
        it.get_sequence_rewards = partial(named["get_sequence_rewards"], it)
        return partial(named["loss"], it)

    dpo, kto = bound("DPOTrainer"), bound("KTOTrainer")
    simpo_loss = bound("SimPOTrainer", beta=2.0)

    def pairs(model: torch.nn.Module, reference: torch.nn.Module, rows: list[dict], loss: Callable) -> Tensor:
        with torch.no_grad():
            base = [tokens(reference, rows, side) for side in SIDES]
        return loss({}, *(tokens(model, rows, side) for side in SIDES), *base)[0].mean()

    return {
        "DPO of HALOs": ("DPO", partial(pairs, loss=dpo), {"beta": 0.1}),
        "SimPO of HALOs": ("SimPO", partial(pairs, loss=simpo_loss), {"beta": 2.0, "gamma_beta_ratio": 0.5}),
        "KTO": ("KTO", partial(_kto, loss=kto), {"beta": 0.1}),
    }


def _kto(model: torch.nn.Module, reference: torch.nn.Module, rows: list[dict], loss: Callable) -> Tensor:
    """KTO's loss; completions meet other prompts as `mismatched_partners` pairs them, which the paper leaves open."""
    from trl_plus.step.mismatched import KLRow, mismatched_partners

    others = mismatched_partners([KLRow(tuple(row["prompt_ids"]), tuple(row["completion_ids"])) for row in rows])
    mixed = [row | {"completion_ids": rows[other]["completion_ids"]} for row, other in zip(rows, others, strict=True)]
    groups = [[row for row in rows if row["label"]], [row for row in rows if not row["label"]], mixed]
    with torch.no_grad():
        base = [tokens(reference, group, "completion_ids") for group in groups]
        kl = tokens(model, mixed, "completion_ids")
    return loss({}, *(tokens(model, group, "completion_ids") for group in groups[:2]), kl, *base)[0].mean()


def orpo(clone: Path) -> dict:
    """`compute_loss` of xfactlab/orpo, with its likelihood term over prompt and completion.

    A row that is shorter than its batch counts one token of padding as the completion's last, so two cases are
    returned: rows of one length, where nothing is padded, and rows of several lengths.
    """
    names = ["ORPOTrainer.compute_loss", "ORPOTrainer.compute_logps"]
    quiet = SimpleNamespace(log=lambda metrics: None)
    named = definitions(clone / "src/orpo_trainer.py", names, {"torch": torch, "wandb": quiet})
    pad = tiny()[1].pad_token_id
    it = SimpleNamespace(label_smoother=None, pad=pad, alpha=0.1, disable_prompt_loss=False)
    it.compute_logps = partial(named["compute_logps"], it)

    def step(model: torch.nn.Module, reference: torch.nn.Module, rows: list[dict]) -> Tensor:
        texts = {side: [row["prompt_ids"] + row[side] for row in rows] for side in SIDES}
        width = max(len(text) for side in SIDES for text in texts[side])

        def padded(values: list[list[int]], value: int) -> Tensor:
            return torch.tensor([row + [value] * (width - len(row)) for row in values])

        inputs = {"attention_mask": padded([[1] * len(row["prompt_ids"]) for row in rows], 0)}
        for name, side in (("positive", "chosen_ids"), ("negative", "rejected_ids")):
            inputs[f"{name}_input_ids"] = padded(texts[side], pad)
            inputs[f"{name}_attention_mask"] = padded([[1] * len(text) for text in texts[side]], 0)
        return named["compute_loss"](it, model, inputs)

    keys = {"beta": 0.1, "nll_scope": "full"}
    return {
        "ORPO, rows of one length": ("ORPO", step, keys),
        "ORPO, rows of several lengths": ("ORPO", step, keys),
    }


FILES = {
    "scripts/simpo_trainer.py": simpo,
    "src/orpo_trainer.py": orpo,
    "train/trainers.py": halos,
    "trainers.py": mitchell,
}


def rows_of(name: str, method: str, count: int) -> list[dict]:
    if method == "KTO":
        return make_unpaired(count, 3)
    if "one length" not in name:
        return make_pairs(count, 3)
    tokenizer = tiny()[1]

    def long(row: dict, side: str) -> int:
        return len(tokenizer.apply_chat_template(row["prompt"] + row[side])["input_ids"])

    rows = [row for row in make_pairs(4000, 3) if long(row, "chosen") == long(row, "rejected") == 40]
    return rows[:count]


def figures(small: bool, clones: list[Path] = ()) -> list[Figure]:
    if not clones:
        return skip("name clones of the authors' repositories on the command line.")
    count, steps = (4, 3) if small else (8, 50)
    found = []
    for clone in clones:
        reader = next((read for file, read in FILES.items() if (clone / file).is_file()), None)
        if reader is None:
            raise SystemExit(f"{clone} has none of {', '.join(FILES)}. Fix: name the top folder of a clone.")
        for name, (method, step, keys) in reader(clone).items():
            trainer = train(method, rows_of(name, method, count), steps, learning_rate=RATE, **keys)
            plain = plain_loop(step, list(trainer.train_dataset), steps)
            ours = dict(trainer.model.named_parameters())
            worst = max(float((ours[key].detach() - plain[key]).abs().max()) for key in plain)
            same = "several lengths" not in name
            what = f"{name}, {steps} steps on {count} rows, weights: largest difference"
            expected = f"below {BAR:g}" if same else f"above {BAR:g}: theirs counts a token of padding"
            found.append(Figure(what, expected, f"{worst:.1e}", (worst < BAR) == same))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("clones", metavar="CLONE", nargs="*", type=Path, help="the top folder of a clone")
    parser.add_argument("--small", action="store_true", help="a few steps on a few rows")
    sys.exit(main(CLAIM, SOURCE, partial(figures, clones=parser.parse_args().clones)))
