"""Which reference a run has, and whether the policy equals it when training begins."""

import logging
from typing import Any

import torch
from torch import Tensor

from trl_plus.step.mismatched import Z_REF
from trl_plus.trainers.own_reference import counted, same

logger = logging.getLogger("trl_plus")
# Nats per token by which the same weights may differ when a row is scored in another batch
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 2e-2
# In 16 bits a token's own rounding shows in short rows: nats times the square root of the row's tokens. Measured on
# SmolLM2-135M in bfloat16, rows alone against rows in a padded batch: at most 0.25 for 1 token, 0.09 for 4, 0.02 for 16
ROUNDING_16_BIT = 0.3
ROW = "a log-ratio"


def random_settings(model: Any) -> list[str]:
    """Settings of a model's configuration that make a training pass random although no dropout module is active."""
    settings = model.config.get_text_config().to_dict()
    random = ("drop", "pdrop", "noise", "jitter")
    return [
        f"`{name}: {value}`"
        for name, value in settings.items()
        if isinstance(value, float) and value > 0 and any(part in name for part in random)
    ]


def differences(policy: Any, reference: Any) -> list[str]:
    """Names of the weights of two like models that differ."""
    theirs = dict(reference.named_parameters())
    return [name for name, mine in policy.named_parameters() if name in theirs and not same(mine, theirs[name])]


class StartCheck:
    """Mixed in before a trainer with a reference: at the first step of a fresh run the policy must equal it."""

    has_reference = True
    reference_is_given = False  # an explicit `ref_model` may be any model
    _start_is_checked: frozenset[str] = frozenset()

    def name_reference(self) -> None:
        """Says once which reference it is, as a warning: a plain sentence, seen without any set-up of logging."""
        if self.accelerator.is_main_process:
            logger.warning("Reference: %s.", self.reference_name(), extra={"note": True})

    def reference_name(self) -> str:
        if self.reference_in_data:
            return "its log-probabilities are in the data, so no model is loaded for it"
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
                "The policy is not its reference at the first step: %s is %.2g nats per token instead of 0. %s",
                what,
                float(gaps.max()),
                self.cause_of_gap(),
            )

    def cause_of_gap(self) -> str:
        """One or two sentences on why the policy is not its reference, found by comparing their weights."""
        own, found = self.own_reference, random_settings(self.model)
        if own is not None:
            changed = own.differences()
        else:
            unwrap = self.accelerator.unwrap_model
            changed = [] if self.ref_model is None else differences(unwrap(self.model), unwrap(self.ref_model))
        if changed:
            return (
                f"After the trainer was built {counted(changed)} changed. Fix: change the model before, or pass the "
                "`ref_model` that you mean."
            )
        if own is not None and own.switched_off and (start := own.nonzero_start()):
            return (
                f"{start}, so the model with its adapter is not the model without it, which is the reference of a new "
                "adapter. Fix: pass `get_peft_model(model, peft_config)` as `model` to start from the adapter as it is."
            )
        if found:
            return f"The model computes at random in training: {', '.join(found)} in its configuration. Fix: set 0."
        if own is not None and own.switched_off:
            return "The adapter was changed after the trainer was built. Fix: change it before, and pass it in `model`."
        if self.precompute_ref_logps:
            return (
                "The log-probabilities of the reference were computed earlier, from other weights or in other batches."
            )
        return "Their weights are equal, so the model scores the same row differently from one pass to the next."

    def see_upstream_metrics(self, metrics: dict[str, float], inputs: dict[str, Any]) -> None:
        """The same check where the loss is TRL's: its rewards are beta times the mean log-ratios of a micro-batch."""
        rewards = [metrics[name] for name in ("rewards/chosen", "rewards/rejected") if name in metrics]
        if self.beta:
            length = inputs["completion_mask"].sum(-1).float().mean()
            self.check_start(torch.tensor(rewards) / self.beta, length.cpu().expand(len(rewards)))
