"""An estimate as a table, or as one JSON object."""

from typing import Any

from rich.table import Table

from trl_plus.estimate.measure import GIB
from trl_plus.estimate.run import Calibration, Cure, Estimate, Fit
from trl_plus.ui.console import say

VERSION = 1
_TITLES = {
    "process": "the process itself, libraries included",
    "weights": "weights",
    "adapter": "adapter",
    "reference": "reference model",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "logits": "LM head (logits)",
    "engine": "buckets, or gathered parameters",
    "fragmentation": "fragmentation (assumed)",
}


def as_json(estimate: Estimate, calibration: Calibration | None) -> dict[str, Any]:
    """The object of `trl-plus estimate --json`.

    `device` is `cpu` or `cuda`. `engine` is `one process`, `DDP`, `FSDP`, `FSDP (gradients)` or `ZeRO-1` to `ZeRO-3`.
    `layout` is `packed`, `shared` or `rows`. Memory is that of one device, in bytes; the components add up to the peak.
    `micro_batch` describes the largest micro-batch of the recipe: its sequences, the tokens of the longest, and the
    tokens that are computed and scored. `mean_padded_tokens` belongs to `per_device_train_batch_size` rows.
    `sampled_rows` is 0 if the data was not read. `fit` is what the limit allows: `tokens_per_device` is None if rows
    are not packed, `whole_step` is true if the micro-batch is a device's whole step, `cures` are changes of the recipe
    if not even one row fits. `effective_batch` counts rows per optimizer step. `points` of `time` are measured.
    """
    objects, shape, fit = estimate.plan.objects, estimate.shape, estimate.fit
    return {
        "format": "trl_plus.estimate",
        "version": VERSION,
        "recipe": objects.recipe.label,
        "method": objects.recipe.method.name,
        "model": objects.model.model_name_or_path,
        "device": estimate.device,
        "engine": estimate.engine.name,
        "layout": estimate.rows.layout,
        "processes": estimate.plan.processes,
        "parameters": {"all": estimate.parameters[0], "trained": estimate.parameters[1]},
        "memory": {"peak_bytes": estimate.peak, "largest": estimate.largest, "components_bytes": estimate.components},
        "micro_batch": {
            "per_device_train_batch_size": objects.args.per_device_train_batch_size,
            "sequences": shape.rows,
            "tokens": shape.tokens,
            "computed_tokens": shape.computed,
            "scored_tokens": shape.scored,
            "mean_padded_tokens": estimate.mean_tokens,
            "tokens_per_device": objects.args.tokens_per_device,
            "sampled_rows": len(estimate.rows.sample),
        },
        "fit": None
        if fit is None
        else {
            "limit_bytes": fit.limit,
            "per_device_train_batch_size": fit.batch,
            "gradient_accumulation_steps": fit.accumulation,
            "peak_bytes": fit.peak,
            "tokens_per_device": fit.tokens,
            "whole_step": fit.whole_step,
            "cures": [{"overrides": cure.overrides, "peak_bytes": cure.peak} for cure in fit.cures],
        },
        "effective_batch": estimate.plan.effective_batch,
        "steps": estimate.plan.steps,
        "time": None
        if calibration is None
        else {
            "points": [{"padded_tokens": x, "seconds": y} for x, y in calibration.points],
            "optimizer_seconds": calibration.optimizer_seconds,
            "run_seconds": calibration.run_seconds,
        },
        "notes": estimate.notes,
    }


def show(estimate: Estimate, calibration: Calibration | None) -> None:
    """Print the table, what fits, the number of steps and the time."""
    objects = estimate.plan.objects
    table = Table("component", title=f"Memory of one device ({estimate.device}, {estimate.engine.name})")
    table.title_justify = "left"
    table.add_column("GiB", justify="right")
    table.add_column("share", justify="right")
    for name, size in sorted(estimate.components.items(), key=lambda item: -item[1]):
        if size:
            table.add_row(_TITLES[name], f"{size / GIB:.2f}", f"{size / estimate.peak:.0%}")
    table.add_section()
    table.add_row("peak", f"{estimate.peak / GIB:.2f}", "100%")
    say(table)
    say(f"Parameters: {estimate.parameters[0]:,}, trained: {estimate.parameters[1]:,}.")
    say(f"Besides the process itself, most of the peak is {_TITLES[estimate.largest]}.")
    say(_micro_batch(estimate))
    _show_fit(estimate)
    steps = "not known" if estimate.plan.steps is None else str(estimate.plan.steps)
    say(f"Optimizer steps: {steps}; effective batch size: {estimate.plan.effective_batch}.")
    if calibration is not None:
        _show_time(estimate, calibration)
    for note in (*objects.recipe.notes, *estimate.notes):
        say(note)
    if estimate.device == "cuda":
        say("Figures for CUDA were never measured by us: leave room.")


def _micro_batch(estimate: Estimate) -> str:
    args, shape = estimate.plan.objects.args, estimate.shape
    laid_out = {
        "packed": f", packed into {shape.computed} tokens",
        "shared": f", in rows of {shape.computed} tokens in all",
        "rows": f", padded to {shape.computed} tokens in all",
    }
    return (
        f"Largest micro-batch: {shape.rows} sequences of up to {shape.tokens} tokens{laid_out[estimate.rows.layout]}, "
        f"{shape.scored} of them scored. On average {args.per_device_train_batch_size} rows of data make "
        f"{estimate.mean_tokens:.0f} tokens."
    )


def _show_fit(estimate: Estimate) -> None:
    fit = estimate.fit
    if fit is None:
        return
    limit = f"{fit.limit / GIB:.2f} GiB"
    if fit.batch is None:
        say(f"A micro-batch of 1 needs {fit.peak / GIB:.2f} GiB, more than {limit}. {cures_text(fit)}")
        return
    without = "" if estimate.plan.objects.args.tokens_per_device is None else "without tokens_per_device, "
    say(
        f"Largest micro-batch within {limit}: {without}per_device_train_batch_size={fit.batch} "
        f"gradient_accumulation_steps={fit.accumulation} (the same training), {fit.peak / GIB:.2f} GiB."
        + (" It is the whole step: more rows would be another effective batch." if fit.whole_step else "")
    )
    if fit.tokens is not None:
        say(
            f"Or by tokens, the same training as well: tokens_per_device={fit.tokens}, {fit.tokens_peak / GIB:.2f} GiB."
        )


def cures_text(fit: Fit) -> str:
    """The changes that fit, or how far each of those goes that do not."""
    alone = [cure for cure in fit.cures if cure.remark]
    fitting = [cure for cure in alone if cure.peak <= fit.limit]
    if fitting:
        return f"Each of these makes it fit: {_listed(fitting)}."
    if not alone:
        return "Nothing in the recipe lowers it: take a smaller model or a larger GPU."
    said, together = f"None of these alone makes it fit: {_listed(alone)}.", fit.cures[-1]
    if together.remark:  # there is one cure
        return f"{said} Take a smaller model or a larger GPU."
    size = f"{together.peak / GIB:.2f} GiB"
    if together.peak <= fit.limit:
        return f"{said} All of them do, {size}: {together.overrides}."
    return f"{said} Nor do all of them, {size}: take a smaller model or a larger GPU."


def _listed(cures: list[Cure]) -> str:
    return "; ".join(f"{cure.overrides} ({cure.remark}), {cure.peak / GIB:.2f} GiB" for cure in cures)


def _show_time(estimate: Estimate, calibration: Calibration) -> None:
    (x0, y0), (x1, y1) = calibration.points
    say(
        f"Measured here: {1000 * y0:.0f} ms per micro-batch of {x0:.0f} tokens, {1000 * y1:.0f} ms of {x1:.0f}, "
        f"{1000 * calibration.optimizer_seconds:.0f} ms per optimizer update."
    )
    if calibration.run_seconds is not None:
        minutes = calibration.run_seconds / 60
        span = f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes:.1f} minutes"
        say(
            f"All {estimate.plan.steps} steps: about {span}, without evaluation and saving. An extrapolation, linear "
            "in the tokens of a micro-batch."
        )
