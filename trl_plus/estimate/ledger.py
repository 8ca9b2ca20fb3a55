"""Counts the bytes of all tensors alive while tensors without data are computed on."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """While active, every storage that an operation returns is counted from its making to its freeing.

    Storages are counted, not tensors: views and saved references cost nothing. What a kernel allocates inside itself
    is not seen.

    Attributes:
        peak: bytes alive at the worst moment since `restart`.
        at_peak: the same bytes by label.
    """

    def __init__(self) -> None:
        super().__init__()
        self.label = "activations"
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._alive: dict[int, tuple[int, str]] = {}
        self._by_label: Counter[str] = Counter()

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self._by_label.total(), dict(self._by_label)

    def count(self, tensor: Tensor, label: str | None = None) -> None:
        """Count a tensor's storage under `label` (the current one if None), once."""
        storage = tensor.untyped_storage()
        key, label = id(storage), label or self.label
        if key in self._alive:
            return
        self._alive[key] = (storage.nbytes(), label)
        self._by_label[label] += storage.nbytes()
        weakref.finalize(storage, self._freed, key)
        if (now := self._by_label.total()) > self.peak:
            self.peak, self.at_peak = now, dict(self._by_label)

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Count a tensor's storage under another label from now on."""
        self._freed(id(tensor.untyped_storage()))
        self.count(tensor, label)

    def _freed(self, key: int) -> None:
        size, label = self._alive.pop(key, (0, self.label))
        self._by_label[label] -= size

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Within this context new storages are counted under `label`."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out
