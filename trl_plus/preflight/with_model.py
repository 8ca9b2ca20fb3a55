"""D8xx, with `--with-model`: what the base model thinks of some pairs before it is trained on them."""

import copy
from dataclasses import dataclass, replace

import numpy as np

from trl_plus.errors import DataError
from trl_plus.preflight.findings import Example, Finding, Result, Severity
from trl_plus.preflight.opening import Opened
from trl_plus.preflight.source import Source, batches
from trl_plus.preflight.tokens import TokenRows
from trl_plus.ui.console import quiet_maps

ROWS = 64  # pairs that are scored
_SAME = 0.01  # nats per token: a margin below it is no margin
_APART = 1.0  # nats per token: a margin above it needs no learning
_MOST = 0.9

CODES = {
    "D801": (
        Severity.INFO,
        "the model finds both responses equally likely",
        "Look at them: such pairs often differ in nothing that matters.",
    ),
    "D802": (
        Severity.INFO,
        "the model already prefers the chosen response by far",
        "Nothing has to be done; pairs that are this easy teach little. Check that the rejected side is not gibberish.",
    ),
    "D803": (
        Severity.WARNING,
        "the model already prefers the chosen response in nearly every pair",
        "Use harder pairs: the loss will be small from the first step on.",
    ),
}


@dataclass(frozen=True)
class Margins:
    """Mean log-probability per token of chosen minus rejected, in nats, by row of the source."""

    rows: list[int]
    values: np.ndarray


def score_pairs(opened: Opened, result: Result) -> None:
    """Add to the result what the model makes of at most `ROWS` training pairs.

    Raises:
        DataError: there is no model, or the rows are not pairs.
    """
    if opened.recipe is None or opened.source.target.processor is None:
        raise DataError("--with-model needs a model: name a recipe, or add --model.")
    if not opened.source.target.kind.paired:
        raise DataError("--with-model compares the two sides of pairs, and these rows are single completions.")
    if any(finding.severity is Severity.ERROR for finding in result.findings):
        result.notes.append("Pairs were not scored with the model: mend the errors first.")
        return
    margins = _margins(opened)
    result.findings += findings(margins)
    result.notes.append(
        f"{len(margins.rows)} pairs were scored with the model: it prefers the chosen response in "
        f"{(margins.values > 0).mean():.0%} of them, by {np.median(margins.values):+.3f} nats per token in the median."
    )
    result.findings.sort(key=lambda finding: (finding.severity.rank, finding.code, finding.split))


def findings(margins: Margins) -> list[Finding]:
    """The findings in the margins."""
    found = []
    masks = {"D801": np.abs(margins.values) < _SAME, "D802": margins.values > _APART}
    for code, mask in masks.items():
        if mask.any():
            found.append(_finding(code, mask, margins))
    if len(margins.rows) >= 32 and (margins.values > 0).mean() > _MOST:
        found.append(_finding("D803", margins.values > 0, margins))
    return found


def _finding(code: str, mask: np.ndarray, margins: Margins) -> Finding:
    severity, title, cure = CODES[code]
    count, checked = int(mask.sum()), len(mask)
    places = np.flatnonzero(mask)[:3]
    examples = tuple(Example(margins.rows[i], f"margin {margins.values[i]:+.3f} nats per token") for i in places)
    sentence = f"{count} of {checked} rows ({count / checked:.1%}): {title}."
    return Finding(code, severity, "train", title, sentence, count, checked, cure, examples)


def _margins(opened: Opened) -> Margins:
    from trl_plus.evaluation.models import load_model, score_rows, scorer
    from trl_plus.evaluation.rows import pairs_of
    from trl_plus.setup.objects import build

    assert opened.recipe is not None
    objects = build(opened.recipe)
    tokens = _sample(opened.source)
    kept = np.flatnonzero(~tokens.dropped).tolist()
    rows = pairs_of([_row(tokens, place) for place in kept], objects, opened.source.target.processor)
    model = load_model(objects, objects.model.model_name_or_path, quantized=True)
    per_token = score_rows(scorer(objects, model), rows, objects.args.per_device_eval_batch_size, None).per_token
    values = per_token[rows.pairs[:, 0]] - per_token[rows.pairs[:, 1]]
    return Margins([tokens.rows[place].source_row for place in kept], values)


def _row(tokens: TokenRows, place: int) -> dict[str, object]:
    """A pair as the trainer's collator takes it."""
    row: dict[str, object] = {"prompt_ids": tokens.prompt[place].tolist()}
    for side in ("chosen", "rejected"):
        row |= {f"{side}_ids": tokens.sides[side][place].tolist(), f"{side}_context": int(tokens.context[side][place])}
    return row


def _sample(source: Source) -> TokenRows:
    from trl_plus.preflight.examine import tokenized

    target = source.target
    if not target.paired_method:  # KTO would take the two sides apart
        args = copy.copy(target.args)
        args.truncation_mode = "keep_start"  # the only one it knows
        target = replace(target, args=args, paired_method=True, trainer="DPOTrainer")
    parts, _, _ = batches(source.raw.train, "train", ROWS, 0)
    with quiet_maps():
        return tokenized(next(parts), target)
