"""At which learning rate 16-bit weights stop learning: DPO on the quickstart's pairs, every weight trained.

python benchmarks/rounding.py            # the table of docs/reliability.md, some minutes on a CPU
python benchmarks/rounding.py --steps 10

Columns: the share of weights that the check at the start counts as stuck, the share that are what they were after the
run, and how far the held-out loss fell from ln 2, as a share of what float32 weights reach with the same rate. Weights
are trained in their dtype and evaluated in float32, so that the forward's own rounding does not show.
"""

import argparse
import functools
import math
import tempfile
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import trl_plus
from trl_plus.step.nonfinite import NonFiniteError
from trl_plus.trainers.watch import needed_rates

ROOT = Path(trl_plus.__file__).parent / "quickstart"
RATES = (5e-7, 5e-6, 2e-5, 5e-5, 1e-4, 3e-4)
KINDS = {
    "bfloat16, AdamW": (torch.bfloat16, "adamw_torch", None),
    "float16, AdamW": (torch.float16, "adamw_torch", None),
    "bfloat16, Lion": (torch.bfloat16, "lion_32bit", None),
    "bfloat16, Adafactor": (torch.bfloat16, "adafactor", None),
    "bfloat16 LoRA, AdamW": (torch.bfloat16, "adamw_torch", "lora"),
}


@functools.cache
def run(rate, dtype, optimizer, adapter, steps):
    """(share predicted, share unchanged, fall of the held-out loss) of one run."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "model", dtype=torch.float32)
    rows = load_dataset("json", data_files=str(ROOT / "pairs_train.jsonl"), split="train")
    held_out = rows.select(range(len(rows) - 32, len(rows)))
    args = trl_plus.DPOConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=8, per_device_eval_batch_size=32, max_steps=steps,
        learning_rate=rate, lr_scheduler_type="constant", optim=optimizer, adam_epsilon=1e-6, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        max_length=192,
    )  # fmt: skip
    trainer = trl_plus.DPOTrainer(
        model if adapter else model.to(dtype),
        args=args,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(ROOT / "model"),
        peft_config=LoraConfig(r=8, target_modules="all-linear") if adapter else None,
    )
    if adapter:
        for parameter in trainer.model.parameters():
            parameter.data = parameter.data.to(dtype)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    predicted = float((needed_rates(trainer.model) > rate).double().mean())
    try:
        trainer.train()
    except NonFiniteError:
        return predicted, math.nan, math.nan
    same = sum(int((a == b).sum()) for a, b in zip(before, trained, strict=True)) / sum(p.numel() for p in trained)
    for each in (trainer.model, trainer.ref_model):
        if each is not None:
            each.float()
    return predicted, same, math.log(2) - trainer.evaluate()["eval_loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    asked = parser.parse_args()
    steps = asked.steps
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    print("| weights, optimizer | rate | predicted | unchanged | learned |\n| --- | --- | --- | --- | --- |")
    for name, (dtype, optimizer, adapter) in KINDS.items():
        for rate in RATES if asked.only in name else ():
            predicted, same, fall = run(rate, dtype, optimizer, adapter, steps)
            full = run(rate, torch.float32, optimizer, adapter, steps)[2]
            ends = "stopped: not finite | " if math.isnan(same) else f"{same:.1%} | {fall / full:.0%}"
            print(f"| {name} | {rate:g} | {predicted:.1%} | {ends} |", flush=True)


if __name__ == "__main__":
    main()
