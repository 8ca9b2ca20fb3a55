"""How a defect is put into clean samples: what its code must find, and in which formats it can occur."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.preflight.corpus import FORMS, Form, Sample


@dataclass
class Field:
    """The samples of a dataset, and the rows among them that nothing was planted in yet."""

    samples: list[Sample]
    form: Form
    rng: random.Random
    free: list[int]

    def __getitem__(self, row: int) -> Sample:
        return self.samples[row]

    def take(self) -> int:
        """A clean row, never handed out again."""
        return self.free.pop(self.rng.randrange(len(self.free)))

    def side(self) -> str:
        return self.rng.choice(self.form.sides)


# (field, row) -> the rows at which the code must be reported; None for that row alone
Plant = Callable[[Field, int], set[int] | None]


@dataclass(frozen=True)
class Planter:
    """A way to plant a defect. `implies`: codes that the same defect is rightly reported under too, by form name."""

    code: str
    name: str
    plant: Plant
    fits: Callable[[Form], bool]
    implies: Callable[[Form], frozenset[str]]

    @property
    def forms(self) -> list[Form]:
        return [form for form in FORMS.values() if self.fits(form)]


PLANTERS: list[Planter] = []


def always(form: Form) -> bool:
    return True


def chat(form: Form) -> bool:
    return form.conversational


def pairs(form: Form) -> bool:
    return form.paired


def implicit_text(form: Form) -> bool:
    return not form.conversational and form.prompt == "implicit"


def planter(code: str, fits: Callable[[Form], bool] = always, implies: Callable[[Form], set[str]] | None = None) -> Any:
    def register(plant: Plant) -> Plant:
        implied = implies or (lambda form: set())
        entry = Planter(code, plant.__name__, plant, fits, lambda form: frozenset(implied(form)))
        PLANTERS.append(entry)
        return plant

    return register


def edit(sample: Sample, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the row after it was rendered."""
    sample.edits.append(change)


def put(sample: Sample, column: str, value: Any) -> None:
    edit(sample, lambda row: row.update({column: value}))


def say(field: Field, row: int, text: str, at_start: bool = False) -> None:
    """Puts a text into the prompt or a response."""
    sample = field[row]
    where = field.rng.choice(["prompt", *field.form.sides])
    holder, key = (sample.turns[-1], "content") if where == "prompt" else (sample.responses, where)
    holder[key] = f"{text} {holder[key]}" if at_start else f"{holder[key]} {text}"
    if implicit_text(field.form) and where != "prompt":  # the sides begin with different letters still
        holder[key] = f"{'No.' if where == 'chosen' else 'Why?'} {holder[key]}"
