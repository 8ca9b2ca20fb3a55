"""Take the pictures of docs/report.md and docs/compare.md: the pages of a run.

    python scripts/run_pictures.py                 # trains and evaluates the quickstart, for a minute or two
    python scripts/run_pictures.py RUN out/        # of a run that is there, into another folder

Needs Chromium. Writes report.png and compare.png, by default into docs/images.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from pictures import page_picture

from trl_plus.comparison.answers import Sampling
from trl_plus.comparison.output import comparison_page
from trl_plus.comparison.run import Comparison, compare
from trl_plus.report.page import run_page
from trl_plus.report.run import Run, read_run
from trl_plus.runs.weights import open_run

ROOT = Path(__file__).parents[1]
WORDS = ("eval_strategy=steps", "eval_steps=10", "logging_steps=2")
REPORT_HEIGHT, COMPARE_HEIGHT = 2400, 1300


def pictures(run: Run, comparison: Comparison, folder: Path) -> None:
    """Both pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    page_picture(run_page(run), folder.resolve() / "report.png", REPORT_HEIGHT)
    page_picture(comparison_page(comparison), folder.resolve() / "compare.png", COMPARE_HEIGHT)


def compared(run: str) -> Comparison:
    """Answers to 40 held-out prompts, without the folders of this machine."""
    result = compare(*open_run(run), None, 40, False, Sampling(64))
    result.tuned, result.source = Path(run).name, "held-out rows of quickstart/pairs"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        run = arguments.run or f"{work}/runs/quickstart"
        if arguments.run is None:
            command = [sys.executable, "-m", "trl_plus.cli", "train", "recipes/quickstart.yaml", *WORDS]
            subprocess.run(command, cwd=work, check=True)
            subprocess.run([*command[:3], "evaluate", "runs/quickstart", "--by", "kind"], cwd=work, check=True)
        pictures(read_run(run), compared(run), arguments.folder)


if __name__ == "__main__":
    main()
