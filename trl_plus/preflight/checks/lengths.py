"""D5xx: what `max_length` does to the rows."""

import numpy as np

from trl_plus.methods import METHODS
from trl_plus.preflight.registry import INFO, WARNING, summary_check, token_check
from trl_plus.preflight.tally import Hits, Summary, Verdict
from trl_plus.preflight.target import Target
from trl_plus.preflight.tokens import TokenRows

_LITTLE = 16  # tokens of a response below which a cut leaves next to nothing
# Methods on pairs whose reward is an average over tokens
_AVERAGING = [method.name for method in METHODS.values() if method.paired and method.reward_reads() == "mean"]
_BIAS_RATE, _BIAS_EFFECT, _BIAS_ROWS = 0.7, 0.5, 50
_SURE = 3  # standard errors by which a bias has to differ from none: few rows differ by chance


@token_check(
    "D501",
    WARNING,
    "the prompt alone fills `max_length`: the row is dropped",
    "Raise `max_length`, or shorten these prompts.",
)
def prompt_too_long(tokens: TokenRows, target: Target) -> Hits | None:
    if target.max_length is None:
        return None
    mask = tokens.dropped & (tokens.prompt.lengths >= target.max_length)
    return Hits(mask, lambda place: f"{tokens.prompt.lengths[place]} prompt tokens")


@token_check(
    "D502",
    WARNING,
    "the row is longer than `max_length`, and dropped or refused as `overlong` says",
    "Raise `max_length`, or set `overlong: truncate`.",
)
def row_too_long(tokens: TokenRows, target: Target) -> Hits | None:
    if target.max_length is None:
        return None
    mask = tokens.dropped & (tokens.prompt.lengths < target.max_length)
    return Hits(mask, lambda place: f"{max(side.lengths[place] for side in tokens.sides.values())} response tokens")


def _cut(tokens: TokenRows) -> dict[str, np.ndarray]:
    return {side: (tokens.over(side) > 0) & ~tokens.dropped for side in tokens.sides}


@token_check(
    "D503",
    WARNING,
    "a response is cut at `max_length`",
    "Raise `max_length`, or set `overlong: drop`: a response that is cut does not end with a stop token.",
)
def response_cut(tokens: TokenRows, target: Target) -> Hits:
    cut = _cut(tokens)

    def detail(place: int) -> str:
        sides = [f"{side} loses {tokens.over(side)[place]} tokens" for side in cut if cut[side][place]]
        return ", ".join(sides) + (", its end with them" if target.keeps_start else " from the front")

    parts = {side: int(mask.sum()) for side, mask in cut.items()}
    return Hits(np.any(list(cut.values()), axis=0), detail, parts if len(parts) > 1 else {})


@token_check(
    "D504",
    WARNING,
    "only one of the two responses is cut, so that only the other ends with a stop token",
    "Raise `max_length`, or set `overlong: drop`: the difference teaches when to stop, not what is better.",
)
def cut_on_one_side(tokens: TokenRows, target: Target) -> Hits | None:
    cut = _cut(tokens)
    if len(cut) < 2 or not target.keeps_start:
        return None
    mask = cut["chosen"] ^ cut["rejected"]
    return Hits(
        mask,
        lambda place: "chosen" if cut["chosen"][place] else "rejected",
        {side: int((cut[side] & mask).sum()) for side in cut},
    )


@token_check(
    "D505",
    WARNING,
    f"a response is cut to fewer than {_LITTLE} tokens",
    "Raise `max_length`, or set `overlong: drop`: next to nothing of these responses is left to compare.",
)
def cut_to_little(tokens: TokenRows, target: Target) -> Hits:
    cut = _cut(tokens)
    left = {side: tokens.response_lengths(side) - tokens.over(side) for side in cut}
    masks = [cut[side] & (left[side] < _LITTLE) for side in cut]
    return Hits(np.any(masks, axis=0), lambda place: f"{min(left[side][place] for side in cut)} tokens are left")


@summary_check(
    "D510",
    WARNING,
    "wanted and unwanted responses differ in length",
    "Balance the lengths, and watch how long the model's answers get during training.",
)
def length_bias(summary: Summary, target: Target) -> Verdict | None:
    sizes = summary.response_sizes()
    if summary.split != "train" or sizes is None or min(map(len, sizes)) < _BIAS_ROWS:
        return None
    wanted, other, unit = *(np.maximum(side, 1).astype(float) for side in sizes), summary.unit
    paired = target.kind.paired and (target.paired_method or not summary.tokens)
    names = ("chosen", "rejected") if paired else ("desirable", "undesirable")
    if paired:
        ratio, error = np.log(wanted / other), 1 / np.sqrt(len(wanted))
        rate, effect = float(((ratio > 0) + 0.5 * (ratio == 0)).mean()), float(ratio.mean() / max(ratio.std(), 1e-9))
        longer, shorter = (ratio > 0).mean(), (ratio < 0).mean()
        what = f"chosen is longer than rejected in {longer:.1%} of {len(ratio)} pairs and shorter in {shorter:.1%}"
    else:
        a, b, error = np.log(wanted), np.log(other), np.sqrt(1 / len(wanted) + 1 / len(other))
        rate, effect = 0.5, float((a.mean() - b.mean()) / max(np.sqrt((a.var() + b.var()) / 2), 1e-9))
        what = f"desirable completions have a mean of {wanted.mean():.0f} {unit}, undesirable {other.mean():.0f}"
    effect = min(max(effect, -10.0), 10.0)  # lengths that hardly vary
    if abs(effect) < _SURE * error and abs(rate - 0.5) < _SURE * error / 2:
        return None
    strong = not 1 - _BIAS_RATE < rate < _BIAS_RATE or abs(effect) > _BIAS_EFFECT
    if not strong and abs(effect) < _BIAS_EFFECT / 2:
        return None
    longer_side = names[0] if effect > 0 else names[1]
    method = target.method
    meaning = (
        f"the reward of {method} sums over tokens, so length alone can raise it; "
        f"{', '.join(_AVERAGING[:-1])} and {_AVERAGING[-1]} average"
        if METHODS[method].reward_reads(target.args) == "sum"
        else f"{method} averages over tokens, which lessens this but does not remove it"
    )
    return Verdict(
        f"Length bias: {what} (effect size {effect:+.2f} standard deviations of the log of length in {unit}); "
        f"{longer_side} ones are longer, and {meaning}.",
        severity=None if strong else INFO,
    )
