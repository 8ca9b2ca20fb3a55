"""The LM head on completion tokens only, where TRL's fused head would score every position.

On CUDA (Triton) TRL's fused LM head projects only the positions that a label asks for. Elsewhere it projects prompts
and padding too, tile by tile, and recomputes each tile in the backward pass. On a CPU plain matrix products over the
completion tokens are faster and, in chunks, need no more memory (benchmarks/compare.py).
"""

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

# Elements of a chunk of logits: 64 Mi are 256 MB in float32
CHUNK_ELEMENTS = 2**26
# Configuration entries of models that transform their logits; TRL's head knows how, so it stays in charge of them
TRANSFORMED_LOGITS = (
    "final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier",
)  # fmt: skip


@dataclass
class HeadOutput(ModelOutput):
    """As TRL's fused output: each (B, T - 1), zero where no label asks for the token; statistics without gradient."""

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None


class CompletionHead:
    """Installed on a causal model that already carries TRL's fused head; takes over where it is the better one.

    Args:
        model: the model without its PEFT wrapper.

    Attributes:
        statistics: whether entropy, mean logit and top-1 hits are computed along (off for a reference).
    """

    def __init__(self, model: Any) -> None:
        self.statistics = True
        config = model.config.get_text_config()
        self._supported = all(getattr(config, name, None) is None for name in TRANSFORMED_LOGITS)
        upstream_forward = model.forward

        @functools.wraps(type(model).forward)  # `generate` validates its arguments against the signature
        def forward(module: Any, *args: Any, labels: Tensor | None = None, fused_lm_head: bool = False, **kwargs: Any):
            if labels is not None:
                kwargs["labels"] = labels
            if fused_lm_head and self._takes(module, kwargs):
                return self._forward(module, *args, **kwargs)
            return upstream_forward(*args, **kwargs, **({"fused_lm_head": True} if fused_lm_head else {}))

        model.forward = types.MethodType(forward, model)

    def _takes(self, module: Any, kwargs: dict[str, Any]) -> bool:
        plain = self._supported and not kwargs.get("output_router_logits")
        head = module.get_output_embeddings()
        linear = getattr(head, "original_module", head)  # PEFT's `modules_to_save` keeps two of them
        if not plain or not isinstance(linear, torch.nn.Linear):
            return False
        # FSDP2 cuts a head that is a unit of its own. TRL's head gathers its weight by hand, and the gradient of that
        # is not summed over the processes; called as a module it is
        return head.weight.device.type == "cpu" or hasattr(head.weight, "full_tensor")

    def _forward(
        self, module: Any, *args: Any, labels: Tensor | None = None, shift_labels: Tensor | None = None, **kwargs: Any
    ) -> HeadOutput:
        hidden = module.base_model(*args, **kwargs).last_hidden_state
        if shift_labels is None:
            hidden, labels = hidden[:, :-1], labels[:, 1:]
        else:
            labels = shift_labels
        mask = labels != -100
        parts = completion_log_probs(hidden[mask], labels[mask], module.get_output_embeddings(), self.statistics)
        placed = [None if part is None else part.new_zeros(mask.shape).masked_scatter(mask, part) for part in parts]
        return HeadOutput(*placed)


def completion_log_probs(
    hidden: Tensor, targets: Tensor, head: torch.nn.Linear, statistics: bool
) -> tuple[Tensor | None, ...]:
    """Log-probability of each target, and entropy, mean logit, top-1 hit of each distribution (None without).

    Args:
        hidden: (N, H), the states that predict the targets.
        targets: (N,), token ids.
        head: the LM head, vocabulary V.

    The logits are made in chunks of about `CHUNK_ELEMENTS`; with several chunks, each is made again in the backward
    pass instead of being kept.
    """
    rows = max(1, CHUNK_ELEMENTS // head.weight.size(0))
    if len(targets) <= rows:
        return _chunk(hidden, targets, head, statistics)
    chunks = [
        checkpoint(_chunk, h, t, head, statistics, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*chunks, strict=True))


def _chunk(hidden: Tensor, targets: Tensor, head: torch.nn.Linear, statistics: bool) -> tuple[Tensor | None, ...]:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(1, targets[:, None])[:, 0]
    if not statistics:
        return chosen, None, None, None
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return chosen, entropy, logits.mean(-1), logits.argmax(-1) == targets
