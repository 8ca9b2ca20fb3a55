"""What the model card of a run says and only its recipe knows."""

from trl_plus.methods import trained_with
from trl_plus.runs.model_card import Card, Part
from trl_plus.setup.objects import RunObjects


def card_of(objects: RunObjects) -> Card:
    """The card of a run before its trainer has added weights, rows and metrics."""
    recipe = objects.recipe
    return Card(
        name="",
        methods=trained_with(recipe.method.family, objects.args),
        base=str(recipe["model_name_or_path"]),
        data=_parts(objects),
        recipe={"method": recipe.method.name, **recipe.values},
        tags=[recipe.method.name],
    )


def _parts(objects: RunObjects) -> list[Part]:
    recipe, data = objects.recipe, objects.data
    if data.mixture:
        parts = [Part(str(entry["path"]), _more(entry.get("name"), entry.get("split"))) for entry in data.mixture]
    else:
        parts = [Part(str(recipe["dataset_name"]), _more(data.config, data.train_split))]
    if data.eval_name is not None:
        parts.append(Part(str(recipe["eval_dataset_name"]), "held-out rows", trained=False))
    return parts


def _more(config: str | None, split: str | None) -> str:
    words = [f"configuration {config}"] if config else []
    return ", ".join([*words, *([f"split {split}"] if split else [])])
