"""From what a user names, a recipe or a dataset, to the rows that are looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trl_plus.data.files import is_local
from trl_plus.errors import RecipeError
from trl_plus.methods import METHODS
from trl_plus.preflight.source import Source, open_dataset, open_run
from trl_plus.recipes.package_data import all_names, resolve
from trl_plus.recipes.recipe import Recipe, load_recipe, recipe_from
from trl_plus.recipes.unknown_keys import unknown_method
from trl_plus.ui.console import quiet_maps

_NOWHERE = "none"  # stands for what a recipe must name and a look at the data does not need


@dataclass(frozen=True)
class Opened:
    """The rows that a command looks at. `recipe` is None for a dataset without a model."""

    source: Source
    recipe: Recipe | None
    notes: tuple[str, ...] = ()


def is_recipe(argument: str) -> bool:
    """True if an argument names a recipe: a YAML file, or a bundled one that no dataset of that name hides."""
    return argument.endswith((".yaml", ".yml")) or (argument in all_names() and not is_local(argument))


def open_argument(argument: str, method: str | None, model: str | None, overrides: Sequence[str]) -> Opened:
    """Open a recipe, or a dataset by its path or hub id.

    Args:
        method: of a dataset; guessed from its columns if None.
        model: whose tokenizer and chat template are used; with a recipe it replaces the recipe's.
        overrides: words of the command line, as `train` takes them.

    Raises:
        RecipeError, DataError: it cannot be read.
    """
    with quiet_maps():
        return _open(argument, method, model, overrides)


def _open(argument: str, method: str | None, model: str | None, overrides: Sequence[str]) -> Opened:
    if is_recipe(argument):
        given = [] if model is None else [f"model_name_or_path={model}"]
        given += [] if method is None else [f"method={method}"]
        return _run(load_recipe(argument, [*overrides, *given]))
    if method is not None and method not in METHODS:
        raise RecipeError(f"--method: {unknown_method(method)}")
    source = open_dataset(_request(argument, method, overrides), method)
    if model is None:
        return Opened(source, None)
    if source.problem:
        return Opened(replace(source, model=model), None)
    return _run(recipe_from(_values(argument, source.target.method, model), argument, overrides))


def _run(recipe: Recipe) -> Opened:
    from trl_plus.setup.objects import build
    from trl_plus.setup.trainer import load_processor

    objects = build(recipe)
    return Opened(open_run(objects, load_processor(objects)), recipe, tuple(recipe.notes))


def _request(argument: str, method: str | None, overrides: Sequence[str]) -> Any:
    from trl_plus.setup.objects import data_request

    recipe = recipe_from(
        _values(argument, method or "kto", _NOWHERE), argument, overrides
    )  # kto takes rows of any kind
    return data_request(recipe)


def _values(dataset: str, method: str, model: str) -> dict[str, Any]:
    values = {"method": method, "model_name_or_path": model, "dataset_name": dataset, "output_dir": _NOWHERE}
    return {**values, "dataset_name": resolve(dataset)}
