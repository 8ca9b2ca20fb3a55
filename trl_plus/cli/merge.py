"""trl-plus merge RUN DEST: an adapter into its base weights."""

from enum import StrEnum
from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus merge runs/quickstart merged

trl-plus merge runs/simpo_lora/checkpoint-400 merged --dtype bfloat16 --max-shard-size 2GB

trl-plus merge runs/dpo_qlora merged --base original
"""


class Dtype(StrEnum):
    """Number formats of written weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Base(StrEnum):
    """Weights that an adapter of a quantized run is merged into."""

    original = "original"
    dequantized = "dequantized"


def merge(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The output folder of a run, or a checkpoint in one.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A new folder.")],
    dtype: Annotated[Dtype | None, typer.Option(help="Of the written weights; as in training, if not given.")] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of a weight file, such as 2GB.")] = "5GB",
    base: Annotated[
        Base | None,
        typer.Option(help="For a run on a quantized base: what its bits stand for, or the weights before that."),
    ] = None,
) -> None:
    """Merge a run's adapter into its base weights, and check the result against the adapter.

    Any key of the run's recipe can be set after it: model_name_or_path=PATH if the base model lies elsewhere.
    """
    from trl_plus.merging.destination import check_adapter, check_destination, shard_size
    from trl_plus.runs.weights import open_run
    from trl_plus.upstream.libraries import quiet_libraries

    with exit_codes():
        recipe, weights = open_run(run, context.args, needs_data=False)
        check_adapter(weights)
        check_destination(destination)
        size = shard_size(max_shard_size)
        quiet_libraries()  # before the libraries are imported

        from trl_plus.merging.output import merge_report
        from trl_plus.merging.run import merge as write
        from trl_plus.ui.console import say

        result = write(recipe, weights, destination, dtype and dtype.value, size, base and base.value, say)
        for part in merge_report(result):
            say(part)
