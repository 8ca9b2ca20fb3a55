"""trl-plus compare RUN: answers of the base and the tuned model, side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus compare runs/quickstart

trl-plus compare runs/quickstart -n 100 --html compare.html

trl-plus compare runs/quickstart --prompts prompts.txt --temperature 0.7 --seed 1

trl-plus compare runs/quickstart --blind ab.jsonl

trl-plus compare --score ab.jsonl
"""


def compare(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="The output folder of a run, or a checkpoint in one.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prompts, one a line, or JSON lines; held-out prompts if not given."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", min=1, help="At most this many prompts; 20 held-out ones if not given.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Ask the texts of FILE as they are, without chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 for greedy answers.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered at once; changes no answer.")] = 16,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with all answers.")] = None,
    blind: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a sheet for a blind judgement, and its key.")
    ] = None,
    score: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read a filled sheet back: no RUN, nothing is generated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Let the base and the tuned model answer the same prompts.

    Any key of the run's recipe can be set after it: eval_dataset_name=other.jsonl, use_cpu=true.
    """
    from trl_plus.errors import RecipeError

    with exit_codes():
        if score is not None:
            if run is not None or blind is not None:
                raise RecipeError("--score goes with neither RUN nor --blind: leave them out.")
            _score(score, as_json)
            return
        if run is None:
            raise RecipeError("RUN is missing: name the output folder of a run, or a filled sheet with --score.")
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        _compare(run, context.args, prompts, count, raw, {**settings, "batch_size": batch_size}, html, blind, as_json)


def _score(sheet: Path, as_json: bool) -> None:
    from trl_plus.comparison.blind import score_sheet, show_score

    show_score(score_sheet(sheet), as_json)


def _compare(
    run: str,
    overrides: list[str],
    prompts: str | None,
    count: int | None,
    raw: bool,
    settings: dict[str, Any],
    html: Path | None,
    blind: Path | None,
    as_json: bool,
) -> None:
    from trl_plus.comparison.blind import refuse_existing
    from trl_plus.comparison.prompts import read_prompts
    from trl_plus.runs.weights import open_run
    from trl_plus.ui.pages import check_writable
    from trl_plus.upstream.libraries import quiet_libraries

    if blind is not None:
        refuse_existing(blind)
    for path, option in ((html, "--html"), (blind, "--blind")):
        if path is not None:
            check_writable(path, option)  # before minutes are spent on answers
    recipe, weights = open_run(run, overrides, needs_data=False)
    if prompts is not None:
        read_prompts(prompts, count)
    quiet_libraries()  # before the libraries are imported

    from trl_plus.comparison.answers import Sampling
    from trl_plus.comparison.output import show_comparison
    from trl_plus.comparison.run import compare as answer
    from trl_plus.setup.machine_errors import explained
    from trl_plus.ui.console import row_progress

    with explained(recipe), row_progress(not as_json, "Answers of {}") as advance:
        result = answer(recipe, weights, prompts, count, raw, Sampling(**settings), advance)
    show_comparison(result, as_json, html, blind)
