"""CPOTrainer: the difference of likelihoods plus an NLL of the chosen side."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from trl_plus import objectives
from trl_plus.objectives import Completions
from trl_plus.trainers.configs import CPOConfig
from trl_plus.trainers.paired import ReferenceFreeTrainer


def read_by(args: CPOConfig, side: Completions) -> Tensor:
    """(B,): the log-probability that the loss compares, per token under `loss_type: ipo`."""
    return side.mean if args.loss_type == ["ipo"] else side.total


class CPOTrainer(ReferenceFreeTrainer):
    """CPO (https://huggingface.co/papers/2401.08417): likelihood difference plus NLL of the chosen side."""

    config_class = CPOConfig
    accepted_configs = (CPOConfig,)
    method_name = "CPO"

    @property
    def nll_weight(self) -> float:
        return self.args.cpo_alpha

    def pair_losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        return objectives.cpo(
            chosen,
            rejected,
            beta=self.args.beta,
            label_smoothing=self.args.label_smoothing,
            loss_type=self.args.loss_type[0],
        )

    @staticmethod
    def reward_of(args: Any) -> Callable[[Completions], Tensor]:
        return lambda side: args.beta * read_by(args, side)

    def logged_logps(self, side: Completions) -> Tensor:
        return read_by(self.args, side)
