"""One evaluation, from a recipe or a run to its figures."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from trl_plus.evaluation.measures import (
    BASE,
    TUNED,
    ByLabel,
    ByLength,
    Group,
    by_label,
    by_length,
    by_source,
    divergence,
    pair_group,
)
from trl_plus.evaluation.models import free, is_adapter, load_model, other_base, out_of_memory, put_adapter, scorer
from trl_plus.evaluation.rows import HeldOut, held_out_rows
from trl_plus.evaluation.scores import Advance, Scores, score_rows
from trl_plus.evaluation.shortcut import ByShortcut, by_shortcut
from trl_plus.evaluation.statistics import Estimate
from trl_plus.recipes.recipe import COMMAND_LINE, Recipe
from trl_plus.runs.evaluated import Judged, judged
from trl_plus.runs.weights import Weights, held_out_digest_of
from trl_plus.setup.objects import RunObjects, build
from trl_plus.setup.trainer import load_processor

ALL = -1  # of the held-out rows
# Keys that say which rows are held out
_CHOOSE_ROWS = (
    "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets", "converter",
    "eval_dataset_name", "eval_fraction", "max_eval_rows", "test_split_size", "seed",
)  # fmt: skip
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Evaluation:
    """The figures of an evaluation.

    Attributes:
        source: the recipe, as messages name it.
        base, tuned: paths or hub ids; `tuned` is None where only the base was scored.
        reference: the method's reward is a log-ratio to the base.
        rows: held-out rows that were scored, as the trainer counts them; `dropped` were too long.
        pairs: None where the rows hold none.
        weights: what tells the tuned weights from others; None where only the base was scored.
        time: when it was made, ISO 8601 in UTC.
        divergence: kind of completion -> mean log-ratio per token (`measures.divergence`); None with one model.
        shortcut: what surface features alone reach; None if there are too few rows to tell.
    """

    source: str
    method: str
    base: str
    tuned: str | None
    dataset: str
    reference: bool
    rows: int
    dropped: int
    max_length: int | None
    source_column: str | None
    pairs: Group | None
    sources: list[Group]
    lengths: ByLength | None
    labels: ByLabel | None
    divergence: dict[str, Estimate | None] | None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    weights: Judged | None = None
    time: str = ""
    shortcut: ByShortcut | None = None


def evaluate(
    recipe: Recipe, weights: Weights | None, rows: int | None, by: str | None, progress: Progress
) -> Evaluation:
    """Score the held-out rows of a recipe with its base model, and with the tuned weights if there are any.

    Args:
        rows: as in `held_out_rows`.
        by: column that tells sources apart.

    Raises:
        RecipeError, DataError: a model cannot be loaded, or the rows cannot be used.
        RunFault: a model's log-probabilities are not finite.
    """
    start = time.monotonic()
    which = None if weights is None else judged(weights)
    objects = build(recipe)
    held_out = held_out_rows(objects, load_processor(objects), rows, by)
    notes = _notes(objects, held_out, weights)
    if rows is None and _changed(objects.recipe, held_out):
        notes.append(
            "The held-out rows are not those of the run: its data has changed since. It may have been trained on some "
            "of these."
        )
    with out_of_memory(f"lower per_device_eval_batch_size (now {objects.args.per_device_eval_batch_size})"):
        models = score_models(objects, weights, held_out, progress)
    return Evaluation(
        source=recipe.label,
        method=recipe.method.name,
        base=str(recipe["model_name_or_path"]),
        tuned=None if weights is None else weights.path,
        dataset=objects.data.label,
        reference=recipe.method.reference,
        rows=len(held_out.rows),
        dropped=held_out.dropped,
        max_length=objects.args.max_length,
        source_column=held_out.source_column,
        pairs=pair_group("all", slice(None), held_out, models) if len(held_out.pairs) else None,
        sources=by_source(held_out, models),
        lengths=by_length(held_out, models),
        labels=by_label(held_out, models),
        divergence=divergence(held_out, models[BASE], models[TUNED]) if TUNED in models else None,
        notes=notes,
        seconds=time.monotonic() - start,
        weights=which,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        shortcut=by_shortcut(held_out, held_out.train, models),
    )


def score_models(
    objects: RunObjects, weights: Weights | None, held_out: HeldOut, progress: Progress
) -> dict[str, Scores]:
    """Scores of the held-out completions: BASE, and TUNED where there are weights. One model is held at a time."""
    import trl_plus

    reward = getattr(trl_plus, objects.recipe.method.trainer).reward_of(objects.args)
    reference, size = objects.recipe.method.reference, objects.args.per_device_eval_batch_size
    total = len(held_out.rows)

    def advance(model: str) -> Advance:
        return lambda done: progress(model, done, total)

    adapter = weights is not None and is_adapter(weights)
    model = load_model(objects, objects.model.model_name_or_path, quantized=True)
    ready = scorer(objects, model)
    base = score_rows(ready, held_out, size, None if reference else reward, advance=advance(BASE))
    if weights is None:
        return {BASE: base}
    if adapter:  # after the base was scored: an adapter may change base weights, such as biases that it trained
        quantized = objects.model.load_in_4bit or objects.model.load_in_8bit
        ready = scorer(objects, put_adapter(model, weights, quantized))
    else:
        del model, ready
        free()
        ready = scorer(objects, load_model(objects, weights.path, quantized=False))
    tuned = score_rows(ready, held_out, size, reward, base if reference else None, advance(TUNED))
    return {BASE: base, TUNED: tuned}


def _changed(recipe: Recipe, held_out: HeldOut) -> bool:
    """Whether a run, evaluated as it was trained, held out other rows."""
    kept = held_out_digest_of(recipe)
    told = any(recipe.origin(name) == COMMAND_LINE for name in _CHOOSE_ROWS)
    return kept is not None and not told and kept != held_out.digest


def _notes(objects: RunObjects, held_out: HeldOut, weights: Weights | None) -> list[str]:
    """What a reader of the figures must know."""
    notes = list(objects.recipe.notes)
    args: Any = objects.args
    if weights is None:
        notes.append(
            f"{objects.recipe['output_dir']} holds no trained weights: only the base model is scored. Name others with "
            "--model."
        )
    other = None if weights is None else other_base(weights, objects.model.model_name_or_path)
    if other is not None:
        notes.append(other)
    changed = [name for name in ("eval_fraction", "seed") if objects.recipe.origin(name) == COMMAND_LINE]
    if weights is not None and changed and objects.recipe["eval_fraction"]:
        notes.append(f"{' and '.join(changed)} of the command line may hold out rows that the run was trained on.")
    if held_out.dropped:
        notes.append(f"{held_out.dropped} held-out rows do not fit into max_length {args.max_length} and are left out.")
    if objects.recipe.method.reference and getattr(args, "sync_ref_model", False):
        notes.append("sync_ref_model moved the reference during training; here it is the base model.")
    if getattr(args, "ld_alpha", None) is not None:
        notes.append("ld_alpha changes the trainer's rewards; here they are plain log-ratios.")
    if not len(held_out.pairs):
        notes.append("No prompt has both a desirable and an undesirable row, so there are no pairs to compare.")
    return notes
