"""What preflight costs: the time of its checks beside TRL's own tokenization of the same rows, and memory on a stream.

    python benchmarks/preflight.py                     # 100,000 pairs: seconds, and their ratio
    python benchmarks/preflight.py --stream 1000000    # peak memory of `trl-plus preflight --all` on a streamed file

Rows are made here: dialogues of random words, with lengths as in a well-known dialogue set. The tokenizer is that of
the bundled quickstart model, or --model's. TRL's tokenization and the preflight take turns, in one process. Seconds are
those of the processor, which other jobs on the machine change little.
"""

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trl_plus.preflight.run import Extent, preflight
from trl_plus.preflight.source import Source, open_run
from trl_plus.recipes.recipe import recipe_from
from trl_plus.setup.objects import build
from trl_plus.setup.trainer import load_processor
from trl_plus.trainers.seams import upstream_tokenize
from trl_plus.ui.console import quiet_maps

WORDS = [
    f"{a}{b}" for a in ("ba", "co", "di", "fe", "gu", "ha", "lo", "mi", "ne", "po") for b in ("ra", "ten", "lis", "mo")
]
CHILD = """
import resource, sys
from trl_plus.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def text(rng: random.Random, mean: int) -> str:
    return " ".join(rng.choices(WORDS, k=1 + int(rng.expovariate(1 / mean)))) + "."


def row(rng: random.Random) -> dict[str, list[dict[str, str]]]:
    turns = 2 * rng.choice((0, 0, 1, 1, 2)) + 1
    prompt = [{"role": ("user", "assistant")[i % 2], "content": text(rng, 20)} for i in range(turns)]
    return {
        "prompt": prompt,
        **{side: [{"role": "assistant", "content": text(rng, 25)}] for side in ("chosen", "rejected")},
    }


def write(path: Path, rows: int) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(rows):
            file.write(json.dumps(row(rng)) + "\n")


def opened(path: Path, model: str) -> Source:
    values = {"method": "dpo", "model_name_or_path": model, "dataset_name": str(path), "output_dir": "none"}
    objects = build(recipe_from(values, "benchmark"))
    return open_run(objects, load_processor(objects))


def trl_seconds(source: Source) -> float:
    """TRL's own tokenization, by TRL's own class, of rows in memory: nothing is read from a cache."""
    import datasets
    import trl

    datasets.disable_caching()
    args = copy.copy(source.target.args)
    rows = source.raw.train.remove_columns("_row")
    begun = time.process_time()
    with quiet_maps():
        upstream_tokenize(trl.DPOTrainer, args, source.target.processor, rows, "train")
    return time.process_time() - begun


def compare(path: Path, model: str, rounds: int) -> None:
    source = opened(path, model)
    theirs, ours = [], []
    for _ in range(rounds):
        theirs.append(trl_seconds(source))
        begun = time.process_time()
        result = preflight(source, Extent(rows=None))
        ours.append(time.process_time() - begun)
    checks = [whole - tokenization for whole, tokenization in zip(ours, theirs, strict=True)]
    ratio = statistics.median(extra / tokenization for extra, tokenization in zip(checks, theirs, strict=True))
    print(f"rows {result.splits[0].checked}, findings {[finding.code for finding in result.findings]}")
    print(f"TRL's tokenization      {statistics.median(theirs):8.1f} s")
    print(f"preflight, tokenizing   {statistics.median(ours):8.1f} s")
    print(f"checks over tokenization {ratio:7.2f}   (bar 0.5)")


def stream(path: Path, model: str) -> None:
    words = ["preflight", str(path), "--model", model, "--all", "--json", "dataset_streaming=true"]
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False)
    peak = int(done.stderr.strip().splitlines()[-1]) / 1024
    found = json.loads(done.stdout)
    print(f"streamed rows {found['splits'][0]['checked']}, {found['seconds']:.0f} s, peak {peak:.0f} MB   (bar 1536)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stream", type=int, default=0)
    parser.add_argument("--model", default="bundled:quickstart/model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write(path, arguments.stream or arguments.rows)
        if arguments.stream:
            stream(path, arguments.model)
        else:
            compare(path, arguments.model, arguments.rounds)


if __name__ == "__main__":
    main()
