"""From the words of a command line to the runs of a sweep. Imports no torch."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import Recipe, load_recipe, parse_overrides
from trl_plus.recipes.yaml_text import inline, parse_value

_LENGTH = ("max_steps", "num_train_epochs")
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Values:
    """Values of one key: several are swept, one is an override."""

    all: list[Any]


@dataclass(frozen=True)
class OneRun:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        place: of its values in `Plan.variants`.
        words: its overrides, as words of a command line.
        recipe: what it trains.
    """

    name: str
    place: int
    seed: int
    words: list[str]
    recipe: Recipe


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep, every seed of one round after another.

    Attributes:
        folder: all runs are folders in it.
        variants: the values of the swept keys.
        budget: optimizer steps of all runs together, for successive halving; None for a grid.
    """

    argument: str
    folder: Path
    keys: list[str]
    variants: list[Mapping[str, Any]]
    seeds: list[int]
    runs: list[OneRun]
    budget: int | None = None

    def label(self, place: int) -> str:
        """The values of a variant in words."""
        return label_of(self.variants[place])


def label_of(values: Mapping[str, Any]) -> str:
    """Values as `beta 2.0, learning_rate 0.001`."""
    return ", ".join(f"{name} {shown(value)}" for name, value in values.items())


def shown(value: Any) -> str:
    """A value as short as it can be read."""
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else inline(value)


def read_plan(
    argument: str,
    words: Sequence[str],
    seeds: int | None,
    out: Path | None,
    budget: int | None = None,
    steps: int | None = None,
) -> Plan:
    """Read the runs that a command line asks for, and check every recipe.

    Args:
        words: overrides. A key with several values, as in `beta=2,2.5`, is swept.
        seeds: how many, counted up from the recipe's `seed`; None for 3, or for the values of `seed`.
        out: the folder of the sweep; None for the recipe's `output_dir` with `-sweep` at its end.
        steps: `max_steps` of every run, instead of the recipe's length.

    Raises:
        RecipeError: nothing is swept, or a recipe is refused; the message names the combination.
    """
    given = parse_overrides(words, read_values)
    fixed = {name: value.all[0] if isinstance(value, Values) else value for name, value in given.items()}
    swept = {name: value.all for name, value in given.items() if isinstance(value, Values) and len(value.all) > 1}
    _refuse(swept, seeds, budget)
    numbers = swept.pop("seed", None)
    if not swept:
        raise RecipeError("Nothing is swept: give a key several values, as in learning_rate=1e-6,5e-6.")
    variants = [dict(zip(swept, values, strict=True)) for values in product(*swept.values())]
    plain = {name: value for name, value in fixed.items() if name not in swept}
    plain |= {} if steps is None else {"max_steps": steps}
    checked = _recipes(argument, [{**plain, **variant} for variant in variants], [label_of(v) for v in variants])
    first = checked[0]
    if numbers is None:
        numbers = [first["seed"] + place for place in range(3 if seeds is None else seeds)]
    folder = out or Path(f"{str(first['output_dir']).rstrip('/')}-sweep")
    shared = [_shared_settings(recipe, len(numbers)) for recipe in checked]
    places = [(seed, place) for seed in numbers for place in range(len(variants))]
    names = [_name({**variants[place], "seed": seed}) for seed, place in places]
    values = [
        {**plain, **shared[place], **variants[place], "seed": seed, "output_dir": str(folder / name)}
        for (seed, place), name in zip(places, names, strict=True)
    ]
    labels = [f"{label_of(variants[place])}, seed {seed}" for seed, place in places]
    recipes = _recipes(argument, values, labels)
    runs = [
        OneRun(name, place, seed, words_of(value), recipe)
        for (seed, place), name, value, recipe in zip(places, names, values, recipes, strict=True)
    ]
    return Plan(argument, folder.expanduser(), list(swept), variants, numbers, runs, budget)


def read_values(text: str) -> Values:
    """The values of an override: `a,b` are two, `[a,b]` and `"a,b"` are one.

    >>> read_values("1e-3,[a,b]").all
    [0.001, ['a', 'b']]
    """
    whole = parse_value(text)
    apart = parse_value(f"[{text}]") if isinstance(whole, str) and "," in text else None
    return Values(apart if isinstance(apart, list) and len(apart) > 1 else [whole])


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Values as overrides of a command line."""
    return [f"{name}={inline(value)}" for name, value in values.items()]


def _refuse(swept: Mapping[str, list[Any]], seeds: int | None, budget: int | None) -> None:
    """Raise a RecipeError for what no sweep can have."""
    for name, values in swept.items():
        shown = [inline(value) for value in values]
        twice = next((text for text in shown if shown.count(text) > 1), None)
        if twice is not None:
            raise RecipeError(f"`{name}` has the value {twice} twice: keep one of them.")
    if "output_dir" in swept:
        raise RecipeError("`output_dir` cannot be swept: every run gets a folder of its own, in that of --out.")
    if "seed" in swept and seeds is not None:
        raise RecipeError("--seeds and several values of `seed` exclude each other: keep one of them.")
    length = next((name for name in _LENGTH if name in swept), None)
    if length is not None and budget is not None:
        raise RecipeError(f"--budget decides how long a run is: `{length}` cannot be swept with it.")


def _shared_settings(recipe: Recipe, seeds: int) -> dict[str, Any]:
    """Values that let runs share work: one split for all seeds, and kept log-probabilities of the reference."""
    settings: dict[str, Any] = {}
    if seeds > 1 and recipe["split_seed"] is None:
        settings["split_seed"] = recipe["seed"]
    streams = recipe["dataset_streaming"] or recipe["streaming"]
    fixed = recipe.method.paired or recipe.values.get("use_peft")  # KTO of a whole model draws its rows anew
    if recipe.method.reference and fixed and not streams and not recipe.values.get("sync_ref_model"):
        settings |= {} if "precompute_ref_log_probs" in recipe.values else {"precompute_ref_log_probs": True}
    return settings


def _recipes(argument: str, combinations: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[Recipe]:
    """The recipes of some combinations. A problem that only some of them have is named with the first of these."""
    found, problems = [], {}
    for values, label in zip(combinations, labels, strict=True):
        try:
            found.append(load_recipe(argument, words_of(values)))
        except RecipeError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(label)
    if problems:
        some = {problem: names for problem, names in problems.items() if len(names) < len(labels)}
        raise RecipeError(
            [problem if problem not in some else f"{some[problem][0]}: {problem}" for problem in problems]
        )
    return found


def _name(values: Mapping[str, Any]) -> str:
    """A folder's name: no character that a shell, an override or a tracker reads otherwise."""
    text = "_".join(f"{name}-{shown(value)}" for name, value in values.items())
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
    if safe == text and len(safe) <= _LONGEST_NAME:
        return safe
    return f"{safe[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
