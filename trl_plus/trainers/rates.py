"""Comparison of a run's learning rate and beta with published ones, before its first step."""

from collections.abc import Iterator
from math import log
from typing import Any

from trl_plus.published import BETAS, RATES
from trl_plus.trainers.optimizers import updates_in_backward
from trl_plus.trainers.rounding import rounded_away
from trl_plus.upstream.models import adapter_of, parameters

LORA = 10  # adapters are trained with rates up to this many times higher than full weights
MARGIN = 5  # published rates are few: only a rate this far outside is reported
BETA_MARGIN = 10  # and only a beta this far outside
NEAR = 4  # models within this factor in parameters are of one size
SMALLEST = 100_000_000  # parameters; smaller models take far higher rates, and none is published


def before_the_first_step(method: str, args: Any, model: Any, optimizer: Any) -> Iterator[str]:
    """One sentence for each reason in the rate or the optimizer for which a run learns nothing or is not exact."""
    found = (
        unknown_rate(method, args, model),
        unknown_beta(method, args),
        rounded_away(model, args, optimizer),
        updates_in_backward(args),
    )
    return (sentence for sentence in found if sentence is not None)


def unknown_rate(method: str, args: Any, model: Any) -> str | None:
    """One sentence on a learning rate far outside the published ones (trl_plus/published.py), or None.

    The comparison is with full fine-tuning of models of about this size, for LoRA with ten times that and with
    published LoRA rates. None for small models, for optimizers other than Adam, and for adapters other than LoRA,
    for which no rates are published.
    """
    adapter, size = adapter_of(model), parameters(model)
    if size < SMALLEST or "adam" not in str(args.optim).lower() or adapter not in ("none", "LORA"):
        return None
    known, of_what = published_rates(method, size / 1e9, lora=adapter == "LORA")
    (low, lowest), (high, highest) = min(known), max(known)
    if low / MARGIN <= args.learning_rate <= high * MARGIN:
        return None
    far, effect = ("below", "may learn nothing") if args.learning_rate < low else ("above", "may end in repetition")
    bounds = f"{low:g} ({lowest})" if low == high else f"{low:g} ({lowest}) to {high:g} ({highest})"
    return (
        f"learning_rate {args.learning_rate:g} is far {far} the published rates of {method} for {of_what}, {bounds}, "
        f"and {effect}: set a rate in that range, unless a sweep on your model says otherwise."
    )


def published_rates(method: str, size: float, lora: bool) -> tuple[list[tuple[float, str]], str]:
    """Rates that a run is compared with, each with the model it is known from, and words for what they are of.

    Args:
        size: parameters of the model, in billions. Without a published rate within a factor of 4, the nearest count.
        lora: the run trains a LoRA adapter.
    """
    full = [rate for rate in RATES if rate.method == method and not rate.lora]
    distance = min(abs(log(rate.size / size)) for rate in full)
    near = [rate for rate in full if abs(log(rate.size / size)) <= max(distance, log(NEAR))]
    known = [(value, rate.label) for rate in near for value in {rate.low, rate.high}]
    models = "models of this size" if distance <= log(NEAR) else "the models nearest in size"
    if not lora:
        return known, f"full fine-tuning of {models}"
    known += [(LORA * value, f"{LORA} times full fine-tuning's of {model}") for value, model in known]
    adapters = [rate for rate in RATES if rate.method == method and rate.lora]
    known += [(value, rate.label) for rate in adapters for value in {rate.low, rate.high}]
    return known, f"LoRA and full fine-tuning of {models}" if adapters else f"full fine-tuning of {models}"


def unknown_beta(method: str, args: Any) -> str | None:
    """One sentence on a `beta` far outside the published ones for its loss (trl_plus/published.py), or None.

    One value of `beta` means different things to different losses. None for a loss without published values.
    """
    losses = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
    if (method == "CPO" and losses != ["sigmoid"]) or args.beta == 0:
        return None
    if getattr(args, "ipo_reduction", "mean") != "mean":  # the published values are of the mean over tokens
        return None
    names = losses if method == "DPO" else [method]
    for beta in BETAS:
        if beta.loss not in names or beta.low / BETA_MARGIN <= args.beta <= beta.high * BETA_MARGIN:
            continue
        far = "below" if args.beta < beta.low else "above"
        known = f"{beta.low:g}" if beta.low == beta.high else f"{beta.low:g} to {beta.high:g}"
        loss = f"loss_type {beta.loss}" if method == "DPO" else method
        return (
            f"beta {args.beta:g} is far {far} the published values for {loss}, {known} ({beta.source}); each loss has "
            "its own scale of beta: set a value in that range, unless a sweep on your model says otherwise."
        )
    return None
