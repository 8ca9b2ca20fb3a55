"""Base weights in float32, an adapter merged into them, and logits to compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trl_plus.errors import RecipeError, RunFault
from trl_plus.evaluation.models import is_quantized, load_model, put_adapter
from trl_plus.runs.weights import Weights
from trl_plus.setup.objects import RunObjects

ORIGINAL, DEQUANTIZED = "original", "dequantized"
# Of the largest logit: float32 has seven digits, and a merge adds the same terms in another order
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Gap:
    """The largest difference between two models' logits, beside the largest logit."""

    difference: float
    largest: float

    @property
    def passes(self) -> bool:
        """True within TOLERANCE: absolute, or relative to the largest logit if that is above 1. False for NaN."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


def adapted_model(objects: RunObjects, weights: Weights, base: str) -> tuple[Any, torch.dtype]:
    """The adapter on its base in float32, and the dtype that the base was trained in.

    Args:
        base: ORIGINAL weights, or DEQUANTIZED: what the run's 4 or 8 bits stand for, which is what the adapter was
            trained around.

    Raises:
        RecipeError: the base or the adapter cannot be loaded, or the adapter has no merged form.
    """
    model = load_model(objects, objects.model.model_name_or_path, quantized=base == DEQUANTIZED)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    if is_quantized(model):
        model = model.dequantize(dtype=torch.float32)
    model = put_adapter(model.float(), weights, quantized=False).float()
    _untie(model.get_base_model())
    if not hasattr(model, "merge_and_unload") or model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type.value
        raise RecipeError(f"{weights.path} is an adapter of type {kind}, which has no merged form: serve it as it is.")
    return model.eval(), dtype


def _untie(model: Any) -> None:
    """Give the LM head separate weights if an adapter changes the embeddings that it shares.

    The head computes with the shared matrix as it was; merging into that matrix would move the head, too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = model.get_output_embeddings()
    if not isinstance(model.get_input_embeddings(), BaseTunerLayer) or isinstance(head, BaseTunerLayer):
        return
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False


def merged(adapted: Any) -> Any:
    """The base model with the adapter merged into its weights; `adapted` is used up."""
    return adapted.merge_and_unload(safe_merge=True)


def logits_of(model: Any, samples: Sequence[Sequence[int]]) -> list[Tensor]:
    """(T, V) for each sequence of token ids, on the CPU."""
    with torch.no_grad():
        return [model(torch.tensor([ids], device=model.device)).logits[0].float().cpu() for ids in samples]


def gap_between(a: Sequence[Tensor], b: Sequence[Tensor]) -> Gap:
    """The largest difference between logits of the same samples."""
    differences = torch.stack([(x - y).abs().max() for x, y in zip(a, b, strict=True)])
    return Gap(float(differences.max()), max(float(x.abs().max()) for x in a))


def require(gap: Gap, what: str) -> None:
    """Raise a RunFault if logits that should be the same differ."""
    if not gap.passes:
        raise RunFault(
            f"{what} differs from the adapter by up to {gap.difference:.2g} in its logits (the largest is "
            f"{gap.largest:.3g}): nothing was written. Serve the adapter itself, and report this with `trl-plus env`."
        )
