"""Names that the installed transformers knows, checked before it loads anything. Importing them imports torch."""

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import Recipe
from trl_plus.recipes.unknown_keys import meant


def check_names(recipe: Recipe) -> None:
    """Trackers and attention implementations.

    Raises:
        RecipeError: transformers does not know one of them.
    """
    asked = recipe["report_to"] or []
    for name in [asked] if isinstance(asked, str) else asked:
        _check(recipe, "report_to", name, [*_trackers(), "all", "none"])
    attention = recipe["attn_implementation"]
    if attention is not None and "/" not in attention:  # org/name is a kernel of the hub
        _check(recipe, "attn_implementation", attention, _attentions())


def _trackers() -> list[str]:
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    return list(INTEGRATION_TO_CALLBACK)


def _attentions() -> list[str]:
    from transformers import AttentionInterface

    return ["eager", *AttentionInterface().valid_keys()]


def _check(recipe: Recipe, key: str, name: str, known: list[str]) -> None:
    if name in known:
        return
    guess = meant(name, known)
    names = ", ".join(known)
    text = (
        f"`{key}` is {name!r}: {guess}It must be one of {names}."
        if guess
        else f"`{key}` must be one of {names}, got {name!r}."
    )
    raise RecipeError(f"{recipe.place_of(f'`{key}`')}{text}")
