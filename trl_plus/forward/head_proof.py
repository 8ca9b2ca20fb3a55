"""Proof that a fast LM head gives the log-probabilities of the model's own logits, made on one row of the run."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trl_plus.forward.layout_proof import TOLERANCE, TOLERANCE_16_BIT, in_16_bits

# Largest difference of a log-probability in nats. On a CPU both ways round alike, so less is asked of them elsewhere
TOLERANCE_CPU = 1e-4
TOLERANCE_ROUTER = 1e-3  # relative, of a load-balancing loss
TOKENS = 64  # of the row that is compared: its logits must cost little beside those of a batch
LOUD = 10.0  # logits of this size show a cap or a scale that a model with small logits does not
CACHED = "past_key_values"


class Unscorable(ValueError):
    """A model has no log-probabilities that a loss on preferences could use. The text is a sentence."""


def is_plain(head: Any) -> bool:
    """Return True if a module is its `weight` times its input, plus `bias`, with nothing else to it."""
    if not isinstance(head, torch.nn.Linear) or type(head).forward is not torch.nn.Linear.forward:
        return False
    return {name for name, _ in head.named_parameters(recurse=False)} <= {"weight", "bias"}


def outside_of_head(model: Any, weight_only: bool) -> str | None:
    """Return why a head on the backbone's states cannot have the model's gradients, as the rest of a sentence.

    A trainable scale or layer may be the identity when training begins, so log-probabilities do not show it. The same
    holds for adapters, which are switched off and on.

    Args:
        weight_only: True for a head that multiplies by `weight`, False for one that calls the module.
    """
    head, backbone = model.get_output_embeddings(), model.base_model
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        return "it has no LM head that transformers knows"
    if weight_only and not is_plain(head):
        return f"its LM head is a {type(head).__name__}"
    if weight_only and is_cut(head):
        return "its LM head is cut across processes"
    inside = {id(parameter) for part in (backbone, head) for parameter in part.parameters()}
    modules = {id(module) for part in (backbone, head) for module in part.modules()}
    for name, module in model.named_modules():
        if id(module) in modules:
            continue
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            return f"`{name}` draws dropout between its backbone and its logits"
        adapted = isinstance(getattr(module, "disable_adapters", None), bool)  # models have a method of this name
        if adapted and any(id(x) not in inside for x in module.parameters()):
            return f"`{name}` has an adapter outside its backbone and its LM head"
    for name, parameter in model.named_parameters():
        flat = "flat_param" in name  # FSDP1 without `use_orig_params`: one tensor for all of a module's
        if parameter.requires_grad and id(parameter) not in inside and not flat:
            return f"`{name}` is trained outside its backbone and its LM head"
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
    kwargs = {name: x for name, x in with_own_ids(kwargs).items() if name not in ("labels", "shift_labels")}
    if "use_cache" in kwargs and not accepts(forward, "use_cache"):
        del kwargs["use_cache"]
    output = forward(**kwargs) if keep is None else forward(**kwargs, logits_to_keep=keep)
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise ValueError("its output has no logits of the shape (rows, tokens, vocabulary)")
    return logits, output


def with_own_ids(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with a copy of the token ids: a model may write into them, and others read the batch."""
    ids = kwargs.get("input_ids")
    return dict(kwargs) | ({"input_ids": ids.clone()} if isinstance(ids, Tensor) else {})


def accepts(forward: Callable, name: str) -> bool:
    """Return True if a forward takes the keyword, by name or among any others."""
    parameters = inspect.signature(forward).parameters
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def rows_to_try(kwargs: Mapping[str, Any], labels: Tensor) -> Iterator[tuple[dict[str, Any], Tensor, bool] | None]:
    """Yield a short row of a batch without padding, its targets, and True if it stands there twice.

    None stands for a row that another process may have and this one does not, so that all try rows of the same kind.

    Every token of the row is a target. Its second copy ends with another token, which a causal model must not notice.
    Rows with more than text (images, states of a cache) cannot be taken apart. Of these the completion alone is a row;
    for a model that does not take it the batch as it is comes next.
    """
    mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
    if _is_text(kwargs, labels):
        assert mask is not None
        lengths = mask.bool().sum(1)
        row = int(torch.where(lengths >= 3, lengths, lengths.max() + 1).argmin())
        places = mask[row].bool().nonzero()[:TOKENS, 0]
        cut = {
            name: value[row : row + 1, places] if isinstance(value, Tensor) and value.ndim >= 2 else value
            for name, value in kwargs.items()
        }
        # embeddings of a prompt-learning adapter: labels are the only tokens
        yield (cut, labels[row : row + 1, places], False) if ids is None else _twice(cut)
        return
    if isinstance(ids, Tensor) and ids.shape == labels.shape and len(ids):
        lengths = (labels != -100).sum(1)
        row = int(torch.where(lengths >= 3, lengths, lengths.max() + 1).argmin())
        text = ids[row : row + 1, (labels[row] != -100).nonzero()[:TOKENS, 0]]
        alone = {"input_ids": text, "attention_mask": torch.ones_like(text), "use_cache": False}
        yield _twice(alone) if text.size(1) >= 3 else None
    if kwargs.get(CACHED) is None:
        yield dict(kwargs), labels, False


def _is_text(kwargs: Mapping[str, Any], labels: Tensor) -> bool:
    """True if each tensor of a batch has one entry for each token of each row."""
    tensors = [value for value in kwargs.values() if isinstance(value, Tensor) and value.ndim >= 1]
    odd = [x for x in kwargs.values() if not isinstance(x, (Tensor, bool, int, float, str, type(None)))]
    mask = kwargs.get("attention_mask")
    plain = isinstance(mask, Tensor) and mask.shape == labels.shape and len(labels) and not odd
    return bool(plain) and all(value.shape[:2] == labels.shape for value in tensors)


def _twice(row: dict[str, Any]) -> tuple[dict[str, Any], Tensor, bool]:
    """A row, and a copy of it that ends with another token, if it has three tokens or more."""
    targets = row["input_ids"]
    if targets.size(1) < 3:
        return row, targets, False
    other = targets.clone()
    different = (targets[0] != targets[0, -1]).nonzero()[:, 0]
    other[0, -1] = targets[0, different[0]] if len(different) else (targets[0, -1] - 1).abs()
    twice = {n: x.repeat(2, *[1] * (x.ndim - 1)) if isinstance(x, Tensor) and x.ndim else x for n, x in row.items()}
    twice["input_ids"] = torch.cat([targets, other])
    return twice, twice["input_ids"], True


def loudness(logits: Tensor) -> float:
    """Return the factor that makes the largest of some logits `LOUD`; 1 if one is that large."""
    logits = logits.float()
    finite = logits.isfinite()  # a token that is ruled out has the logit -inf
    logits = torch.where(finite, logits, 0.0)
    centred = torch.where(finite, logits - logits.sum(-1, keepdim=True) / finite.sum(-1, keepdim=True), 0.0)
    largest = float(centred.abs().max()) if logits.numel() else LOUD
    return LOUD / largest if 0 < largest < LOUD else 1.0


@contextmanager
def louder(model: Any, factor: float) -> Iterator[list[int]]:
    """Within this context the backbone's last states are multiplied. The list grows with each pass that it makes."""
    passes: list[int] = []

    def multiply(module: Any, args: Any, output: Any) -> Any:
        states = getattr(output, "last_hidden_state", None)
        if states is not None:
            output.last_hidden_state = states * factor
            passes.append(1)
        return output

    handle = model.base_model.register_forward_hook(multiply)
    try:
        yield passes
    finally:
        handle.remove()


def sees_ahead(logits: Tensor, model: Any) -> bool:
    """Return True if the rows of (2, T, V), which differ in their last token only, differ before it."""
    first, second = (side[:-1].float().log_softmax(-1) for side in logits)
    return exceeds(_apart(first, second).amax(-1), model)


def difference(log_probs: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Return (N,), by how much each target's log-probability differs from log-softmax of the logits (B, T, V)."""
    logits = logits[:, -targets.size(1) :]  # virtual tokens of a prompt-learning adapter come first
    after = targets[:, 1:]
    own = logits[:, :-1].float().log_softmax(-1).gather(2, after.clamp(min=0)[..., None])[..., 0]
    return _apart(log_probs.float()[:, -after.size(1) :], own)[after != -100]


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|, which is 0 for two infinities of the same sign."""
    return torch.where(a == b, 0.0, (a - b).abs())


def exceeds(gap: Tensor, model: Any) -> bool:
    """Return True if differences in nats are more than rounding. In 16 bits only their mean says something."""
    if not gap.numel():
        return False
    if in_16_bits(model):
        return not float(gap.mean()) <= TOLERANCE_16_BIT
    return not float(gap.max()) <= (TOLERANCE_CPU if gap.device.type == "cpu" else TOLERANCE)
