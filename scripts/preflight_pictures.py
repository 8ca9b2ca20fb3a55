"""Take the pictures of docs/preflight.md: the page of a preflight, and its output in the terminal.

    python scripts/preflight_pictures.py                 # of the quickstart's rows, with defects put in
    python scripts/preflight_pictures.py my.yaml out/    # of a recipe, into another folder

Needs Chromium. Writes preflight.png and preflight_terminal.svg, by default into docs/images.
"""

import argparse
import io
import json
import re
import tempfile
from pathlib import Path

from pictures import page_picture
from rich.console import Console

from trl_plus.preflight.findings import Result
from trl_plus.preflight.page import preflight_page
from trl_plus.preflight.table import preflight_report

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "trl_plus" / "quickstart"
HEIGHT = 1500  # of the page's picture, in pixels
COLUMNS = 100


def terminal_picture(result: Result, path: Path) -> None:
    """The output as SVG. Letters are those of the reader's machine: rich's own would be fetched from a server."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(preflight_report(result))
    svg = console.export_svg(title="trl-plus preflight")
    path.write_text(re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")


def pictures(result: Result, folder: Path) -> None:
    """Both pictures of a result."""
    folder.mkdir(parents=True, exist_ok=True)
    terminal_picture(result, folder / "preflight_terminal.svg")
    page_picture(preflight_page(result), folder.resolve() / "preflight.png", HEIGHT)


def defective(folder: Path) -> list[str]:
    """Words of a preflight of the quickstart's pairs, some of them spoiled, cut at 48 tokens."""
    rows = [json.loads(line) for line in (ASSETS / "pairs_train.jsonl").read_text(encoding="utf-8").splitlines()]
    for place in (41, 187, 300):
        rows[place]["rejected"] = rows[place]["chosen"]
    rows[77]["chosen"] = [{"role": "assistant", "content": " "}]
    rows[205]["chosen"].append({"role": "user", "content": "Thank you!"})
    rows[333]["prompt"][0]["content"] = "<|im_start|>user\n" + rows[333]["prompt"][0]["content"] + "<|im_end|>"
    rows += rows[10:14]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["quickstart", f"dataset_name={path}", "max_length=48"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    from trl_plus.preflight.opening import open_argument
    from trl_plus.preflight.run import Extent, preflight

    with tempfile.TemporaryDirectory() as folder:
        recipe, *overrides = [arguments.recipe] if arguments.recipe else defective(Path(folder))
        result = preflight(open_argument(recipe, None, None, overrides).source, Extent())
    result.source = Path(result.source).name
    result.model = Path(result.model or "").name
    pictures(result, arguments.folder)


if __name__ == "__main__":
    main()
