"""Time and memory of a step against the tokens that it needs, under `tokens_per_device`: a line, and flat.

    python benchmarks/token_budget.py --data ../shared/data/hh_shape.jsonl --tokens 2000 --methods DPO SimPO
    python benchmarks/token_budget.py --data ../shared/data/hh_shape.jsonl --tokens 0      # whole steps, no budget

Steps of `--batch` rows each, ordered by length so that some need many times the tokens of others, and taken in random
order. Printed per method:

- tokens that the smallest and the largest step need, as compare.py counts them, and tokens computed per token needed
  (1.00: nothing is padded, nothing computed twice);
- the straight line through the median times of the steps: microseconds per token, the share of its constant in the
  time of the middle step, R squared, and the largest distance of a step from the line, relative to the step;
- the peak of the resident memory above what stood before: after the steps of the shorter half, and after all.
"""

import argparse
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from compare import METHODS, Child, by_length, parse


def measure(method: str, options: argparse.Namespace) -> str:
    """One line of the table."""
    import numpy

    argv = ["--data", options.data, "--batch", str(options.batch), "--max-length", str(options.max_length)]
    argv += ["--hidden", str(options.hidden), "--layers", str(options.layers), "--vocab", str(options.vocab)]
    argv += ["--tokens", str(options.tokens), "--method", method, "--side", "ours"]
    child = Child(parse(argv))
    count = len(child.trainer.train_dataset)
    # whole windows only, sorted: fifty of them are one group of `by_length`
    order = by_length(list(range(count)), child.options, method, count)
    windows = [order[i : i + options.batch] for i in range(0, count - options.batch + 1, options.batch)]
    child.step([windows[-1]], update=False)
    shorter = [child.step([window], update=False) for window in reversed(windows[len(windows) // 2 :])]
    half = max(step["memory"] for step in shorter)
    rounds = []
    for seed in range(options.rounds):
        found = {
            i: child.step([windows[i]], update=False)
            for i in random.Random(seed).sample(range(len(windows)), len(windows))
        }
        rounds.append([found[i] for i in range(len(windows))])
    needed = numpy.array([step["needed"] for step in rounds[0]], dtype=float)
    computed = sum(step["tokens"] for step in rounds[0]) / needed.sum()
    seconds = numpy.array([statistics.median(r[i]["seconds"] for r in rounds) for i in range(len(windows))])
    slope, constant = numpy.polyfit(needed, seconds, 1)
    line = constant + slope * needed
    squared = 1 - ((seconds - line) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum()
    away = numpy.abs(seconds / line - 1).max()
    whole = max(step["memory"] for steps in rounds for step in steps)
    return (
        f"| {method} | {options.tokens or 'none'} | {needed.min():.0f} | {needed.max():.0f} | {computed:.2f} "
        f"| {slope * 1e6:.0f} | {constant / statistics.median(line):.0%} | {squared:.3f} | {away:.0%} "
        f"| {half:.0f} | {whole:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="JSONL of pairs in TRL's conversational format")
    parser.add_argument("--tokens", nargs="+", type=int, default=[2000], help="tokens_per_device; 0 for none")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab", type=int, default=4000)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    columns = "method, tokens_per_device, fewest needed, most needed, computed, µs per token, constant, R², away"
    print("| " + (columns + ", MB half, MB all").replace(", ", " | ") + " |")
    print("| --- " * (columns.count(",") + 3) + "|")
    for tokens in options.tokens:
        for method in options.methods:
            print(measure(method, argparse.Namespace(**{**vars(options), "tokens": tokens})), flush=True)


if __name__ == "__main__":
    main()
