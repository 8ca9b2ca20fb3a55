"""The result of a merge in the terminal."""

from collections.abc import Iterator
from shlex import quote
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from trl_plus.evaluation.measures import PER_TOKEN, TUNED, pair_group
from trl_plus.evaluation.output import estimate_text
from trl_plus.merging.run import Merged


def merge_report(result: Merged) -> Iterator[Any]:
    """The sentences and the table to print, in order."""
    compared = f"{result.samples} held-out sequences" if result.rows is not None else "a fixed text"
    yield (
        f"Merged and adapter differ by at most {result.merging.difference:.1e} in their logits (the largest is "
        f"{result.merging.largest:.3g}; {compared}, float32)."
    )
    if result.rounding is not None:
        yield f"Rounding the weights to {result.dtype} makes it {result.rounding.difference:.1e}."
    if result.scores:
        yield _table(result)
    yield f"Wrote {result.path}: {_size(result.bytes)} in {result.dtype}, with tokenizer and generation config."
    yield "\n".join(["Serve it:", *(f"    {line}" for line in serve_commands(str(result.path)))])


def serve_commands(path: str) -> list[str]:
    """Command lines that serve a model folder with vLLM, and with llama.cpp after a conversion."""
    folder = quote(path)
    return [
        f"vllm serve {folder}",
        f"python llama.cpp/convert_hf_to_gguf.py {folder} --outfile model.gguf && llama-server -m model.gguf",
    ]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _table(result: Merged) -> Table | str:
    rows = result.rows
    assert rows is not None
    if not len(rows.pairs):
        return "No held-out prompt has both a better and a worse row, so there is no margin to compare."
    table = Table(
        title=f"{len(rows.pairs):,} held-out pairs, log-probability per token [95% interval]", box=SIMPLE_HEAD
    )
    table.title_justify = "left"
    for place, name in enumerate(("", "accuracy", "mean margin, nats")):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for name, scores in result.scores.items():
        found = pair_group(name, slice(None), rows, {TUNED: scores}).models[TUNED][PER_TOKEN]
        assert found is not None
        table.add_row(name, estimate_text(found.accuracy, 3), estimate_text(found.margin, 4, "+"))
    return table
