"""How long the rows are: a sample of the data as the trainer makes it."""

import random
from itertools import takewhile
from typing import Any

from trl_plus.data.refusals import refuse_rows
from trl_plus.errors import DataError, NoRowLeft
from trl_plus.estimate.shapes import Row
from trl_plus.preflight.tokens import trainer_rows
from trl_plus.setup.objects import RunObjects

SAMPLE = 1000
_IMAGES = ("image", "images")


def sampled(objects: RunObjects, data: Any, processor: Any) -> list[Row]:
    """The lengths of a random sample of the training rows.

    Args:
        data: training rows as `trl_plus.data.loading.load` gives them; a stream's first rows are taken.

    Raises:
        DataError: the trainer would refuse the rows.
    """
    args, method = objects.args, objects.recipe.method
    rows = _sample(data, args.seed)
    images = [column for column in _IMAGES if column in rows.column_names]
    if images:  # their tokens depend on the images, so only the text is counted
        rows, processor = rows.remove_columns(images), getattr(processor, "tokenizer", processor)
    try:
        refuse_rows(rows, "train")
        made = trainer_rows(rows, method.trainer, args, processor, args.max_length)
    except NoRowLeft:
        return []
    except ValueError as error:
        raise DataError(str(error)) from error
    sides = [side for side in ("chosen", "rejected", "completion") if f"{side}_ids" in made.column_names]
    tokens = made.select_columns(["prompt_ids", *(f"{side}_ids" for side in sides)])
    return [_measured(row, sides, args.max_length) for row in tokens]


def _sample(data: Any, seed: int) -> Any:
    from datasets import Dataset

    if not hasattr(data, "__len__"):
        return Dataset.from_list(list(data.take(SAMPLE)))
    return data.select(sorted(random.Random(seed).sample(range(len(data)), min(SAMPLE, len(data)))))


def _measured(row: dict[str, Any], sides: list[str], max_length: int | None) -> Row:
    prompt = row["prompt_ids"]
    ids = [[*prompt, *row[f"{side}_ids"]][:max_length] for side in sides]
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids[0], ids[-1], strict=False)))
    lengths = tuple((len(side), max(0, len(side) - len(prompt))) for side in ids)
    return Row(lengths, common if len(ids) > 1 else 0)
