"""One unattended run on a GPU: facts, kernels against float64, steps against plain rows, then speed, in nine minutes.

    python benchmarks/gpu.py --out results              # on a machine with one GPU; nothing is downloaded
    python benchmarks/gpu.py --out results --tiny       # the same on a CPU with a tiny model, to see that it runs

Stages come in the order of what their answers are worth. Each has a process and a time limit, so a crash costs one
stage. Every result is a JSON line in `cells.jsonl`, written at once; at the end they are printed as a table. Models are
random, in the shapes of Qwen2.5, both sides in the same dtype, and none is written to disk.

A stage that lacks time or a package is printed as skipped. The exit code is 1 if a result is wrong or a stage failed.
A run with `--tiny` shows that all stages work, so it fails if one was skipped.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# (stage, seconds it may take)
STAGES = [
    ("facts", 30),
    ("kernels", 80),
    ("steps:0.5B", 70),
    ("speed:7B:lora:8:1024:0.5:DPO,SimPO", 110),
    ("speed:0.5B:full:8:1024:0.5:DPO,KTO", 70),
    ("speed:0.5B:lora:2:512:0.3:DPO", 45),  # bound by launches: no gain is expected
    ("speed:1.5B:full:8:1024:0.5:DPO,ORPO", 90),
    ("profile:0.5B", 40),
    ("speed:7B:lora:4:2048:0.8:DPO", 80),
    ("speed:1.5B:lora:8:1024:0.3:KTO,ORPO", 80),
    ("speed:7B:qlora:8:1024:0.5:DPO", 80),  # if bitsandbytes is there
]
TINY = [
    ("facts", 120),
    ("kernels", 200),
    ("steps:tiny", 300),
    ("speed:tiny:lora:4:64:0.5:DPO,KTO", 300),
    ("speed:tiny:qlora:4:64:0.5:DPO", 200),
]
LEAST = 25  # seconds without which a stage is not begun
SECONDS = 520  # of the whole run; with --tiny as many as its stages may take
NO_TIME = "no time left"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--seconds", type=float, help=f"of the whole run: {SECONDS}, or what all stages of --tiny may take"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU")
    parser.add_argument("--only", default="", help="stages whose name holds this")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # of a child process
    return parser.parse_args(argv)


def write(out: Path, **cell) -> None:
    """One result, on disk before anything else happens."""
    with (out / "cells.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(cell) + "\n")
        file.flush()
        os.fsync(file.fileno())


def run_stage(name: str, seconds: float, options: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "--out", str(options.out), "--stage", name, *["--tiny"] * options.tiny]
    start = time.monotonic()
    with (options.out / "log.txt").open("a", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code: int | str = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            code = "time limit"
    write(options.out, stage=name, code=code, seconds=round(time.monotonic() - start, 1))


def table(cells: list[dict]) -> str:
    speed = [cell for cell in cells if "s_per_step" in cell]
    columns = ("cell", "method", "side", "layout", "attention", "dtype", "s_per_step", "tokens_per_s", "mfu", "GB")
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    lines += ["| " + " | ".join(str(cell[name]) for name in columns) + " |" for cell in speed]
    for name in dict.fromkeys((cell["cell"], cell["method"]) for cell in speed):
        by_side = {cell["side"]: cell["s_per_step"] for cell in speed if (cell["cell"], cell["method"]) == name}
        if len(by_side) == 2:
            lines.append(f"{' '.join(name)}: {by_side['trl'] / by_side['ours']:.2f} times faster than TRL")
    return "\n".join([json.dumps(cell) for cell in cells if "s_per_step" not in cell] + lines)


def skipped(cells: list[dict]) -> list[str]:
    """List the stages that were not run, and why."""
    found = [f"{cell['stage']}: {NO_TIME}" for cell in cells if cell.get("code") == NO_TIME]
    return found + [f"{cell['speed']}: {cell['skipped']}" for cell in cells if "skipped" in cell]


def exit_code(cells: list[dict], tiny: bool) -> int:
    """Return 1 if a result is wrong or a stage failed. With `tiny` also if one was skipped."""
    wrong = any(cell.get("ok") is False or cell.get("code", 0) not in (0, NO_TIME) for cell in cells)
    return int(wrong or (tiny and bool(skipped(cells))))


def main() -> int:
    options = parse(sys.argv[1:])
    if options.stage:
        import gpu_stages

        gpu_stages.run(options)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    cells = options.out / "cells.jsonl"
    cells.write_text("", encoding="utf-8")
    stages = [(name, limit) for name, limit in (TINY if options.tiny else STAGES) if options.only in name]
    if not stages:
        print(f"--only: no stage is named like {options.only}", file=sys.stderr)
        return 2
    seconds = options.seconds or (sum(limit for _, limit in stages) if options.tiny else SECONDS)
    end = time.monotonic() + seconds
    for name, limit in stages:
        left = end - time.monotonic()
        if left < LEAST:
            write(options.out, stage=name, code=NO_TIME, seconds=0)
            continue
        run_stage(name, min(limit, left), options)
    found = [json.loads(line) for line in cells.read_text(encoding="utf-8").splitlines()]
    print(table(found))
    for text in skipped(found):
        print(f"skipped: {text}")
    return exit_code(found, options.tiny)


if __name__ == "__main__":
    sys.exit(main())
