"""One evaluation, from a recipe or a run to its figures."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field

from trl_plus.evaluation.intervals import ALL_REQUIRED, Estimate
from trl_plus.evaluation.measures import (
    BASE,
    TUNED,
    ByLabel,
    ByLength,
    ByShortcut,
    Group,
    by_label,
    by_length,
    by_shortcut,
    by_source,
    divergence,
    pair_group,
)
from trl_plus.evaluation.models import (
    Advance,
    Scores,
    free,
    is_adapter,
    load_model,
    other_base,
    out_of_memory,
    put_adapter,
    score_rows,
    scorer,
)
from trl_plus.evaluation.rows import HeldOut, held_out_rows
from trl_plus.recipes.recipe import COMMAND_LINE, Recipe
from trl_plus.runs.weights import EvaluatedWeights, Weights, held_out_digest_of, identify
from trl_plus.setup.objects import RunObjects, build
from trl_plus.setup.trainer import load_processor
from trl_plus.trainers.given_reference import columns_of

ALL = -1  # of the held-out rows
# Keys that decide which rows are held out
_CHOOSE_ROWS = (
    "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets", "converter",
    "eval_dataset_name", "eval_fraction", "max_eval_rows", "test_split_size", "seed", "split_seed",
)  # fmt: skip
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Evaluation:
    """The figures of an evaluation, and the keys of its JSON."""

    __pydantic_config__ = ALL_REQUIRED
    source: Annotated[str, Field(description="The recipe, as messages name it.")]
    method: Annotated[str, Field(description="Method of the recipe, such as simpo. It defines the reward.")]
    base: Annotated[str, Field(description="Model that training began with, a path or a hub id.")]
    tuned: Annotated[
        str | None, Field(description="Adapter or model that was compared with it; null if only the base was scored.")
    ]
    dataset: Annotated[str, Field(description="Origin of the rows.")]
    reference: Annotated[
        bool, Field(description="The reward is a log-ratio to the base, and so not defined for the base itself.")
    ]
    rows: Annotated[
        int,
        Field(
            ge=1,
            description="Held-out rows that were scored, as the trainer counts them: a pair is two rows for a "
            "method on single completions.",
        ),
    ]
    dropped: Annotated[int, Field(ge=0, description="Held-out rows that max_length or overlong removed.")]
    max_length: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(description="Limit on prompt and completion together, in tokens; null for none."),
    ]
    source_column: Annotated[
        str | None,
        Field(
            description='Column that tells sources apart; "datasets" for the entries of a mixture; null if sources are '
            "not told apart."
        ),
    ]
    pairs: Annotated[Group | None, Field(description="All pairs; null if the rows hold none.")]
    sources: Annotated[
        list[Group], Field(description="The pairs of each source, by name; empty if sources are not told apart.")
    ]
    lengths: Annotated[ByLength | None, Field(description="Figures by length of the completions; null without pairs.")]
    labels: Annotated[ByLabel | None, Field(description="Single rows by label; null for a method on pairs.")]
    divergence: Annotated[
        Annotated[dict[str, Estimate | None], Field(json_schema_extra={"required": ["better", "worse", "all"]})] | None,
        Field(
            description="Mean over tokens of log p_tuned - log p_base on the dataset's completions, in nats, of the "
            "better, the worse and all of them. Not an estimate of a KL divergence, for which the completions would "
            "have to be sampled from the tuned model. Null if only the base was scored."
        ),
    ]
    notes: Annotated[list[str], Field(description="Sentences that explain the figures.")] = field(default_factory=list)
    seconds: Annotated[float, Field(ge=0, description="Time the evaluation took.")] = 0.0
    weights: Annotated[
        EvaluatedWeights | None, Field(description="Identity of the tuned weights; null if only the base was scored.")
    ] = None
    time: Annotated[str, Field(description="When the evaluation was made, ISO 8601 in UTC.")] = ""
    shortcut: Annotated[
        ByShortcut | None,
        Field(
            description="Result of surface features alone on the same rows; null if there are too few to fit a rule."
        ),
    ] = None


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
    which = None if weights is None else identify(weights)
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
    objects: RunObjects, weights: Weights | None, held_out: HeldOut, progress: Progress, base: Scores | None = None
) -> dict[str, Scores]:
    """Scores of the held-out completions: BASE, and TUNED if there are weights. One model is held at a time.

    Args:
        base: the scores of the base model, if they are known.
    """
    import trl_plus

    reward = getattr(trl_plus, objects.recipe.method.trainer).reward_of(objects.args)
    reference, size = objects.recipe.method.reference, objects.args.per_device_eval_batch_size
    total = len(held_out.rows)

    def advance(model: str) -> Advance:
        return lambda done: progress(model, done, total)

    adapter = weights is not None and is_adapter(weights)
    if base is None or adapter:
        model = load_model(objects, objects.model.model_name_or_path, quantized=True)
    if base is None:
        ready = scorer(objects, model)
        base = score_rows(ready, held_out, size, None if reference else reward, advance=advance(BASE))
        del ready
    if weights is None:
        return {BASE: base}
    if adapter:  # after the base was scored: an adapter may change base weights, such as biases that it trained
        quantized = objects.model.load_in_4bit or objects.model.load_in_8bit
        ready = scorer(objects, put_adapter(model, weights, quantized))
    else:
        model = None
        free()
        ready = scorer(objects, load_model(objects, weights.path, quantized=False))
    tuned = score_rows(ready, held_out, size, reward, base if reference else None, advance(TUNED))
    return {BASE: base, TUNED: tuned}


def _changed(recipe: Recipe, held_out: HeldOut) -> bool:
    """True if a run, evaluated as it was trained, held out other rows."""
    kept = held_out_digest_of(recipe)
    told = any(recipe.origin(name) == COMMAND_LINE for name in _CHOOSE_ROWS)
    return kept is not None and not told and kept != held_out.digest


def _notes(objects: RunObjects, held_out: HeldOut, weights: Weights | None) -> list[str]:
    """Notes below the figures."""
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
    changed = [name for name in ("eval_fraction", "seed", "split_seed") if objects.recipe.origin(name) == COMMAND_LINE]
    if weights is not None and changed and objects.recipe["eval_fraction"]:
        notes.append(f"{' and '.join(changed)} of the command line may hold out rows that the run was trained on.")
    if held_out.dropped:
        notes.append(f"{held_out.dropped} held-out rows do not fit into max_length {args.max_length} and are left out.")
    if objects.recipe.method.reference and getattr(args, "sync_ref_model", False):
        notes.append("sync_ref_model moved the reference during training; here it is the base model.")
    given = columns_of(held_out.rows) or columns_of(held_out.train)
    if given and objects.recipe.method.reference:
        notes.append(
            f"The data brings the log-probabilities of a reference ({' and '.join(given)}), which training uses; here "
            "rewards are log-ratios to the base model."
        )
    if getattr(args, "ld_alpha", None) is not None:
        notes.append("ld_alpha changes the trainer's rewards; here they are plain log-ratios.")
    if not len(held_out.pairs):
        notes.append("No prompt has both a desirable and an undesirable row, so there are no pairs to compare.")
    return notes
