"""Which reference a run has, and whether the policy equals it when training begins."""

import logging

import torch
from torch import Tensor

from trl_plus.trainers import upstream

logger = logging.getLogger("trl_plus")
# Nats per token by which the same weights may differ when a row is scored in another batch
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 2e-2


class StartCheck:
    """Mixed in before a trainer with a reference: at the first step of a fresh run the policy must equal it."""

    reference_is_given = False  # an explicit `ref_model` may be any model
    _start_is_checked = False

    def name_reference(self) -> None:
        """Says once which reference it is, as a warning: a plain sentence, seen without any set-up of logging."""
        if self.accelerator.is_main_process:
            logger.warning("Reference: %s.", self.reference_name())

    def reference_name(self) -> str:
        if self.reference_is_given:
            name = "the `ref_model` that was given"
        elif upstream.is_peft(self.model):
            copied = "ref" in self.model.peft_config
            name = "a frozen copy of the adapter as given" if copied else "the model with its adapter switched off"
        elif self.ref_model is None:
            name = "the model as it was before the first step"
        else:
            name = "a second, frozen model with the weights that training starts from"
        return f"{name}, its log-probabilities precomputed" if self.precompute_ref_logps else name

    @torch.no_grad()
    def check_start(self, log_ratio: Tensor, length: Tensor) -> None:
        """Warns if the log-ratios of a micro-batch of the first step, (R,) over `length` tokens each, are not zero."""
        if self._start_is_checked or not self.model.training:
            return
        self._start_is_checked = True
        noisy = self.args.neftune_noise_alpha or any(
            isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules()
        )
        if self.state.global_step > 0 or self.reference_is_given or noisy or not self.accelerator.is_main_process:
            return
        gap = float((log_ratio.abs() / length.clamp(min=1)).max())
        half = self.args.bf16 or self.args.fp16 or any(p.element_size() < 4 for p in self.model.parameters())
        if not gap <= (TOLERANCE_16_BIT if half else TOLERANCE):
            logger.warning(
                "The policy is not its reference at the first step: a log-ratio is %.2g nats per token instead of 0. "
                "The model was changed after the trainer was built, its adapter does not start at zero "
                "(`init_lora_weights`), or dropout is set in its config: undo that, or pass the `ref_model` you mean.",
                gap,
            )
