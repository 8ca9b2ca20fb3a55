"""ORPOTrainer: an NLL of the chosen side plus the odds-ratio term."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trl_plus import objectives
from trl_plus.objectives import Completions
from trl_plus.trainers.configs import ORPOConfig
from trl_plus.trainers.paired import ReferenceFreeTrainer


class ORPOTrainer(ReferenceFreeTrainer):
    """ORPO (https://huggingface.co/papers/2403.07691): NLL of the chosen side plus the odds-ratio term."""

    config_class = ORPOConfig
    accepted_configs = (ORPOConfig,)
    method_name = "ORPO"

    nll_weight = 1.0

    @property
    def nll_on_prompt(self) -> bool:
        return self.args.nll_scope == "full"

    @property
    def nll_per_row(self) -> bool:
        return self.args.nll_reduction == "sequence"

    def pair_losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        return objectives.odds_ratio(chosen, rejected, beta=self.args.beta, odds=self.args.odds)

    @staticmethod
    def reward_of(args: Any) -> Callable[[Completions], Tensor]:
        return lambda side: args.beta * side.mean

    def logged_logps(self, side: Completions) -> Tensor:
        return side.mean

    @torch.no_grad()
    def note_pairs(self, chosen: Completions, rejected: Completions, weights: Tensor) -> None:
        super().note_pairs(chosen, rejected, weights)
        ratio = objectives.log_odds_ratio(chosen, rejected, odds=self.args.odds)
        self.note("log_odds_chosen", ratio, weights)
        # Kept for a release, and read by the report page. In TRL this name is the mean of the ratio's logsigmoid
        self.note("log_odds_ratio", ratio, weights)
