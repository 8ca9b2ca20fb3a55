"""Clean preference data in every format: ragged English without any defect, as samples that are rendered to rows."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# fmt: off
PLACES = ("harbour", "orchard", "library", "workshop", "valley", "station", "bakery", "museum", "garden", "market",
          "lighthouse", "theatre", "school", "forest", "kitchen", "bridge", "village", "quarry", "laboratory", "island")
THINGS = ("lantern", "violin", "ledger", "compass", "teapot", "bicycle", "telescope", "blanket", "hammer", "letter",
          "recipe", "engine", "painting", "ladder", "basket", "mirror", "notebook", "clock", "kettle", "umbrella")
PEOPLE = ("gardener", "captain", "teacher", "engineer", "baker", "painter", "librarian", "surgeon", "farmer", "pilot",
          "tailor", "chemist", "judge", "carpenter", "poet", "nurse", "weaver", "miner", "sailor", "historian")
WAYS = ("slowly", "with great care", "before dawn", "against all advice", "in silence", "twice a week", "by hand",
        "without a map", "during the storm", "at the last moment", "for a modest price", "out of habit")
ACTS = ("repaired", "described", "sold", "measured", "borrowed", "cleaned", "sketched", "returned", "weighed",
        "polished", "catalogued", "carried", "hid", "examined", "replaced", "wrapped", "labelled", "dismantled")
KINDS = ("old", "heavy", "narrow", "bright", "quiet", "broken", "wooden", "foreign", "simple", "rare", "worn", "tall",
         "damp", "precise", "cheap", "famous", "distant", "patient")
ASKS = ("Why would a {k} {p} keep a {t} in the {l}?", "Explain how the {p} {a} the {k} {t}.",
        "What is the difference between a {k} {t} and the one at the {l}?", "Write a line about a {p} and a {t}.",
        "My {p} says the {t} was {a} {w}. Is that likely?", "Summarise: the {k} {l} and its {t}, {a} {w}.",
        "How long does it take to walk from the {l} to a {k} {l2}?", "List reasons to visit the {l} {w}, please.")
TELLS = ("The {p} {a} a {k} {t} {w}.", "Nobody at the {l} had seen such a {t} before.",
         "It was {k}, and it was {a} {w}.",
         "A {t} from the {l} costs about {n} euros.", "In {y}, the {p} left the {l} for good.",
         "Most {l}s keep at least one {k} {t}; this one has {n}.",
         "“That {t} is {k},” the {p} said – and {a} it anyway.",
         "First look at the {t}, then ask the {p} whether the {l} is open.", "Some prefer the {l2} to the {l}.",
         "For a {p}, a {k} café in the {l} matters more than any {t}.", "Of {n} {t}s, {m} were {k}.")
OPENERS = (("Certainly.", "Yes, mostly.", "Here is one view.", "Broadly, it depends.", "Good question."),
           ("Let me think.", "Probably not.", "I doubt it.", "Maybe.", "Someone once asked me that."))
# fmt: on
SYSTEM = "You answer briefly and say what you are not sure of."


@dataclass(frozen=True)
class Form:
    """A format: rows as `render` writes them, and the method that takes them."""

    name: str
    method: str
    paired: bool
    conversational: bool
    prompt: str  # explicit, implicit or text

    @property
    def sides(self) -> tuple[str, ...]:
        return ("chosen", "rejected") if self.paired else ("completion",)

    @property
    def wanted(self) -> str:
        return self.sides[0]

    @property
    def unwanted(self) -> str:
        return self.sides[-1]


FORMS = {
    form.name: form
    for form in (
        Form("chat", "dpo", True, True, "explicit"),
        Form("chat-implicit", "simpo", True, True, "implicit"),
        Form("ultrafeedback", "orpo", True, True, "text"),
        Form("text", "cpo", True, False, "explicit"),
        Form("text-implicit", "dpo", True, False, "implicit"),
        Form("kto-chat", "kto", False, True, "explicit"),
        Form("kto-chat-implicit", "kto", False, True, "implicit"),
        Form("kto-text", "kto", False, False, "explicit"),
        Form("kto-pairs", "kto", True, True, "explicit"),
    )
}


@dataclass
class Sample:
    """A row before it has a format. `own` are earlier turns of one side only; `edits` change the rendered row."""

    turns: list[dict[str, Any]]
    responses: dict[str, str]
    label: bool | None = None
    own: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)  # further keys of the response messages
    extra: dict[str, Any] = field(default_factory=dict)  # further columns
    edits: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)


def _fill(rng: random.Random, pattern: str) -> str:
    return pattern.format(
        p=rng.choice(PEOPLE), a=rng.choice(ACTS), k=rng.choice(KINDS), t=rng.choice(THINGS), w=rng.choice(WAYS),
        l=rng.choice(PLACES), l2=rng.choice(PLACES), n=rng.randint(2, 99), m=rng.randint(1, 9),
        y=rng.randint(1850, 2020),
    )  # fmt: skip


def _tell(rng: random.Random, opener: str) -> str:
    """From two words to a few paragraphs, now and then with a list or code."""
    sentences = [_fill(rng, rng.choice(TELLS)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 6, 9)))]
    if rng.random() < 0.1:
        sentences += ["\n\n" + "\n".join(f"- {_fill(rng, '{k} {t}')}" for _ in range(3))]
    if rng.random() < 0.05:
        sentences += [f"\n\n```python\nfor i in range({rng.randint(2, 9)}):\n    print(i)\n```"]
    return " ".join([opener, *sentences])


def clean_sample(rng: random.Random, form: Form, number: int) -> Sample:
    turns = [{"role": "user", "content": f"{_fill(rng, rng.choice(ASKS))} ({number})"}]
    if form.conversational and form.prompt != "text":
        if rng.random() < 0.3:
            turns += [{"role": "assistant", "content": _tell(rng, "Well.")}]
            turns += [{"role": "user", "content": _fill(rng, rng.choice(ASKS))}]
        if rng.random() < 0.3:
            turns.insert(0, {"role": "system", "content": SYSTEM})
    # implicit text is split where the sides begin to differ, so their first letters must
    openers = [rng.choice(group) for group in OPENERS]
    responses = dict(zip(form.sides, (_tell(rng, opener) for opener in rng.sample(openers, len(form.sides)))))  # noqa: B905
    return Sample(turns, responses, None if form.paired else number % 15 % 2 == 0)  # 8 of 15: inside KTO's bound


def clean_samples(form: Form, rows: int = 120, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    return [clean_sample(rng, form, seed * 100_000 + number) for number in range(rows)]


def text_prompt(sample: Sample) -> str:
    return f"Question: {sample.turns[-1]['content']}\nAnswer: " if sample.turns else ""


def render(sample: Sample, form: Form) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if form.conversational:
        turns = [dict(turn) for turn in sample.turns]
        own = {side: sample.own.get(side, []) for side in form.sides}
        answers = {
            side: [*own[side], {"role": "assistant", "content": text, **sample.message}]
            for side, text in sample.responses.items()
        }
        if form.prompt == "explicit":
            row = {"prompt": turns, **answers}
        else:
            row = {"prompt": turns[0]["content"] if turns else ""} if form.prompt == "text" else {}
            row |= {side: [*map(dict, turns), *answer] for side, answer in answers.items()}
    elif form.prompt == "explicit":
        row = {"prompt": text_prompt(sample).strip(), **{side: f" {text}" for side, text in sample.responses.items()}}
    else:
        row = {side: text_prompt(sample) + text for side, text in sample.responses.items()}
    if not form.paired:
        row["label"] = sample.label
    row |= sample.extra
    for edit in sample.edits:
        edit(row)
    return row


def rendered(samples: list[Sample], form: Form) -> list[dict[str, Any]]:
    return [render(sample, form) for sample in samples]


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    """Rows as a file of the kind that the path's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        from datasets import Dataset

        dataset = Dataset.from_list(rows)
        dataset.to_csv(path) if path.suffix == ".csv" else dataset.to_parquet(path)
    return path
