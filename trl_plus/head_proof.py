"""Proof that a fast LM head gives the log-probabilities of the model's own logits, made on one row of the run."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trl_plus.layout_proof import TOLERANCE, TOLERANCE_16_BIT, in_16_bits

# Largest difference of a log-probability in nats. On a CPU both ways round alike, so less is asked of them elsewhere
TOLERANCE_CPU = 1e-4
CACHED = "past_key_values"


def outside_of_head(model: Any, weight_only: bool) -> str | None:
    """Return why a head on the backbone's states cannot have the model's gradients, as the rest of a sentence.

    A trainable scale or layer may be the identity when training begins, so log-probabilities do not show it.

    Args:
        weight_only: True for a head that multiplies by `weight`, False for one that calls the module.
    """
    head, backbone = model.get_output_embeddings(), model.base_model
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        return "it has no LM head that transformers knows"
    if weight_only and not isinstance(head, torch.nn.Linear):
        return f"its LM head is a {type(head).__name__}"
    if weight_only and is_cut(head):
        return "its LM head is cut across processes"
    inside = {id(parameter) for part in (backbone, head) for parameter in part.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in inside:
            return f"`{name}` is trained outside its backbone and its LM head"
    modules = {id(module) for part in (backbone, head) for module in part.modules()}
    for name, module in model.named_modules():
        if id(module) not in modules and isinstance(module, torch.nn.Dropout) and module.p > 0:
            return f"`{name}` draws dropout between its backbone and its logits"
    return None


def is_cut(head: Any) -> bool:
    """Return True if the weight of an LM head is a DTensor, of which this process holds a part."""
    return hasattr(head.weight, "full_tensor")


def own_logits(forward: Callable, kwargs: Mapping[str, Any], keep: Tensor | None = None) -> tuple[Tensor, Any]:
    """Return the logits of a model's own forward, (B, T, V), and its whole output.

    Args:
        forward: the model's forward as its class (or its owner) wrote it.
        kwargs: of a fused call; labels are left out.
        keep: (K,), positions whose logits are wanted, if `forward` takes `logits_to_keep`. The logits are (B, K, V).

    Raises:
        ValueError: the output has no logits for each token of a row.
    """
    kwargs = {name: value for name, value in kwargs.items() if name not in ("labels", "shift_labels")}
    if "use_cache" in kwargs and not accepts(forward, "use_cache"):
        del kwargs["use_cache"]
    output = forward(**kwargs) if keep is None else forward(**kwargs, logits_to_keep=keep)
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise ValueError("its output has no logits of the shape (rows, tokens, vocabulary)")
    return logits, output


def accepts(forward: Callable, name: str) -> bool:
    """Return True if a forward takes the keyword, by name or among any others."""
    parameters = inspect.signature(forward).parameters
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def one_row(kwargs: Mapping[str, Any], labels: Tensor) -> tuple[dict[str, Any], Tensor, bool]:
    """Return a short row of a batch without padding, its targets, and True if it stands there twice.

    Every token of the row is a target. Its second copy ends with another token, which a causal model must not notice.
    Rows with more than text (images, states of a cache) cannot be taken apart: the batch is returned as it is.
    """
    known = [value for value in kwargs.values() if isinstance(value, Tensor) and value.ndim >= 1]
    odd = [x for x in kwargs.values() if not isinstance(x, (Tensor, bool, int, float, str, type(None)))]
    mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
    plain = isinstance(mask, Tensor) and mask.shape == labels.shape and not odd
    if not plain or any(value.shape[:2] != labels.shape for value in known):
        return dict(kwargs), labels, False
    lengths = mask.bool().sum(1)
    row = int(torch.where(lengths >= 3, lengths, lengths.max() + 1).argmin())
    places = mask[row].bool().nonzero()[:, 0]
    cut = {
        name: value[row : row + 1, places] if isinstance(value, Tensor) and value.ndim >= 2 else value
        for name, value in kwargs.items()
    }
    if ids is None:  # embeddings of a prompt-learning adapter: labels are the only tokens
        return cut, labels[row : row + 1, places], False
    targets = cut["input_ids"]
    if targets.size(1) < 3:
        return cut, targets, False
    other = targets.clone()
    different = (targets[0] != targets[0, -1]).nonzero()[:, 0]
    other[0, -1] = targets[0, different[0]] if len(different) else (targets[0, -1] - 1).clamp(min=0)
    twice = {n: x.repeat(2, *[1] * (x.ndim - 1)) if isinstance(x, Tensor) and x.ndim else x for n, x in cut.items()}
    twice["input_ids"] = torch.cat([targets, other])
    return twice, twice["input_ids"], True


def sees_ahead(logits: Tensor, model: Any) -> bool:
    """Return True if the rows of (2, T, V), which differ in their last token only, differ before it."""
    first, second = (side[:-1].float().log_softmax(-1) for side in logits)
    return exceeds((first - second).abs().amax(-1), model)


def difference(log_probs: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Return (N,), by how much each target's log-probability differs from log-softmax of the logits (B, T, V)."""
    logits = logits[:, -targets.size(1) :]  # virtual tokens of a prompt-learning adapter come first
    after = targets[:, 1:]
    own = logits[:, :-1].float().log_softmax(-1).gather(2, after.clamp(min=0)[..., None])[..., 0]
    return (log_probs.float()[:, -after.size(1) :] - own)[after != -100].abs()


def exceeds(gap: Tensor, model: Any) -> bool:
    """Return True if differences in nats are more than rounding. In 16 bits only their mean says something."""
    if not gap.numel():
        return False
    if in_16_bits(model):
        return not float(gap.mean()) <= TOLERANCE_16_BIT
    return not float(gap.max()) <= (TOLERANCE_CPU if gap.device.type == "cpu" else TOLERANCE)
