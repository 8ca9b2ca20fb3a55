"""Time and peak memory of an optimizer step, ours against TRL's own trainer on the same rows, side by side.

    python benchmarks/step_time.py                     # a few minutes on two CPU cores
    python benchmarks/step_time.py --methods SimPO KTO --rounds 9 --data ../shared/data/demo_pairs_en.jsonl

SimPO and CPO run against `trl.experimental.cpo`, ORPO against `trl.experimental.orpo`, DPO and KTO against TRL's
trainers. Steps are interleaved in one process (ours, TRL's, ours, ...) and the median of the per-round ratios is
printed, because timings on a shared machine are noisy. Peak memory is taken in a fresh process per trainer: resident
set on CPU, allocated memory on CUDA. A ratio below 1 means that ours is faster or smaller.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import cycle
from pathlib import Path

import psutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
METHODS = ("SimPO", "CPO", "ORPO", "DPO", "KTO")


def synthetic_pairs(n: int, seed: int = 0) -> list[dict]:
    """Pairs of random words: prompts of 10 to 80, completions of 5 to 60 words."""
    rng = random.Random(seed)
    text = lambda low, high: " ".join(f"w{rng.randrange(2000)}" for _ in range(rng.randint(low, high)))  # noqa: E731
    return [
        {
            "prompt": [{"role": "user", "content": text(10, 80)}],
            "chosen": [{"role": "assistant", "content": text(5, 60)}],
            "rejected": [{"role": "assistant", "content": text(5, 60)}],
        }
        for _ in range(n)
    ]


def load_rows(path: str | None, method: str) -> list[dict]:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()] if path else synthetic_pairs(64)
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows[:64]]
    if method != "KTO":
        return rows
    unpaired = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    random.Random(0).shuffle(unpaired)
    return unpaired


def build_model(size: dict):
    """A random Qwen2 and a word-level tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "\n"] + [f"w{i}" for i in range(2000)]
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = (
        "{% for m in messages %}{{ '<|im_start|> ' + m['role'] + ' ' + m['content'] + ' <|im_end|> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(**size, num_key_value_heads=4, eos_token_id=2, pad_token_id=0, bos_token_id=None)
    )
    return model, fast


def classes(method: str, ours: bool):
    if ours:
        import trl_plus as module
    elif method in ("SimPO", "CPO"):
        from trl.experimental import cpo

        return cpo.CPOTrainer, cpo.CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0} if method == "SimPO" else {}
    elif method == "ORPO":
        from trl.experimental import orpo as module
    else:
        import trl as module
    return getattr(module, f"{method}Trainer"), getattr(module, f"{method}Config"), {}


def make_trainer(method: str, ours: bool, options: argparse.Namespace):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    trainer_class, config_class, config = classes(method, ours)
    size = {"vocab_size": options.vocab, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    model, tokenizer = build_model(size | {"num_attention_heads": 8})
    args = config_class(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulation,
        max_length=512,
        bf16=options.bf16,
        gradient_checkpointing=options.checkpointing,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1000,
        **config,
    )
    rows = Dataset.from_list(load_rows(options.data, method))
    extra = {}
    if method in ("DPO", "KTO") and not ours:
        extra["ref_model"] = build_model(size | {"num_attention_heads": 8})[0]  # TRL cannot reload what has no path
    trainer = trainer_class(model=model, args=args, train_dataset=rows, processing_class=tokenizer, **extra)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = options.accumulation
    return trainer


class Stepper:
    """One optimizer step at a time, through the trainer's own data, loss and backward."""

    def __init__(self, trainer, accumulation: int):
        self.trainer, self.accumulation = trainer, accumulation
        self.batches = iter(batch for loader in cycle([trainer.get_train_dataloader()]) for batch in loader)

    def step(self) -> float:
        """Seconds of one step."""
        import torch

        trainer = self.trainer
        start = time.perf_counter()
        window, items = trainer.get_batch_samples(self.batches, self.accumulation, trainer.args.device)
        for batch in window:
            trainer.training_step(trainer.model, batch, items)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start


def peak_memory(method: str, ours: bool, argv: list[str]) -> float:
    """MB of the steps above what stood before them, in a process of its own."""
    command = [sys.executable, __file__, *argv, "--methods", method, "--memory-of", "ours" if ours else "trl"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(out.strip().splitlines()[-1])


class PeakRSS(threading.Thread):
    """The largest resident set of this process while the block runs, in MB, sampled every 2 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.process, self.peak, self.running = psutil.Process(), 0.0, True

    def run(self):
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss / 2**20)
            time.sleep(0.002)


def memory_child(method: str, ours: bool, options: argparse.Namespace) -> None:
    import torch

    stepper = Stepper(make_trainer(method, ours, options), options.accumulation)
    watch = PeakRSS()
    before = watch.process.memory_info().rss / 2**20
    watch.start()
    for _ in range(2):
        stepper.step()
    watch.running = False
    print(torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else watch.peak - before)


def compare(method: str, options: argparse.Namespace, argv: list[str]) -> str:
    ours, theirs = (Stepper(make_trainer(method, side, options), options.accumulation) for side in (True, False))
    for stepper in (ours, theirs):
        stepper.step()  # warm-up
    rounds = [(ours.step(), theirs.step()) for _ in range(options.rounds)]
    mine, other = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    memory = [peak_memory(method, side, argv) for side in (True, False)]
    return f"| {method} | {mine:.3f} | {other:.3f} | {ratio:.2f} | {memory[0]:.0f} | {memory[1]:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--data", help="JSONL of pairs in TRL's conversational format; random words if not given")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--memory-of", choices=("ours", "trl"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_child(options.methods[0], options.memory_of == "ours", options)
        return
    argv = sys.argv[1:]
    print("| trainer | ours, s/step | TRL, s/step | time ratio | ours, peak MB | TRL, peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for method in options.methods:
        print(compare(method, options, argv), flush=True)


if __name__ == "__main__":
    main()
