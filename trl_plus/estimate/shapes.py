"""Lengths of the rows of a run, and the largest micro-batches that they make in its row layout."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from trl_plus.data.refusals import refuse_rows
from trl_plus.errors import DataError, NoRowLeft
from trl_plus.forward.layouts import Plan, make_plan
from trl_plus.preflight.tokens import trainer_rows
from trl_plus.setup.objects import RunObjects

DRAWS = 200
Lengths = tuple[int, int]  # tokens of a sequence with its prompt, and of its completion


@dataclass(frozen=True)
class Row:
    """The sequences of a row as the trainer cuts them.

    Attributes:
        sides: chosen and rejected of a pair, or one completion.
        common: tokens that the sides begin with alike.
    """

    sides: tuple[Lengths, ...]
    common: int = 0


@dataclass(frozen=True)
class Shape:
    """The size of a micro-batch for the model.

    Attributes:
        rows: sequences: two per pair, one per labelled row.
        tokens: padded length of each.
        scored: tokens whose log-probability is taken, over all rows.
        plan: how the sequences are laid out; None for plain rows, whose attention is then taken to need a mask.
    """

    rows: int
    tokens: int
    scored: int
    plan: Plan | None = None

    @property
    def computed(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.rows * self.tokens if self.plan is None else self.plan.computed


@dataclass(frozen=True)
class Rows:
    """A sample of rows, cut at `max_length`.

    Attributes:
        sample: empty if the data could not be read, and `bound` stands for it then.
        bound: `max_length`, or the longest sequence of the sample if there is none.
        per_row: sequences of a row.
        multiple: plain rows are padded to a multiple of this.
        scores_prompt: ORPO's `nll_scope: full` scores the chosen side's prompt too.
        layout: "rows", "shared" or "packed".
        share: common beginnings are kept once.
        budget: `tokens_per_device`.
    """

    sample: list[Row]
    bound: int
    per_row: int
    multiple: int = 1
    scores_prompt: bool = False
    layout: str = "rows"
    share: bool = True
    budget: int | None = None

    def worst(self, batch: int) -> Shape:
        """The largest micro-batch of `batch` rows: the longest ones, and the longest completions.

        With a budget, of as many of `batch` rows as it holds.
        """
        if self.budget is None:
            rows, scored = self._most(batch, self._size), self._most(batch, self._scored)
            return self._shape(rows, sum(map(self._scored, scored)))
        every = max(batch, len(self._known))
        rows = self._most(every, self._size)
        if self.layout != "packed":  # padding is not counted: many short rows fit beside a long one
            rows = [rows[0], *rows[:0:-1]]
        scored = self._most(every, lambda row: self._scored(row) / self._cost(row))
        return self._shape(self._filled(rows)[:batch], sum(map(self._scored, self._filled(scored)[:batch])))

    def mismatched(self, batch: int) -> tuple[Shape, Shape]:
        """KTO's largest passes for z_ref: the policy's, of mismatched rows, and the reference's, of both completions.

        The longest prompts come before the longest completions.
        """
        both = [lengths for row in self._known for lengths in row.sides]
        totals, prompts, completions = (
            sorted(values, reverse=True)
            for values in ([t for t, _ in both], [t - c for t, c in both], [c for _, c in both])
        )
        rows = []
        for i in range(batch):
            i %= len(both)
            total = min(self.bound, prompts[i] + completions[i])
            other = (total, min(completions[i], total - 1))
            rows.append(Row(((totals[i], completions[i]), other), min(prompts[i], total)))
        rows = self._filled(rows if self.layout == "packed" else [rows[0], *rows[:0:-1]])
        policy = [Row(row.sides[1:]) for row in rows]
        return tuple(self._shape(part, sum(c for row in part for _, c in row.sides)) for part in (policy, rows))

    def mean(self, batch: int) -> float:
        """Tokens that `batch` rows need on average, padding included, over random draws."""
        draw = random.Random(0)
        if not self.sample:
            return float(self._shape(self._known * batch, 0).computed)
        sizes = [self._shape(draw.choices(self.sample, k=batch), 0).computed for _ in range(DRAWS)]
        return sum(sizes) / len(sizes)

    @property
    def _known(self) -> list[Row]:
        return self.sample or [Row(((self.bound, self.bound - 1),) * self.per_row)]

    def _most(self, batch: int, key: Callable[[Row], float]) -> list[Row]:
        """The `batch` rows with the largest key; rows repeat if there are fewer."""
        rows = sorted(self._known, key=key, reverse=True)
        return (rows * (batch // len(rows) + 1))[:batch]

    def _filled(self, rows: list[Row]) -> list[Row]:
        """The rows that the budget holds, taken in order; the first one in any case."""
        if self.budget is None:
            return rows
        found, room = rows[:1], self.budget - self._cost(rows[0])
        for row in rows[1:]:
            if self._cost(row) <= room:
                found.append(row)
                room -= self._cost(row)
        return found

    def _cost(self, row: Row) -> int:
        """Tokens of a row with its common beginning once, as a budget counts."""
        return sum(total for total, _ in row.sides) - row.common * (len(row.sides) - 1)

    def _size(self, row: Row) -> int:
        """The size of a row in a micro-batch: its longest side if padded, all its tokens if laid out."""
        return max(total for total, _ in row.sides) if self.layout == "rows" else self._laid_out(row)

    def _laid_out(self, row: Row) -> int:
        return self._cost(row) if self.share else sum(total for total, _ in row.sides)

    def _scored(self, row: Row) -> int:
        (total, completion), *others = row.sides
        return (total - 1 if self.scores_prompt else completion) + sum(completion for _, completion in others)

    def _shape(self, rows: list[Row], scored: int) -> Shape:
        lengths = [row.sides[side][0] for side in range(len(rows[0].sides)) for row in rows]
        width = -(-max(lengths) // self.multiple) * self.multiple
        if self.layout == "rows":
            return Shape(len(lengths), width, scored)
        common = torch.tensor([row.common if self.share else 0 for row in rows])
        return Shape(len(lengths), width, scored, make_plan(torch.tensor(lengths), common, width, self.layout))


# -- lengths of a sample of the data, by the model's own tokenizer ------------------------------------------------

SAMPLE = 1000


def sampled(objects: RunObjects, data: Any, processor: Any) -> list[Row]:
    """The lengths of a random sample of the training rows, as the trainer makes them.

    Args:
        data: training rows as `trl_plus.data.loading.load` gives them; a stream's first rows are taken.

    Raises:
        DataError: the trainer would refuse the rows.
    """
    args, rows = objects.args, _sample(data, objects.args.seed)
    images = [column for column in ("image", "images") if column in rows.column_names]
    if images:  # their tokens depend on the images, so only the text is counted
        rows, processor = rows.remove_columns(images), getattr(processor, "tokenizer", processor)
    try:
        refuse_rows(rows, "train")
        made = trainer_rows(rows, args, processor, args.max_length)
    except NoRowLeft:
        return []
    except ValueError as error:
        raise DataError(str(error)) from error
    sides = [side for side in ("chosen", "rejected", "completion") if f"{side}_ids" in made.column_names]
    masks = [f"{side}_loss_mask" for side in sides if f"{side}_loss_mask" in made.column_names]
    tokens = made.select_columns(["prompt_ids", *(f"{side}_ids" for side in sides), *masks])
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
    masks = [row.get(f"{side}_loss_mask") for side in sides]
    scored = [
        max(0, len(side) - len(prompt)) if mask is None else sum(mask[: max(0, len(side) - len(prompt))])
        for side, mask in zip(ids, masks, strict=True)
    ]
    lengths = tuple((len(side), count) for side, count in zip(ids, scored, strict=True))
    return Row(lengths, common if len(ids) > 1 else 0)
