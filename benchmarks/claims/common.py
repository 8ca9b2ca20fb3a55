"""Figures of a claim, how they are printed, and small trainings that claims share.

A script of this folder has `CLAIM`, `SOURCE` and `figures(small)`; `main` prints what it measures. `python SCRIPT` runs
it whole, `python SCRIPT --small` in seconds. The exit code is 1 if a figure is not what the claim says.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor

# A training run on a CPU that logs and saves nothing, and cuts no row
QUIET = {
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "max_length": None,
}


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        what: what was measured, and how.
        expected: what the claim says of it.
        measured: the value, with its interval if it is an estimate.
        holds: whether `measured` is as `expected`.
    """

    what: str
    expected: str
    measured: str
    holds: bool


def main(claim: str, source: str, figures: Callable[[bool], Sequence[Figure]]) -> int:
    """Print a claim and its figures; returns 1 if one of them does not hold."""
    print(f"{claim}\n{source}\n")
    found = figures("--small" in sys.argv[1:])
    for figure in found:
        verdict = "holds" if figure.holds else "DOES NOT HOLD"
        print(f"- {figure.what}\n  expected {figure.expected}; measured {figure.measured}; {verdict}")
    return 0 if all(figure.holds for figure in found) else 1


def completions(log_ratios: Tensor) -> Any:
    """(B,) log-ratios as completions of one token, with a reference at 0."""
    from trl_plus.objectives import Completions

    logps = log_ratios[:, None]
    return Completions(logps, torch.ones_like(logps, dtype=torch.bool), torch.zeros_like(logps))


def descend(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Minimise a smooth loss with L-BFGS in float64; returns the minimiser."""
    x = start.double().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimizer.step(closure)
    return x.detach()


def tiny() -> tuple[Any, Any]:
    """A tiny random language model in float64, and its tokenizer."""
    from tests.conftest import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    return build_model(tokenizer).double(), tokenizer


def train(method: str, rows: Sequence[dict[str, Any]], steps: int, **config: Any) -> Any:
    """Train the tiny model on all rows in every step; returns the trainer. The reference is the model at its start."""
    from datasets import Dataset, disable_progress_bars
    from transformers import logging

    import trl_plus

    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, tokenizer = tiny()
    settings = {
        **QUIET,
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": len(rows),
        "max_steps": steps,
        "optim": "adamw_torch",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    } | config
    extra = {"ref_model": tiny()[0]} if method in ("DPO", "KTO") else {}
    trainer = getattr(trl_plus, f"{method}Trainer")(
        model=model,
        args=getattr(trl_plus, f"{method}Config")(**settings),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        **extra,
    )
    trainer.train()
    return trainer


def token_log_probs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """(N,), the log-probability of each token of a completion, from the model's own logits of one row."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


def margin(trainer: Any) -> float:
    """The log-ratio of the chosen minus that of the rejected completion, of the first training row."""
    row, reference = trainer.train_dataset[0], tiny()[0]
    with torch.no_grad():
        chosen, rejected = (
            float(
                token_log_probs(trainer.model, row["prompt_ids"], row[side]).sum()
                - token_log_probs(reference, row["prompt_ids"], row[side]).sum()
            )
            for side in ("chosen_ids", "rejected_ids")
        )
    return chosen - rejected
