"""At DPO's optimum the implicit rewards are those of the Bradley-Terry model that the preferences come from.

python benchmarks/claims/bradley_terry.py
"""

import sys
from itertools import permutations

import torch
from common import Figure, completions, descend, main, tiny, token_log_probs, train
from torch import Tensor

from trl_plus.objectives import dpo

CLAIM = "DPO's fixed point gives Bradley-Terry rewards: beta log(pi / pi_ref), up to a constant per prompt."
SOURCE = "Rafailov et al. 2023, eq. 5 and 7, theorem 1 (https://huggingface.co/papers/2305.18290)"
BAR = 1e-3


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def tabular(prompts: int, answers: int, beta: float) -> tuple[float, float]:
    """The largest error of an implicit reward, and of a probability of pi_ref exp(r / beta) / Z."""
    torch.manual_seed(1)
    reward = torch.randn(prompts, answers, dtype=torch.float64)
    reference = torch.randn(prompts, answers, dtype=torch.float64).log_softmax(-1)
    pairs = torch.tensor(list(permutations(range(answers), 2)))
    preferred = torch.sigmoid(reward[:, pairs[:, 0]] - reward[:, pairs[:, 1]])

    def loss(logits: Tensor) -> Tensor:
        ratio = logits.log_softmax(-1) - reference
        chosen, rejected = (completions(ratio[:, pairs[:, side]].flatten()) for side in (0, 1))
        return (preferred.flatten() * dpo(chosen, rejected, beta=beta)).sum()

    policy = descend(loss, reference).log_softmax(-1)
    optimum = (reference + reward / beta).softmax(-1)
    return float((centred(beta * (policy - reference)) - centred(reward)).abs().max()), float(
        (policy.exp() - optimum).abs().max()
    )


def trained(answers: int, steps: int, beta: float) -> float:
    """The same with DPOTrainer: each ordered pair is a row, and its weight the probability of that preference."""
    torch.manual_seed(2)
    reward = torch.randn(answers, dtype=torch.float64)
    texts = ["red", "blue sky", "green", "old yellow house"][:answers]
    rows = [
        {"prompt": "colour:", "chosen": " " + texts[i], "rejected": " " + texts[j], "weight": float(weight)}
        for i, j in permutations(range(answers), 2)
        for weight in [torch.sigmoid(reward[i] - reward[j])]
    ]
    trainer = train("DPO", rows, steps, beta=beta, learning_rate=5e-3, lr_scheduler_type="cosine")
    reference, implicit = tiny()[0], []
    chosen = {row["chosen"]: tokens for row, tokens in zip(rows, trainer.train_dataset, strict=True)}
    with torch.no_grad():
        for text in texts:
            row = chosen[" " + text]
            policy, base = (
                token_log_probs(model, row["prompt_ids"], row["chosen_ids"]).sum()
                for model in (trainer.model, reference)
            )
            implicit.append(beta * (policy - base))
    return float((centred(torch.stack(implicit)) - centred(reward)).abs().max())


def figures(small: bool) -> list[Figure]:
    found = []
    for beta in (0.1, 0.5):
        rewards, policy = tabular(3, 6, beta)
        what = f"tabular policy, 3 prompts of 6 completions, exact preferences, beta {beta:g}: largest error"
        found.append(Figure(f"{what} of a reward", f"below {BAR:g}", f"{rewards:.1e}", rewards < BAR))
        found.append(Figure(f"{what} of a probability", f"below {BAR:g}", f"{policy:.1e}", policy < BAR))
    answers, steps = (3, 120) if small else (4, 500)
    bar = 0.05 if small else BAR
    error = trained(answers, steps, 0.5)
    what = f"DPOTrainer on a tiny model, {answers} completions, {steps} steps, beta 0.5: largest error of a reward"
    return [*found, Figure(what, f"below {bar:g}", f"{error:.1e}", error < bar)]


if __name__ == "__main__":
    sys.exit(main(CLAIM, SOURCE, figures))
