"""The audit of shortcuts: what it finds, how often it is wrong, and what it costs.

    python benchmarks/shortcuts.py found      # shortcuts of 24 kinds planted into 300 pairs: how many are found
    python benchmarks/shortcuts.py null       # 500 label shuffles of each of two sets of real pairs: false alarms
    python benchmarks/shortcuts.py real       # what surface features alone reach on the sets that are there
    python benchmarks/shortcuts.py cost       # CPU seconds beside TRL's tokenization of the same rows

The real sets are llmbar.jsonl and demo_pairs_en.jsonl in --data (../shared/data by default).
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from trl_plus.data.shortcut_rule import (  # noqa: E402
    Examples,
    cross_fitted,
    right,
    surface_rows,
)
from trl_plus.preflight.findings import worth  # noqa: E402
from trl_plus.preflight.shortcuts import accuracy, audit  # noqa: E402

REAL = ("llmbar.jsonl", "demo_pairs_en.jsonl", "demo_unpaired_en.jsonl", "hh_shape.jsonl")
QUICKSTART = Path(__file__).parents[1] / "trl_plus" / "quickstart"


def examples(path: Path) -> Examples:
    return surface_rows(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()).examples


def found() -> None:
    from tests.preflight.plant_shortcuts import PLANTS, WRONGS, planted
    from tests.preflight.test_shortcuts import as_rows, pairs

    for share in (1.0, 0.85):
        results = {}
        for name in (*PLANTS, *WRONGS):
            result = audit(surface_rows(as_rows(planted(pairs(), name, share=share))).examples)
            results[name] = result is not None and result.found
        print(f"in {share:.0%} of the pairs: {sum(results.values())} of {len(results)} found", flush=True)


def shuffled(whole: Examples, rng: np.random.Generator, by_prompt: bool) -> Examples:
    """The same rows with labels drawn at random, for each row or for each prompt."""
    _, own = np.unique(whole.prompts, return_inverse=True)
    signs = rng.choice([-1.0, 1.0], own.max() + 1)[own] if by_prompt else rng.choice([-1.0, 1.0], len(own))
    return replace(whole, x=whole.x * signs[:, None]) if whole.paired else replace(whole, y=rng.permutation(whole.y))


def null(data: Path, count: int) -> None:
    for name in REAL[:3]:
        whole, rng, estimates = examples(data / name), np.random.default_rng(0), []
        for number in range(count):
            some = shuffled(whole, rng, by_prompt=bool(number % 2))
            estimates.append(accuracy(right(cross_fitted(some), some), some))
        values = np.array([estimate.value for estimate in estimates])
        alone = 0.5 / np.sqrt(len(whole.y))
        print(
            f"{name}: {count} shuffles, mean accuracy {values.mean():.3f}, spread {values.std() / alone:.2f} times "
            f"that of independent judges; intervals above 0.5: {np.mean([e.low > 0.5 for e in estimates]):.1%}; "
            f"false alarms: {np.mean([worth(e) for e in estimates]):.1%}",
            flush=True,
        )


def real(data: Path) -> None:
    for path in (
        *(data / name for name in REAL),
        *(QUICKSTART / f"{kind}_train.jsonl" for kind in ("pairs", "unpaired")),
    ):
        result = audit(examples(path)) if path.is_file() else None
        if result is not None:
            value = result.accuracy
            print(
                f"{path.name}: {value.value:.3f} [{value.low:.3f}, {value.high:.3f}] of {result.rows} rows; length "
                f"alone {result.length.value:.3f}, the others {result.other.value:.3f}"
            )


def cost(data: Path, rows: int) -> None:
    """The features of all responses and the audit, beside TRL's own tokenization; medians of three."""
    import preflight as other

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "rows.jsonl"
        other.write(made, rows)
        for path in (made, *(data / name for name in REAL[:2])):
            source = other.opened(path, "bundled:quickstart/model")
            theirs, ours = [], []
            for _ in range(3):
                theirs.append(other.trl_seconds(source))
                begun = time.process_time()
                audit(surface_rows(source.raw.train).examples)
                ours.append(time.process_time() - begun)
            ratio = sorted(ours)[1] / sorted(theirs)[1]
            seconds = f"TRL's tokenization {sorted(theirs)[1]:.2f} s, the audit {sorted(ours)[1]:.2f} s"
            print(f"{path.name}: {len(source.raw.train)} pairs, {seconds}, {ratio:.3f} of it", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("found", "null", "real", "cost"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--shuffles", type=int, default=500)
    parser.add_argument("--rows", type=int, default=5000)
    args = parser.parse_args()
    {
        "found": found,
        "null": lambda: null(args.data, args.shuffles),
        "real": lambda: real(args.data),
        "cost": lambda: cost(args.data, args.rows),
    }[args.what]()


if __name__ == "__main__":
    main()
