"""D8xx, with `--with-model`: what the base model thinks of some pairs before it is trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trl_plus.data.files import DataError
from trl_plus.preflight.findings import Example, Finding, Result, Severity
from trl_plus.preflight.opening import Opened
from trl_plus.preflight.run import quiet_maps
from trl_plus.preflight.source import Source, batches
from trl_plus.preflight.tokens import TokenRows

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
    """What margins say."""
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
    from trl_plus.recipes.objects import build

    assert opened.recipe is not None
    tokens = _sample(opened.source)
    kept = np.flatnonzero(~tokens.dropped)
    model, device = _load(build(opened.recipe))
    sides = {}
    for side in ("chosen", "rejected"):
        sides[side] = [_mean_log_prob(model, device, tokens, side, int(place)) for place in kept]
    values = np.array(sides["chosen"]) - np.array(sides["rejected"])
    return Margins([tokens.rows[int(place)].source_row for place in kept], values)


def _sample(source: Source) -> TokenRows:
    from dataclasses import replace

    from trl_plus.preflight.examine import tokenized

    target = source.target
    if not target.paired_method:  # KTO would take the two sides apart
        target = replace(target, paired_method=True, trainer="DPOTrainer")
    parts, _, _ = batches(source.raw.train, "train", ROWS, 0)
    with quiet_maps():
        return tokenized(next(parts), target)


def _load(objects: object) -> tuple[object, object]:
    from transformers import AutoModelForCausalLM
    from trl import get_quantization_config

    model_config = objects.model  # type: ignore[attr-defined]
    args = objects.args  # type: ignore[attr-defined]
    model = AutoModelForCausalLM.from_pretrained(
        model_config.model_name_or_path,
        revision=model_config.model_revision,
        trust_remote_code=args.trust_remote_code,
        dtype=model_config.dtype or "auto",
        quantization_config=get_quantization_config(model_config),
    )
    device = args.device
    if getattr(model, "quantization_method", None) is None:
        model.to(device)
    return model.eval(), device


def _mean_log_prob(model: object, device: object, tokens: TokenRows, side: str, place: int) -> float:
    """Mean log-probability of the response's tokens, in nats."""
    import torch

    prompt, own = tokens.prompt[place], tokens.sides[side][place]
    ids = np.concatenate([prompt, own])[: tokens.max_length]
    first = min(len(prompt) + int(tokens.context[side][place]), len(ids) - 1)
    batch = torch.tensor(ids, device=device)[None]
    with torch.no_grad():
        logits = model(input_ids=batch).logits[0, first - 1 : -1].float()  # type: ignore[operator]
    picked: Sequence[float] = logits.log_softmax(-1).gather(1, batch[0, first:, None])[:, 0].tolist()
    return float(np.mean(picked))
