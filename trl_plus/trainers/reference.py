"""Which reference a run has, and whether the policy equals it when training begins."""

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("trl_plus")
# Nats per token by which the same weights may differ when a row is scored in another batch
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 2e-2
# In 16 bits a token's own rounding shows in short rows: nats times the square root of the row's tokens. Measured on
# SmolLM2-135M in bfloat16, rows alone against rows in a padded batch: at most 0.25 for 1 token, 0.09 for 4, 0.02 for 16
ROUNDING_16_BIT = 0.3
ROW, Z_REF = "a log-ratio", "a log-ratio of KTO's mismatched rows (z_ref)"


class StartCheck:
    """Mixed in before a trainer with a reference: at the first step of a fresh run the policy must equal it."""

    has_reference = True
    reference_is_given = False  # an explicit `ref_model` may be any model
    _start_is_checked: frozenset[str] = frozenset()

    def name_reference(self) -> None:
        """Says once which reference it is, as a warning: a plain sentence, seen without any set-up of logging."""
        if self.accelerator.is_main_process:
            logger.warning("Reference: %s.", self.reference_name())

    def reference_name(self) -> str:
        if self.reference_is_given:
            name = "the `ref_model` that was given"
        elif self.own_reference is not None:
            name = str(self.own_reference)
        elif self.ref_model is None:
            name = "the model as it was before the first step"
        else:
            name = "a second, frozen model with the weights that training starts from"
        return f"{name}, its log-probabilities precomputed" if self.precompute_ref_logps else name

    @torch.no_grad()
    def check_start(self, log_ratio: Tensor, length: Tensor, what: str = ROW) -> None:
        """Warns if the log-ratios of a micro-batch of the first step, (R,) over `length` tokens each, are not zero.

        The first micro-batch of each `what` is looked at; a run is warned once.
        """
        if what in self._start_is_checked or not self.model.training:
            return
        self._start_is_checked |= {what}
        noisy = self.args.neftune_noise_alpha or any(
            isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules()
        )
        if self.state.global_step > 0 or self.reference_is_given or noisy or not self.accelerator.is_main_process:
            return
        length = length.clamp(min=1).to(log_ratio.device)
        gaps = log_ratio.abs() / length
        half = self.args.bf16 or self.args.fp16 or any(p.element_size() < 4 for p in self.model.parameters())
        allowed = (ROUNDING_16_BIT / length.sqrt()).clamp(min=TOLERANCE_16_BIT) if half else TOLERANCE
        if not bool((gaps <= allowed).all()):
            self._start_is_checked |= {ROW, Z_REF}
            logger.warning(
                "The policy is not its reference at the first step: %s is %.2g nats per token instead of 0. "
                "The model was changed after the trainer was built, its adapter does not start at zero "
                "(`init_lora_weights`), or dropout is set in its config: undo that, or pass the `ref_model` you mean.",
                what,
                float(gaps.max()),
            )

    def see_upstream_metrics(self, metrics: dict[str, float], inputs: dict[str, Any]) -> None:
        """The same check where the loss is TRL's: its rewards are beta times the mean log-ratios of a micro-batch."""
        rewards = [metrics[name] for name in ("rewards/chosen", "rewards/rejected") if name in metrics]
        if self.beta:
            length = inputs["completion_mask"].sum(-1).float().mean()
            self.check_start(torch.tensor(rewards) / self.beta, length.cpu().expand(len(rewards)))
