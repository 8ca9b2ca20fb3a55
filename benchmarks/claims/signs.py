"""Runs on the quickstart's model that the scripts signs_*.py share: training, log-probabilities, intervals over seeds.

A seed draws the training rows and their order; the model, and the held-out pairs that are scored, stay the same. An
interval is Student's 95% interval of the mean over the seeds. It covers which rows were drawn, not another model.
"""

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import common  # finds the repository, and keeps the hub out
import torch
from torch import Tensor
from transformers import PrinterCallback

from trl_plus.sweep.statistics import quantile

RATE = 2e-4


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and the half width of its 95% interval."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def half(self) -> float:
        return quantile(0.05, len(self.values) - 1) * stdev(self.values) / sqrt(len(self.values))

    def agrees(self, wanted: int, small: bool) -> bool:
        """Whether the interval lies on the side of 0 that `wanted` names, 1 or -1.

        If `small`, whether it does not lie on the other side: a few steps and two seeds show no more.
        """
        return wanted * self.mean > (-self.half if small else self.half)

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.mean - self.half:+.3f}, {self.mean + self.half:+.3f}]"


def over_seeds(values: Sequence[float]) -> Estimate:
    return Estimate(tuple(values))


def minus(first: Estimate, second: Estimate) -> Estimate:
    """The difference, paired by seed."""
    return Estimate(tuple(a - b for a, b in zip(first.values, second.values, strict=True)))


def folder() -> Path:
    import trl_plus

    return Path(trl_plus.__file__).parent / "quickstart"


def pairs(split: str) -> list[dict[str, Any]]:
    """The pairs of the quickstart, `train` or `test`."""
    with (folder() / f"pairs_{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def draw(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` of the rows in the order that this seed gives, without replacement."""
    return random.Random(seed).sample(list(rows), count)


def base() -> tuple[Any, Any]:
    """The quickstart's model in float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder() / "model", dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder() / "model")


def trainer(method: str, rows: Sequence[dict[str, Any]], seed: int, start: Any = None, **config: Any) -> Any:
    """A trainer of all weights of the base, in steps of 16 rows, over `rows` once if `config` does not say more.

    `start` is the state dict of another base of the same architecture.
    """
    from datasets import Dataset, disable_progress_bars
    from transformers import logging

    import trl_plus

    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    (model, tokenizer), (reference, _) = base(), base()
    if start is not None:
        model.load_state_dict(start)
        reference.load_state_dict(start)
    settings = {
        **common.QUIET,
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": 16,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "seed": seed,
    } | config
    made = getattr(trl_plus, f"{method}Trainer")(
        model=model,
        args=getattr(trl_plus, f"{method}Config")(**settings),
        train_dataset=Dataset.from_list([{key: row[key] for key in row if key != "kind"} for row in rows]),
        processing_class=tokenizer,
        **({"ref_model": reference} if method in ("DPO", "KTO") else {}),
    )
    made.remove_callback(PrinterCallback)
    return made


def run(method: str, rows: Sequence[dict[str, Any]], seed: int, start: Any = None, **config: Any) -> Any:
    """The model that `trainer` ends with."""
    made = trainer(method, rows, seed, start, **config)
    made.train()
    return made.model.eval()


@torch.no_grad()
def log_probs(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], side: str) -> list[Tensor]:
    """The log-probabilities of the answers' tokens, one (N,) for each row, the end token included."""
    found = []
    for begin in range(0, len(rows), 32):
        prompts, texts = [], []
        for row in rows[begin : begin + 32]:
            prompts.append(tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True))
            texts.append(prompts[-1] + row[side][0]["content"] + tokenizer.eos_token)
        lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
        ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
        # Padding stands right of each row, where causal attention never looks from a real token
        batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        logps = model(input_ids=batch, use_cache=False).logits[:, :-1].log_softmax(-1)
        logps = logps.gather(2, batch[:, 1:, None])[..., 0]
        found += [row[length - 1 : len(i) - 1] for row, length, i in zip(logps, lengths, ids, strict=True)]
    return found


def sums(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], side: str) -> Tensor:
    """(B,), log-probability of each answer."""
    return torch.stack([row.sum() for row in log_probs(model, tokenizer, rows, side)])


def means(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], side: str) -> Tensor:
    """(B,), log-probability per token of each answer."""
    return torch.stack([row.mean() for row in log_probs(model, tokenizer, rows, side)])


@torch.no_grad()
def answers(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], limit: int = 96) -> list[list[int]]:
    """Greedy answers to the prompts of the rows as tokens, cut after the end token or `limit` tokens."""
    found = []
    for row in rows:
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, do_sample=False, max_new_tokens=limit)
        found.append(out[0, ids.shape[1] :].tolist())
    return found
