"""Metrics as weighted means over all rows since the last log, on every rank, with one synchronisation per log."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

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
