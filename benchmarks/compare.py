"""Ours against TRL's own trainer on the same rows: time per optimizer step, tokens computed, memory, and the gap.

    python benchmarks/compare.py --peer trl --data ../shared/data/hh_shape.jsonl --batch 8 --max-length 512
    python benchmarks/compare.py --peer trl --data ../shared/data/demo_pairs_en.jsonl --batch 2 4 8 16 --lora
    python benchmarks/compare.py --peer rows --data random --length 512 --share 0.8    # against our own `layout: rows`

Each trainer lives in a process of its own and both take turns, step by step, so that a busy machine is busy for both.
SimPO and CPO stand against `trl.experimental.cpo`, ORPO against `trl.experimental.orpo`. Printed per method and batch:

- seconds per optimizer step of each, the median of the rounds, and the median of the ratios of a round (peer / ours);
- tokens that go through a model per token needed, where a step needs each token of a pair once (its prompt once) in
  the policy and once in the reference, if there is one. KTO needs its rows' tokens, and those of the mismatched rows;
- the peak of the resident memory (CUDA: allocated memory) above what stood before the first step, each in MB;
- the largest relative difference of the loss and of the gradient (L2) at the first step, where both start alike.

The model is random, in the shape that is asked for, and has one token per word of the data.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from peers import load_pairs, make_trainer, words

METHODS = ("DPO", "SimPO", "ORPO", "KTO")


class Child:
    """One trainer in a process of its own, told what to do line by line: row numbers in, measurements out."""

    def __init__(self, options: argparse.Namespace):
        import torch

        self.torch, self.options = torch, options
        self.trainer = make_trainer(options, load_pairs(options))
        self.tokens = 0
        for model in (self.trainer.model, getattr(self.trainer, "ref_model", None)):
            if model is not None:
                model.get_input_embeddings().register_forward_hook(self._count)
        self.base = self._memory()

    def _count(self, module, inputs, output) -> None:
        self.tokens += inputs[0].numel()

    def _memory(self, peak: bool = False) -> float:
        if self.torch.cuda.is_available():
            return (self.torch.cuda.max_memory_allocated if peak else self.torch.cuda.memory_allocated)() / 2**20
        name = "VmHWM" if peak else "VmRSS"
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 2**10

    def step(self, numbers: list[list[int]], update: bool) -> dict:
        """One optimizer step on micro-batches of these rows; `update` also says what the gradient is."""
        trainer, torch = self.trainer, self.torch
        data = trainer.train_dataset
        batches = [
            trainer._prepare_inputs(trainer.data_collator([data[i % len(data)] for i in part])) for part in numbers
        ]
        self.tokens, loss = 0, 0.0
        start = time.perf_counter()
        window, items = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
        for batch in window:
            loss += float(trainer.training_step(trainer.model, batch, items))
        if update:
            gradient = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
            torch.save(torch.cat(gradient).cpu(), self.options.gradient)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        memory = self._memory(peak=True) - self.base
        needed = self._needed(numbers) if self.options.side == "ours" else None
        return {"seconds": seconds, "loss": loss, "tokens": self.tokens, "needed": needed, "memory": memory}

    def _needed(self, numbers: list[list[int]]) -> int:
        """Tokens that the step needs, as the module's docstring counts them."""
        data, limit, total = self.trainer.train_dataset, self.options.max_length, 0
        for index in (i for part in numbers for i in part):
            row = data[index % len(data)]
            prompt = len(row["prompt_ids"])
            sides = [row[name] for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in row]
            total += prompt + sum(min(len(side), limit - prompt) for side in sides)
        return total * {"DPO": 2, "KTO": 4}.get(self.options.method, 1)

    def serve(self) -> None:
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(self.step(**json.loads(line))), flush=True)


class Remote:
    """A `Child`, seen from outside."""

    def __init__(self, side: str, method: str, batch: int, argv: list[str], folder: str):
        self.gradient = f"{folder}/{side}.pt"
        command = [sys.executable, __file__, *argv, "--method", method, "--side", side, "--batch", str(batch)]
        log = open(f"{folder}/{side}.log", "w", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, "--gradient", self.gradient],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.log = log.name
        self._read_until("ready")

    def _read_until(self, word: str) -> str:
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError(Path(self.log).read_text()[-3000:])

    def step(self, numbers: list[list[int]], update: bool = False) -> dict:
        self.process.stdin.write(json.dumps({"numbers": numbers, "update": update}) + "\n")
        self.process.stdin.flush()
        return json.loads(self._read_until("{"))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(method: str, batch: int, options: argparse.Namespace, argv: list[str]) -> str:
    """One line of the table."""
    per_step = batch * options.accumulation
    count = (2 if method == "KTO" else 1) * len(load_pairs(options))
    order = random.Random(options.seed).sample(range(count), count)
    if options.by_length:
        order = by_length(order, options, method, per_step)
    windows = []
    for step in range(options.rounds + 1):
        rows = [order[(step * per_step + i) % count] for i in range(per_step)]
        windows.append([rows[i : i + batch] for i in range(0, per_step, batch)])
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = (Remote(side, method, batch, argv, folder) for side in ("ours", options.peer))
        first = [remote.step(windows[0], update=True) for remote in (ours, peer)]
        gap = gradient_gap(ours.gradient, peer.gradient)
        rounds = [(ours.step(window), peer.step(window)) for window in windows[1:]]
        ours.close()
        peer.close()
    seconds = [statistics.median(r[i]["seconds"] for r in rounds) for i in (0, 1)]
    ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in rounds)
    needed = sum(r[0]["needed"] for r in rounds)
    tokens = [sum(r[i]["tokens"] for r in rounds) / needed for i in (0, 1)]
    memory = [max(r[i]["memory"] for r in rounds) for i in (0, 1)]
    loss = abs(first[0]["loss"] - first[1]["loss"]) / max(abs(first[1]["loss"]), 1e-9)
    return (
        f"| {method} | {batch} | {seconds[0]:.2f} | {seconds[1]:.2f} | {ratio:.2f} | {tokens[0]:.2f} | {tokens[1]:.2f} "
        f"| {memory[0]:.0f} | {memory[1]:.0f} | {loss:.0e} | {gap:.0e} |"
    )


def by_length(order: list[int], options: argparse.Namespace, method: str, per_step: int) -> list[int]:
    """As a length-grouping sampler orders rows: sorted inside groups of fifty batches, the batches kept."""
    rows = load_pairs(options)

    def length(index: int) -> int:
        row = rows[index // 2 if method == "KTO" else index]
        return sum(words(row[side]) for side in ("prompt", "chosen", "rejected"))

    size = 50 * per_step
    groups = [sorted(order[i : i + size], key=length, reverse=True) for i in range(0, len(order), size)]
    batches = [group[i : i + per_step] for group in groups for i in range(0, len(group), per_step)]
    random.Random(options.seed).shuffle(batches)
    return [index for batch in batches for index in batch]


def gradient_gap(ours: str, peer: str) -> float:
    import torch

    a, b = torch.load(ours).double(), torch.load(peer).double()
    return float((a - b).norm() / b.norm())


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=("trl", "rows"), default="trl")
    parser.add_argument("--data", required=True, help="JSONL of pairs in TRL's conversational format, or random")
    parser.add_argument("--length", type=int, default=256, help="words of a prompt and a completion, of random rows")
    parser.add_argument("--share", type=float, default=0.5, help="of the prompt in them")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=(*METHODS, "CPO"))
    parser.add_argument("--batch", nargs="+", type=int, default=[8], help="rows of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=300, help="pairs read from the data")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--by-length", action="store_true", help="rows of like length in a batch, as TRL can group them"
    )
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--tokens", type=int, default=0, help="tokens_per_device of ours")
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    for name in ("method", "side", "gradient"):  # of a child process
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    options = parse(sys.argv[1:])
    if options.side:
        Child(options).serve()
        return
    columns = "method, batch, ours s, peer s, times faster, ours tokens, peer tokens, ours MB, peer MB, loss, gradient"
    print("| " + columns.replace(", ", " | ") + " |")
    print("| --- " * (columns.count(",") + 1) + "|")
    for batch in options.batch:
        for method in options.methods:
            print(compare(method, batch, options, sys.argv[1:]), flush=True)


if __name__ == "__main__":
    main()
