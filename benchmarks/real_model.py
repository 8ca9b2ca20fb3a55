"""SimPO, ORPO, DPO and KTO with LoRA on a real 135M chat model and real pairs: held-out margins before and after.

    export TRL_PLUS_REAL_DATA=../shared/data TRL_PLUS_REAL_MODEL=/path/to/SmolLM2-135M-Instruct
    python benchmarks/real_model.py                     # about 20 minutes on two CPU cores
    python benchmarks/real_model.py --methods simpo --steps 5

Each method is trained by the very command line that this prints, from its bundled recipe, and scored by `trl-plus
evaluate`. Base and tuned models are compared by one measure, whatever the method: the margin of a pair is the mean
log-probability per token of the chosen completion minus that of the rejected one.
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
    "max_eval_rows": 16,  # what the run itself evaluates; `evaluate --all` scores all held-out rows
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


def evaluate(folder: Path) -> dict:
    """What `trl-plus evaluate` says of all held-out rows."""
    command = ["trl-plus", "evaluate", str(folder), "--all", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def line(name: str, found: dict, change: dict | None) -> str:
    """A row of the table: accuracy, mean margin, and the change of the margin, by log-probability per token."""
    accuracy = found["accuracy"]
    text = f"| {name} | {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] "
    text += f"| {found['margin']['value']:+.4f} |"
    return text + (
        " |" if change is None else f" {change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}] |"
    )


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
    pairs = {method: evaluate(options.out / method)["pairs"] for method in options.methods}
    first = next(iter(pairs.values()))
    print(f"\n{first['pairs']} held-out pairs, {options.steps} steps of 8 rows\n")
    print("| model | accuracy [95%] | mean margin, nats per token | change against the base [95%] |")
    print("| --- | --- | --- | --- |")
    print(line("base", first["models"]["base"]["logp_per_token"], None))
    for method, found in pairs.items():
        print(line(method, found["models"]["tuned"]["logp_per_token"], found["change"]["logp_per_token"]))
    print("\nseconds per step:", {m: round(s, 1) for m, s in seconds.items()})


if __name__ == "__main__":
    main()
