"""The LM head on completion tokens only, proved against the model's own logits, which take its place where it is wrong.

On CUDA (Triton) TRL's fused LM head projects only the positions that a label asks for. Elsewhere it projects prompts
and padding too, tile by tile, and recomputes each tile in the backward pass. On a CPU plain matrix products over the
completion tokens are faster and, in chunks, need no more memory (benchmarks/compare.py).

Both multiply the backbone's last states by a weight. A model whose logits are something else (a transform, a cap, a
scale that no table knows) would be trained on wrong log-probabilities. So the first batch compares them with the
log-softmax of the logits of the model's own forward.
"""

import functools
import inspect
import logging
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from trl_plus.forward.layout_proof import TOLERANCE, TOLERANCE_16_BIT, evaluating, in_16_bits
from trl_plus.upstream.models import own_forward, put_over, unbound

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


logger = logging.getLogger("trl_plus")

# Elements of a chunk of logits: 64 Mi are 256 MB in float32
CHUNK_ELEMENTS = 2**26
# Configuration entries of models that transform their logits; TRL's head knows how, so it stays in charge of them
TRANSFORMED_LOGITS = (
    "final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier",
)  # fmt: skip
# Ways to log-probabilities: our head, TRL's, TRL's with the loss of a router, the model's own logits
COMPLETIONS, FUSED, ROUTED, OWN = "completions", "fused", "routed", "own"


@dataclass
class HeadOutput(ModelOutput):
    """As TRL's fused output: each (B, T - 1), zero where no label asks for the token; statistics without gradient."""

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    aux_loss: Tensor | None = None


class CompletionHead:
    """Installed on a causal model that already carries TRL's fused head; takes over where it is the better one.

    Args:
        model: the model without its PEFT wrapper.
        fast: False if the loss reads `log_sum_sq_probs`, which the head on completion tokens does not compute.

    Attributes:
        statistics: True if entropy, mean logit and top-1 hits are computed, too (off for a reference).
        agree: turns a reason against a way into that of all processes; every process calls it at its first batch.
        is_main: False on a process that must not log.
    """

    def __init__(self, model: Any, fast: bool = True) -> None:
        self.statistics, self.is_main = True, True
        self.agree: Callable[[str | None], str | None] = lambda reason: reason
        config = model.config.get_text_config()
        self._fast = fast and all(getattr(config, name, None) is None for name in TRANSFORMED_LOGITS)
        self._squares = not fast
        self._reasons: dict[str, str | None] = {}  # way -> why it is wrong for this model, None if it is proved
        self._keeps = False  # the model's own forward takes `logits_to_keep`, and it means what it says
        self._warned = False
        self._fused, self._own = unbound(model.forward), own_forward(model)

        @functools.wraps(type(model).forward)  # `generate` validates its arguments against the signature
        def forward(
            module: Any, *args: Any, labels: Tensor | None = None, fused_lm_head: bool = False, **kwargs: Any
        ) -> Any:
            if labels is not None:
                kwargs["labels"] = labels
            if not fused_lm_head:
                return self._own(module, *args, **kwargs)
            if args:
                return self._fused(module, *args, **kwargs, fused_lm_head=True)
            way = self._way(module, kwargs)
            if way not in self._reasons and not _is_laid_out(kwargs):
                self._prove(module, way, kwargs)
            return self._run(self._proved(way, module), module, kwargs)

        put_over(model, forward)

    # -- which way ----------------------------------------------------------------------------------------------------

    def _way(self, module: Any, kwargs: dict[str, Any]) -> str:
        if kwargs.get("output_router_logits"):
            return ROUTED
        head = module.get_output_embeddings()
        if not self._fast or head is None:
            return FUSED
        # TRL's head multiplies by `weight`. An adapter on the head or another class of it has more to it. If FSDP2 cuts
        # the head, TRL gathers its weight by hand, and the gradient of that is not summed over the processes
        weight_only = is_plain(head) and not is_cut(head)
        return FUSED if weight_only and head.weight.device.type != "cpu" else COMPLETIONS

    def _proved(self, way: str, module: Any) -> str:
        """The way, or the model's own logits if it is wrong or was not proved."""
        reason = self._reasons.get(way, "it is first called with rows in another layout")
        if reason is None:
            return way
        if self.is_main and not self._warned:
            self._warned = True
            logger.warning(
                "Log-probabilities are taken from the logits of %s itself, which needs more time and memory than a "
                "fused LM head: %s.",
                type(module).__name__,
                reason,
            )
        return OWN

    @torch.compiler.disable
    @torch.no_grad()
    def _prove(self, module: Any, way: str, kwargs: dict[str, Any]) -> None:
        """Compare every way that this model may take with its own logits, on one row.

        Draws no random numbers and leaves no trace. Every process makes the same passes and takes the same ways.

        Raises:
            Unscorable: the model cannot be trained on preferences.
        """
        statistics, self.statistics = self.statistics, False
        device = next(module.parameters()).device
        try:
            with evaluating(module), torch.random.fork_rng([device] if device.type == "cuda" else []):
                refusal, row, targets, twice, logits = self._own_of_row(module, *_without_labels(kwargs))
                if refusal is None and twice and sees_ahead(logits, module):
                    refusal = (
                        "its log-probability of a token depends on tokens after it. Use a decoder (a configuration "
                        "with `is_decoder` needs it to be true)"
                    )
                refusal = self.agree(refusal)
                if refusal is not None:
                    raise Unscorable(f"{type(module).__name__} cannot be trained on preferences: {refusal}.")
                factor, loud = self._loud(module, row, logits)
                for each in self._ways(module, way):
                    self._reasons[each] = self.agree(self._reason_against(each, module, row, targets, loud, factor))
                self._keeps = self.agree(None if self._takes_positions(module, row, logits) else "it does not") is None
        finally:
            self.statistics = statistics

    def _own_of_row(
        self, module: Any, kwargs: dict[str, Any], labels: Tensor
    ) -> tuple[str | None, dict[str, Any], Tensor, bool, Tensor]:
        """Why the model's own forward is of no use, or None; a row as of `rows_to_try`, and its own logits."""
        row, targets, twice, reason = kwargs, labels, False, "it takes no row without cached states"
        for candidate in rows_to_try(kwargs, labels):
            # Where weights are cut across processes, all make the same passes
            reason = self.agree(None if candidate is not None else "no completion of its rows has three tokens")
            if candidate is None or reason is not None:
                continue
            row, targets, twice = candidate
            reason, logits = self._own_logits_of(module, row, targets)
            reason = self.agree(reason)
            if reason is None:
                return None, row, targets, twice, logits
        return reason, row, targets, twice, torch.empty(0)

    def _own_logits_of(self, module: Any, row: dict[str, Any], targets: Tensor) -> tuple[str | None, Tensor]:
        """Why the model's own forward does not score a row, or None; its logits."""
        try:
            logits = own_logits(types.MethodType(self._own, module), row)[0]
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return f"its own forward fails on a row ({_short(error)})", torch.empty(0)
        rows, width = targets.shape
        if len(logits) != rows or logits.size(1) < width:
            shape = ", ".join(map(str, logits.shape))
            return f"its logits of {rows} rows of {width} tokens have the shape ({shape})", logits
        if int(targets.max()) >= logits.size(2):
            return f"a row has the token id {int(targets.max())}, and its logits have {logits.size(2)} entries", logits
        return None, logits

    def _loud(self, module: Any, row: dict[str, Any], logits: Tensor) -> tuple[float, Tensor]:
        """A factor for the backbone's states, and the model's own logits with it.

        Small logits do not show a cap that larger ones will meet later. The factor is 1 for a model whose own forward
        does not read its logits off the backbone's last states.
        """
        factor = loudness(logits)
        with louder(module, factor) as passes:
            loud = own_logits(types.MethodType(self._own, module), row)[0]
        return (factor, loud) if passes and torch.equal(loud.isfinite(), logits.isfinite()) else (1.0, logits)

    def _ways(self, module: Any, way: str) -> list[str]:
        """The ways of a run: some passes of a mixture of experts ask for its router's loss, others do not."""
        routed = hasattr(module.config.get_text_config(), "output_router_logits")
        return sorted({way, self._way(module, {}), *([ROUTED] if routed else [])})

    def _reason_against(
        self, way: str, module: Any, row: dict[str, Any], targets: Tensor, logits: Tensor, factor: float
    ) -> str | None:
        """Why a way is wrong for this model, as the rest of a sentence, or None if it is proved."""
        reason = outside_of_head(module, weight_only=way != COMPLETIONS)
        if reason is not None:
            return reason
        row = row | ({"output_router_logits": True} if way == ROUTED else {})
        try:
            with louder(module, factor):
                found = self._run(way, module, row | {"labels": targets})
            gap = difference(found.log_probs, logits, targets)
            balance = self._on_own_logits(module=module, **row, labels=targets).aux_loss if way == ROUTED else None
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return f"a fused head does not take it ({_short(error)})"
        if exceeds(gap, module):
            return f"with a fused head its log-probabilities differ by up to {float(gap.max()):.2g} nats"
        if balance is not None and not torch.allclose(found.aux_loss, balance, rtol=TOLERANCE_ROUTER):
            return f"its load-balancing loss is {float(balance):.4g}, and a fused head's {float(found.aux_loss):.4g}"
        return None

    def _takes_positions(self, module: Any, row: dict[str, Any], logits: Tensor) -> bool:
        """True if `logits_to_keep` gives the logits of the positions that it names."""
        if all(reason is None for reason in self._reasons.values()) or not isinstance(row.get("input_ids"), Tensor):
            return False
        keep = torch.arange(0, logits.size(1), 2, device=logits.device)
        try:
            kept, _ = own_logits(types.MethodType(self._own, module), row, keep)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        return kept.shape == logits[:, keep].shape and torch.allclose(kept, logits[:, keep], rtol=1e-3, atol=1e-4)

    # -- the ways -----------------------------------------------------------------------------------------------------

    def _run(self, way: str, module: Any, kwargs: dict[str, Any]) -> Any:
        kwargs = with_own_ids(kwargs)
        if way in (FUSED, ROUTED):
            return self._fused(module, **kwargs, fused_lm_head=True)
        return (
            self._on_completions(module, **kwargs)
            if way == COMPLETIONS
            else self._on_own_logits(module=module, **kwargs)
        )

    def _on_completions(
        self, module: Any, labels: Tensor | None = None, shift_labels: Tensor | None = None, **kwargs: Any
    ) -> HeadOutput:
        hidden = module.base_model(**kwargs).last_hidden_state
        if shift_labels is None:
            assert labels is not None
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        mask = shift_labels != -100
        head = module.get_output_embeddings()
        return placed(completion_log_probs(hidden[mask], shift_labels[mask], head, self.statistics), mask)

    def _on_own_logits(
        self, module: Any, labels: Tensor | None = None, shift_labels: Tensor | None = None, **kwargs: Any
    ) -> HeadOutput:
        if shift_labels is None:
            assert labels is not None
            after, keep = labels[:, 1:], (labels[:, 1:] != -100).any(0).nonzero()[:, 0] if self._keeps else None
        else:
            after, keep = shift_labels, None
        mask = after != -100
        logits, output = own_logits(types.MethodType(self._own, module), kwargs, keep)
        if keep is not None:
            picked = logits[mask[:, keep]]
        elif shift_labels is None:  # virtual tokens of a prompt-learning adapter come first
            picked = logits[:, -after.size(1) - 1 :][:, :-1][mask]
        else:
            picked = logits[mask]
        parts = of_logits(picked, after[mask], self.statistics, self._squares)
        found = placed(parts, mask)
        found.aux_loss = getattr(output, "aux_loss", None) if kwargs.get("output_router_logits") else None
        return found


def _is_laid_out(kwargs: dict[str, Any]) -> bool:
    """True if the labels are of predictors alone, which the backbone picks: there is no row to compare."""
    shifted, ids = kwargs.get("shift_labels"), kwargs.get("input_ids")
    return shifted is not None and (ids is None or shifted.shape != ids.shape)


def _without_labels(kwargs: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """The inputs of a call, and its labels by position (those of predictors shifted back)."""
    inputs = {name: value for name, value in kwargs.items() if name not in ("labels", "shift_labels")}
    shifted = kwargs.get("shift_labels")
    return inputs, kwargs["labels"] if shifted is None else shifted.roll(1, dims=1)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or '-').splitlines()[0][:120]}"


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
    # the weight's own shape is another one in 4 bits, and while ZeRO-3 has it cut
    whole = head.weight.shape[1:] == hidden.shape[-1:]
    vocabulary = head.weight.size(0) if whole else getattr(head, "out_features", 1)
    rows = max(1, CHUNK_ELEMENTS // max(1, vocabulary))
    if len(targets) <= rows:
        return _chunk(hidden, targets, head, statistics)
    chunks = [
        checkpoint(_chunk, h, t, head, statistics, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*chunks, strict=True))


def _chunk(hidden: Tensor, targets: Tensor, head: torch.nn.Linear, statistics: bool) -> tuple[Tensor | None, ...]:
    return of_logits(head(hidden), targets, statistics)


def placed(parts: tuple[Tensor | None, ...], mask: Tensor) -> HeadOutput:
    """The output whose fields, (N,) each, stand at the N places of a mask (B, T - 1)."""
    return HeadOutput(*(None if x is None else x.new_zeros(mask.shape).masked_scatter(mask, x) for x in parts))


def of_logits(logits: Tensor, targets: Tensor, statistics: bool, squares: bool = False) -> tuple[Tensor | None, ...]:
    """Log-probability, entropy, mean logit, top-1 hit and (`squares`) log(sum p^2) of logits (N, V), each (N,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(1, targets[:, None])[:, 0]
    with torch.no_grad():
        summed = (2 * log_probs).logsumexp(-1) if squares else None
        if not statistics:
            return chosen, None, None, None, summed
        entropy = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)  # 0 * -inf is 0
        return chosen, entropy, logits.mean(-1), logits.argmax(-1) == targets, summed
