"""One forward pass of a model over a collated micro-batch -> log-probabilities of its completions."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trl_plus.objectives import Completions

# Keys of a micro-batch that describe rows and are not arguments of a model
ROW_KEYS = frozenset(
    {
        "completion_mask",
        "response_mask",
        "weight",
        "margin",
        "label",
        "ref_chosen_logps",
        "ref_rejected_logps",
        "ref_logps",
    }
)


@dataclass(frozen=True)
class Scores:
    """Scores of R rows of T tokens from one forward pass; position t holds token t + 1, so all are (R, T - 1).

    Args:
        logps: log-probabilities, zero where nothing was asked for.
        mask: bool, the completion tokens.
        entropy, mean_logits, is_top1: statistics of the predicted distributions, without gradient, or None.
        aux_loss: scalar load-balancing loss of a mixture-of-experts model, or None.
    """

    logps: Tensor
    mask: Tensor
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    aux_loss: Tensor | None = None

    def rows(self, index: slice, ref: Tensor | None = None) -> Completions:
        """The completions of some rows, with the reference's log-probabilities of the same rows."""
        return Completions(self.logps[index], self.mask[index], ref)


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The part of a micro-batch that a model's forward takes."""
    return {k: v for k, v in batch.items() if k not in ROW_KEYS}


def score(
    model: torch.nn.Module, batch: dict[str, Any], *, scored: Tensor | None = None, router: bool = False
) -> Scores:
    """Log-probabilities of a micro-batch under `model`, which must carry TRL's fused LM head.

    Args:
        batch: collated rows: `input_ids`, `attention_mask`, `completion_mask`, each (R, T), and whatever else the
            model takes (images, token types).
        scored: (R, T), the tokens to score; the completion tokens if None.
        router: ask a mixture-of-experts model for its load-balancing loss.
    """
    completion = batch["completion_mask"].bool()
    labels = batch["input_ids"].masked_fill(~(completion if scored is None else scored.bool()), -100)
    mark_labels(labels, batch["completion_mask"] if scored is None else scored)
    kwargs = model_inputs(batch) | ({"output_router_logits": True} if router else {})
    out = model(**kwargs, labels=labels, use_cache=False, fused_lm_head=True)
    mask = completion[:, 1:]

    # Prompt-learning adapters put virtual tokens in front: the real ones are the last
    def last(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, -mask.size(1) :].detach()

    return Scores(
        logps=out.log_probs[:, -mask.size(1) :],
        mask=mask,
        entropy=last(out.entropy),
        mean_logits=last(out.mean_logits),
        is_top1=last(out.is_top1),
        aux_loss=out.aux_loss if router else None,
    )


def mark_labels(labels: Tensor, of: Tensor) -> Tensor:
    """`labels` (R, L), with the mask whose tokens they hold, (R, L): who has counted that knows their number."""
    labels.of = of
    return labels


class MarksLabels:
    """A model whose labels are those of a batch's completion tokens, for TRL's reference pass, which makes them.

    The first labels are compared, so that others, of another TRL, would be counted instead of taken for the same.

    Args:
        compared: what was found, kept by the trainer.
    """

    def __init__(self, model: Any, batch: dict[str, Any], compared: dict[str, bool]) -> None:
        self._model, self._batch, self._compared = model, batch, compared

    def __call__(self, **kwargs: Any) -> Any:
        labels, mask = kwargs.get("labels"), self._batch.get("completion_mask")
        if labels is not None and kwargs.get("input_ids") is self._batch["input_ids"]:
            if "same" not in self._compared:
                self._compared["same"] = torch.equal(labels != -100, mask.bool())
            if self._compared["same"]:
                mark_labels(labels, mask)
        return self._model(**{"use_cache": False} | kwargs)  # TRL's pass for KTO would keep keys and values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
