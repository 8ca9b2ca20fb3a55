"""SimPOTrainer: a length-normalised reward and a target margin."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from trl_plus import objectives
from trl_plus.objectives import Completions
from trl_plus.trainers.configs import SimPOConfig
from trl_plus.trainers.paired import ReferenceFreeTrainer


class SimPOTrainer(ReferenceFreeTrainer):
    """SimPO (https://huggingface.co/papers/2405.14734): length-normalised reward, target margin, no reference."""

    config_class = SimPOConfig
    accepted_configs = (SimPOConfig,)
    method_name = "SimPO"

    @property
    def nll_weight(self) -> float:
        return self.args.sft_weight

    def pair_losses(self, chosen: Completions, rejected: Completions, margin: Tensor | None = None) -> Tensor:
        return objectives.simpo(
            chosen,
            rejected,
            margin=margin,
            beta=self.args.beta,
            gamma=self.args.target_margin,
            label_smoothing=self.args.label_smoothing,
            loss_type=self.args.loss_type[0],
        )

    @staticmethod
    def reward_of(args: Any) -> Callable[[Completions], Tensor]:
        return lambda side: args.beta * side.mean

    def logged_logps(self, side: Completions) -> Tensor:
        return side.mean
