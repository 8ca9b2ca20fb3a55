"""Learning rates that are known to work, by method: what a run is compared with before its first step."""

from collections.abc import Iterator
from typing import Any

from trl_plus.trainers.optimizers import updates_in_backward
from trl_plus.trainers.rounding import rounded_away
from trl_plus.upstream.models import adapter_of, parameters

# Lowest and highest published peak rate for full fine-tuning of models of 3B to 9B parameters with Adam.
# SimPO: README and configurations of princeton-nlp/SimPO; ORPO: xfactlab's scripts; KTO: TRL's documentation and HALOs;
# DPO: alignment-handbook (Zephyr, and SmolLM3 for APO-zero); CPO: TRL's default.
KNOWN = {
    "DPO": (5e-7, 1e-6),
    "SimPO": (3e-7, 1e-6),
    "ORPO": (5e-6, 5e-6),
    "CPO": (1e-6, 1e-6),
    "KTO": (5e-7, 5e-6),
}
LORA = 10  # adapters are trained with rates up to this many times higher (DPO QLoRA of alignment-handbook: 5e-6)
MARGIN = 5  # published rates are few: only what lies this far outside is spoken of
SMALLEST = 100_000_000  # parameters; smaller models take far higher rates, and nobody published which


def before_the_first_step(method: str, args: Any, model: Any, optimizer: Any) -> Iterator[str]:
    """One sentence for each reason in the rate or the optimizer for which a run learns nothing or is not exact."""
    found = (unknown_rate(method, args, model), rounded_away(model, args, optimizer), updates_in_backward(args))
    return (sentence for sentence in found if sentence is not None)


def unknown_rate(method: str, args: Any, model: Any) -> str | None:
    """One sentence on a learning rate far outside the method's known range, or None.

    Says nothing for small models, for optimizers other than Adam, and for adapters other than LoRA, of which no range
    is known.
    """
    adapter = adapter_of(model)
    if parameters(model) < SMALLEST or "adam" not in str(args.optim).lower() or adapter not in ("none", "LORA"):
        return None
    low, high = KNOWN[method]
    high *= LORA if adapter == "LORA" else 1
    if low / MARGIN <= args.learning_rate <= high * MARGIN:
        return None
    far, effect = ("below", "may learn nothing") if args.learning_rate < low else ("above", "may end in repetition")
    known = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    kind = "LoRA" if adapter == "LORA" else "full fine-tuning"
    return (
        f"learning_rate {args.learning_rate:g} is far {far} what is known to work for {method} with {kind} ({known}) "
        f"and {effect}: set a rate in that range, unless a sweep on your model says otherwise."
    )
