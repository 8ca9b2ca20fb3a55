"""How much the gradient of one optimizer step changes with the cut of its batch, ours against TRL's trainers.

    python benchmarks/exactness.py         # about a minute on two CPU cores

One SGD step per cut on a tiny random model in float32; the figure is the relative L2 difference of the update against
the uncut batch, the worst over the cuts into micro-batches of half the rows and (where the trainer takes it) of one
row. "short" is a window that its rows do not fill. CPO, SimPO and ORPO stand against `trl.experimental`.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from datasets import Dataset, disable_progress_bars
from transformers import logging

from tests.conftest import build_model, build_tokenizer, make_pairs, make_unpaired

CASES = [
    ("DPO", {}),
    ("DPO", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}),
    ("SimPO", {}),
    ("CPO", {}),
    ("ORPO", {}),
    ("KTO", {}),
]


def classes(method: str, ours: bool) -> tuple[type, type, dict]:
    """Trainer, configuration and the settings that make TRL's trainer the same method."""
    if ours:
        import trl_plus as module
    elif method in ("SimPO", "CPO"):
        from trl.experimental import cpo as module

        same = {"loss_type": "simpo", "cpo_alpha": 0.0} if method == "SimPO" else {}
        return module.CPOTrainer, module.CPOConfig, same
    elif method == "ORPO":
        from trl.experimental import orpo as module
    else:
        import trl as module
    return getattr(module, f"{method}Trainer"), getattr(module, f"{method}Config"), {}


def update(method: str, ours: bool, rows: list[dict], batch: int, accumulation: int, config: dict) -> torch.Tensor:
    """The change of all weights by one SGD step with learning rate 1."""
    trainer_class, config_class, same = classes(method, ours)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    before = [p.detach().clone() for p in model.parameters()]
    args = config_class(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=3,
        max_length=256,
        **{**config, **same},
    )
    extra = {"ref_model": build_model(tokenizer, seed=4)} if method in ("DPO", "KTO") else {}
    trainer = trainer_class(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **extra
    )
    trainer.train()
    return torch.cat([(p.detach() - b).double().flatten() for p, b in zip(model.parameters(), before, strict=True)])


def worst(method: str, ours: bool, n: int, config: dict) -> float:
    size = 16 if method == "KTO" else 8
    rows = make_unpaired(2 * n) if method == "KTO" else make_pairs(n)
    whole = update(method, ours, rows, size, 1, config)
    smallest = 2 if method == "KTO" and not ours else 1  # TRL's KTO refuses a batch of one row
    cuts = [update(method, ours, rows, b, size // b, config) for b in (size // 2, smallest)]
    return max(float((cut - whole).norm() / whole.norm()) for cut in cuts)


def main() -> None:
    logging.set_verbosity_error()
    disable_progress_bars()
    torch.set_num_threads(1)
    lines = ["| method | window | trl_plus | TRL |", "| --- | --- | --- | --- |"]
    for method, config in CASES:
        for name, n in (("full", 8), ("short", 7)):
            figures = [f"{worst(method, ours, n, config):.1e}" for ours in (True, False)]
            label = "DPO + sft" if config else method
            lines.append(f"| {label} | {name} | {figures[0]} | {figures[1]} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
