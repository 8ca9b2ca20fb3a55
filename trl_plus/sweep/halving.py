"""Successive halving: the steps of each round. Standard library only."""

from dataclasses import dataclass

from trl_plus.errors import RecipeError


@dataclass(frozen=True)
class Round:
    """One round: `variants` are trained until optimizer step `until`. The better half goes on to the next."""

    variants: int
    until: int


def rounds(variants: int, seeds: int, budget: int, longest: int | None) -> list[Round]:
    """The rounds of successive halving (Jamieson and Talwalkar 2016, algorithm 1).

    Every round spends the same share of the budget. Runs go on from their checkpoints, so a round costs the steps that
    it adds.

    Args:
        budget: optimizer steps of all runs together.
        longest: steps of the recipe, beyond which no run goes; None if they are not known.

    Raises:
        RecipeError: the budget is too small for one step each.

    >>> rounds(4, 1, 80, None)
    [Round(variants=4, until=10), Round(variants=2, until=30)]
    """
    count = max(1, (variants - 1).bit_length())
    found: list[Round] = []
    until, left = 0, variants
    for _ in range(count):
        until += budget // (count * left * seeds)
        found.append(Round(left, until))
        left = (left + 1) // 2
    if not found[0].until:
        least = count * variants * seeds
        raise RecipeError(f"--budget {budget} is less than one step for every run of a round: give at least {least}.")
    if longest is not None and until > longest:  # what the recipe does not use is not spent
        found = [Round(each.variants, max(1, each.until * longest // until)) for each in found]
    return found
