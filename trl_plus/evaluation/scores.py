"""Held-out completions under a model: one pass over the trainer's evaluation batches."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from trl_plus.errors import RunFault
from trl_plus.evaluation.models import Scorer
from trl_plus.evaluation.rows import HeldOut
from trl_plus.evaluation.statistics import Floats
from trl_plus.forward.lm_head import Unscorable
from trl_plus.forward.score import score
from trl_plus.objectives import Completions

Reward = Callable[[Completions], torch.Tensor]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Scores:
    """One model's scores of C completions.

    Attributes:
        total: (C,), the sum of log-probabilities over the completion's tokens, in nats.
        length: (C,), how many tokens that is, after cutting to `max_length`.
        reward: (C,), the method's reward; None if it is not defined (the reference itself).
    """

    total: Floats
    length: Floats
    reward: Floats | None = None

    @property
    def per_token(self) -> Floats:
        """(C,), the mean log-probability of a token, in nats; 0 for an empty completion."""
        return self.total / np.maximum(self.length, 1)


def score_rows(
    scorer: Scorer,
    held_out: HeldOut,
    batch_size: int,
    reward: Reward | None,
    reference: Scores | None = None,
    advance: Advance = lambda rows: None,
) -> Scores:
    """Score every held-out completion in the trainer's own batches.

    Args:
        reward: the method's reward (`Trainer.reward_of`); None for no rewards.
        reference: the reference's scores of the same completions, for a reward that compares.
        advance: called after each batch with the number of rows done so far.

    Raises:
        RunFault: a log-probability is not finite, or the model has none.
    """
    count = len(held_out.labels)
    total, length, rewards = np.zeros(count), np.zeros(count), np.zeros(count)
    done = 0
    for index, batch in held_out.batches(batch_size):
        inputs = {name: value.to(scorer.device) for name, value in batch.items()}
        ref = None
        if reference is not None:
            ref = torch.tensor(reference.total[index], dtype=torch.float32, device=scorer.device)
        with scorer.passes():
            try:
                side = score(scorer.model, inputs).rows(slice(None), ref)
            except Unscorable as error:
                raise RunFault(str(error)) from error
            total[index], length[index] = _array(side.total), _array(side.length)
            if reward is not None:
                rewards[index] = _array(reward(side))
        done += len(index) // (2 if held_out.paired else 1)
        advance(done)
    if not np.isfinite(total).all():
        raise RunFault(
            f"{int((~np.isfinite(total)).sum())} of {count} completions have a log-probability that is not finite, so "
            "nothing can be averaged: the weights are damaged, or overflow in this dtype (try bfloat16 or float32)."
        )
    return Scores(total, length, None if reward is None else rewards)


def _array(values: torch.Tensor) -> Floats:
    return values.double().cpu().numpy()
