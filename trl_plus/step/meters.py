"""Metrics as weighted means over all rows since the last log, with one synchronisation per log; and how fast a run is.

Speed is tokens per second, the share of padding, and the share of the device's peak that is used.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_plus.forward.layouts import Plan
from trl_plus.upstream.models import parameters, size_of

# Meters of what a process did in a time that it measured: nothing that another process could go on with
TIMED_TOKENS, COMPUTED_TOKENS = "timed_tokens", "computed_tokens"
UNSAVED = {TIMED_TOKENS, COMPUTED_TOKENS}


@dataclass(frozen=True)
class Reading:
    """The global state of one meter: sum of weight times value, and sum of weights, over all ranks."""

    total: float
    weight: float

    @property
    def mean(self) -> float:
        return self.total / self.weight


class Meters:
    """Sums and weights by name, kept on the device until they are read.

    A mean of micro-batch means depends on how the batch was cut; a sum over rows divided by their weight does not.
    Every rank must add the same names; a rank without such rows adds zeros.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._marked: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor) -> None:
        """Adds rows or tokens: `values` and `weights` of one shape, or scalars."""
        values, weights = values.detach().float(), weights.detach().to(values.device).float()
        pair = torch.stack([(values * weights).sum(), weights.expand_as(values).sum()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self, accelerator: Accelerator) -> dict[str, Reading]:
        """Every meter that anything weighed in on, over all ranks. A collective call."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        pairs = accelerator.reduce(torch.stack([self._sums[name] for name in names]), reduction="sum").tolist()
        return {name: Reading(*pair) for name, pair in zip(names, pairs, strict=True) if pair[1] > 0}

    def restore(self, name: str, total: float, weight: float, device: torch.device) -> None:
        """Sets sums that `read` gave before the run was interrupted."""
        self._sums[name] = torch.tensor([total, weight], device=device)

    def mark(self) -> None:
        """Remembers the sums, for `rollback`."""
        self._marked = dict(self._sums)

    def rollback(self) -> None:
        """Forgets what was added since the mark."""
        self._sums = dict(self._marked)

    def clear(self) -> None:
        self._sums.clear()


class Throughput:
    """The clock of a run. What it yields is logged with the metrics of training:

    - `tokens_per_second`: tokens of the rows (prompts of a pair twice, as in `num_tokens`), over all processes;
    - `padding_ratio`: the share of padding in the tokens that the policy computes;
    - `mfu`: on CUDA, FLOPs of the matrix products per second over the peak, both per device. A token that is computed
      costs 2 FLOPs per parameter outside the embeddings forwards, 4 backwards (2 where the weights are frozen), and 2
      in the reference. Attention scores and what checkpointing computes again do not count;
    - `peak_memory_gib`: on CUDA, the most that tensors of this process have taken on its device so far, in GiB. The
      log is the first process's.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._peak: float | None = None

    def restart(self) -> None:
        """At the beginning of `train`."""
        self._since = None

    def begin_step(self) -> None:
        """The clock starts with the first step after `restart`."""
        if self._since is None:
            self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside is no time of training."""
        start = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - start

    def take(
        self, readings: dict[str, Reading], processes: int, flops: Callable[[], tuple[float, float]] | None = None
    ) -> dict[str, float]:
        """`tokens_per_second`, `mfu` and `peak_memory_gib` at the end of the interval since the last call. Its meters
        are taken out of `readings`.

        Args:
            flops: the FLOPs of one token and those of the device per second, on CUDA.
        """
        timed, computed = readings.pop(TIMED_TOKENS, None), readings.pop(COMPUTED_TOKENS, None)
        if timed is None or self._since is None:
            return {}
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        found = {"tokens_per_second": timed.total / seconds}
        if flops is not None:
            of_token, peak = flops()
            found["mfu"] = computed.total * of_token / seconds / processes / peak
            found["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30  # waits for nothing
        return found

    def peak(self, device: torch.device, dtype: torch.dtype) -> float:
        """`peak_flops` of the device, measured once."""
        if self._peak is None:
            self._peak = peak_flops(device, dtype)
        return self._peak


def token_counts(mask: Tensor, plan: Plan | None, tokens: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The values that a micro-batch adds to the meters of throughput: name, value, weight; scalars.

    Args:
        mask: (R, T), the attention mask of its rows.
        plan: the layout that its rows were computed in; None for the rows as they are.
        tokens: scalar, its tokens that count.
    """
    if plan is None:
        computed, needed = torch.full((), float(mask.numel()), device=mask.device), mask.sum()
    else:  # filled there: `torch.tensor` would be copied, and waited for
        computed, needed = (torch.full((), float(n), device=mask.device) for n in (plan.computed, plan.needed))
    one = torch.ones_like(computed)
    yield "padding_ratio", 1 - needed / computed, computed
    yield TIMED_TOKENS, tokens, one
    yield COMPUTED_TOKENS, computed, one


def flops_per_token(model: Any, reference: bool) -> float:
    """FLOPs of the matrix products for one token.

    Args:
        model: the policy without wrappers.
        reference: whether a reference of the same size scores the rows, too.
    """
    embedding = size_of(model.get_input_embeddings().weight)
    frozen = any(not p.requires_grad for p in model.parameters())
    return 2.0 * (parameters(model) - embedding) * (3 - frozen + reference)


def peak_flops(device: torch.device, dtype: torch.dtype, size: int = 8192, repeats: int = 10) -> float:
    """FLOPs per second of a square matrix product, measured: what a device reaches rather than what it is sold with."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    a @ a
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        a @ a
    synchronize()
    return 2.0 * size**3 * repeats / (time.perf_counter() - start)
