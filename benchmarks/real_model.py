"""SimPO, ORPO, DPO and KTO with LoRA on a real 135M chat model and real pairs: held-out margins before and after.

    export TRL_PLUS_REAL_DATA=../shared/data TRL_PLUS_REAL_MODEL=/path/to/SmolLM2-135M-Instruct
    python benchmarks/real_model.py                     # about 20 minutes on two CPU cores
    python benchmarks/real_model.py --methods simpo --steps 5

Each method is trained by the very command line that this prints, from its bundled recipe. Base and tuned models are
then scored by one measure, whatever the method: the margin of a pair is the mean log-probability per token of the
chosen completion minus that of the rejected one. Intervals are 95%: Wilson for accuracy, bootstrap over pairs for
margins.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
MAX_LENGTH = 128
METHODS = ("simpo", "orpo", "dpo", "kto_paired")
OVERRIDES = {
    "max_length": MAX_LENGTH,
    "overlong": "drop",
    "eval_fraction": 0.4,
    "max_eval_rows": 16,  # what the run itself evaluates; this script scores all held-out rows
    "dtype": "float32",
    "bf16": "false",
    "gradient_checkpointing": "false",
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 8,
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_generations": 0,
    "logging_steps": 5,
}


def train(method: str, steps: int, folder: Path) -> list[str]:
    """Runs the command and returns it."""
    data = Path(os.environ["TRL_PLUS_REAL_DATA"], "llmbar.jsonl")
    model = os.environ["TRL_PLUS_REAL_MODEL"]
    values = {"model_name_or_path": model, "dataset_name": data, "output_dir": folder, "max_steps": steps, **OVERRIDES}
    command = ["trl-plus", "train", f"{method}_lora", *(f"{key}={value}" for key, value in values.items())]
    print(" ".join(map(str, command)), flush=True)
    subprocess.run(command, check=True)
    return command


def held_out_margins(adapters: dict[str, Path | None]) -> dict[str, "list[float]"]:
    """Per-pair margins of the base model (None) and of each adapter, on the rows that every run held out."""
    import torch
    from datasets import load_dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_plus import SimPOConfig, SimPOTrainer
    from trl_plus.scoring import score

    data = str(Path(os.environ["TRL_PLUS_REAL_DATA"], "llmbar.jsonl"))
    rows = load_dataset("json", data_files=data, split="train")
    # the split of `eval_fraction`, with the recipes' seed
    rows = rows.train_test_split(test_size=OVERRIDES["eval_fraction"], seed=42)["test"]
    path = os.environ["TRL_PLUS_REAL_MODEL"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    found = {}
    for name, adapter in adapters.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        args = SimPOConfig(
            tempfile.mkdtemp(),
            max_length=MAX_LENGTH,
            overlong="drop",
            per_device_eval_batch_size=8,
            bf16=False,
            report_to=[],
        )
        trainer = SimPOTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
        margins = []
        trainer.model.eval()
        with torch.no_grad():
            for batch in trainer.get_eval_dataloader():
                scores, pairs = score(trainer.model, batch), len(batch["input_ids"]) // 2
                margins += (scores.rows(slice(None, pairs)).mean - scores.rows(slice(pairs, None)).mean).tolist()
        found[name] = margins
    return found


def bootstrap(values: "list[float]", draws: int = 10_000) -> tuple[float, float]:
    import numpy as np

    rng, values = np.random.default_rng(0), np.asarray(values)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    return tuple(np.percentile(means, [2.5, 97.5]))


def line(name: str, margins: "list[float]", base: "list[float]") -> str:
    from trl_plus.reporting.table import wilson_interval

    wins = sum(m > 0 for m in margins)
    low, high = wilson_interval(wins / len(margins), len(margins))
    mean = sum(margins) / len(margins)
    text = f"| {name} | {wins / len(margins):.3f} [{low:.3f}, {high:.3f}] | {mean:+.4f} |"
    if margins is base:
        return text + " |"
    change = [after - before for after, before in zip(margins, base, strict=True)]
    low, high = bootstrap(change)
    return text + f" {sum(change) / len(change):+.4f} [{low:+.4f}, {high:+.4f}] |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    options = parser.parse_args()
    seconds = {}
    for method in options.methods:
        train(method, options.steps, options.out / method)
        metrics = json.loads((options.out / method / "metrics.json").read_text())
        seconds[method] = metrics["train"]["train_runtime"] / options.steps
    margins = held_out_margins({"base": None, **{m: options.out / m for m in options.methods}})
    base = margins["base"]
    print(f"\n{len(base)} held-out pairs, {options.steps} steps of 8 rows\n")
    print("| model | accuracy [95%] | mean margin, nats per token | change against the base [95%] |")
    print("| --- | --- | --- | --- |")
    for name, values in margins.items():
        print(line(name, values, base))
    print("\nseconds per step:", {m: round(s, 1) for m, s in seconds.items()})


if __name__ == "__main__":
    main()
