"""How fast a run is: tokens per second, the share of padding, and the share of the device's peak that is used."""

import time
from typing import Any

import torch
from torch import Tensor

from trl_plus.step.meters import COMPUTED_TOKENS, TIMED_TOKENS
from trl_plus.upstream.models import base_model, is_peft, parameters, size_of


class Throughput:
    """Mixed in before a trainer. Logged with its metrics, for training:

    - `tokens_per_second`: tokens of the rows (prompts of a pair twice, as in `num_tokens`), over all processes;
    - `padding_ratio`: the share of padding in the tokens that the policy computes;
    - `mfu`: on CUDA, FLOPs of the matrix products per second over the peak, both per device. A token that is computed
      costs 2 FLOPs per parameter outside the embeddings forwards, 4 backwards (2 where the weights are frozen), and 2
      in the reference. Attention scores and what checkpointing computes again do not count.
    """

    _since: float | None = None
    _peak: float | None = None

    def note_throughput(self, inputs: dict[str, Any], tokens: Tensor) -> None:
        """Of one micro-batch of training: its tensors, and its tokens that count."""
        mask = inputs["attention_mask"]
        plan = self.row_layouts[0].plan if self.row_layouts else None
        if plan is None:
            computed, needed = torch.full((), float(mask.numel()), device=mask.device), mask.sum()
        else:  # filled there: `torch.tensor` would be copied, and waited for
            computed, needed = (torch.full((), float(n), device=mask.device) for n in (plan.computed, plan.needed))
        one = torch.ones_like(computed)
        self.note("padding_ratio", 1 - needed / computed, computed)
        self.note(TIMED_TOKENS, tokens, one)
        self.note(COMPUTED_TOKENS, computed, one)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._since = None
        return super().train(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        if self._since is None:
            self._since = time.perf_counter()
        return super().get_batch_samples(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        output = super().evaluation_loop(*args, **kwargs)
        if self._since is not None:
            self._since += time.perf_counter() - start
        return output

    def throughput(self, readings: dict[str, Any]) -> dict[str, float]:
        """Takes its own meters out of the readings of an interval."""
        timed, computed = readings.pop(TIMED_TOKENS, None), readings.pop(COMPUTED_TOKENS, None)
        if timed is None or self._since is None:
            return {}
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        found = {"tokens_per_second": timed.total / seconds}
        if self.args.device.type == "cuda":
            per_second = computed.total * self._flops_per_token() / seconds / self.accelerator.num_processes
            found["mfu"] = per_second / self._peak_flops()
        return found

    def _flops_per_token(self) -> float:
        model = base_model(self.model)
        embedding = size_of(model.get_input_embeddings().weight)
        frozen = any(not p.requires_grad for p in model.parameters())
        passes = 3 - frozen + (self.ref_model is not None or (is_peft(self.model) and self.has_reference))
        return 2.0 * (parameters(model) - embedding) * passes

    @property
    def has_reference(self) -> bool:
        """Whether a reference is computed in each step."""
        return hasattr(self, "reference_is_given") and not self.precompute_ref_logps

    def _peak_flops(self) -> float:
        if self._peak is None:
            self._peak = peak_flops(self.args.device, torch.bfloat16 if self.args.bf16 else torch.float32)
        return self._peak


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
