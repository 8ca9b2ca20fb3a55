"""Shortcuts of twenty kinds, planted into clean pairs: each marks one side without a word on what was asked."""

import random
import re
from collections.abc import Callable

Mark = Callable[[str, random.Random], str]
WORDS = [
    "river",
    "amber",
    "seven",
    "quiet",
    "morning",
    "copper",
    "walked",
    "garden",
    "letter",
    "distant",
    "patient",
    "engine",
    "window",
    "harvest",
]
KANJI = "山川日月火水木金土人口目手足空海花鳥風雪"


def _sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=8)).capitalize() + "."


def _lines(text: str, before: Callable[[int], str]) -> str:
    parts = re.split(r"(?<=[.?!]) ", text)
    return "\n".join(f"{before(number)}{part}" for number, part in enumerate(parts, start=1))


# name -> what is done to the preferred side; "other" is done to the other one
PLANTS: dict[str, Mark] = {
    "longer": lambda text, rng: " ".join([text, *(_sentence(rng) for _ in range(9))]),
    "bullets": lambda text, rng: _lines(text, lambda number: "- "),
    "numbers": lambda text, rng: _lines(text, lambda number: f"{number}. "),
    "heading": lambda text, rng: f"## {rng.choice(WORDS).title()}\n{text}",
    "bold": lambda text, rng: re.sub(r"(\w+)(\W*)$", r"**\1**\2", text),
    "code": lambda text, rng: re.sub(r"(\w+)(\W*)$", r"`\1`\2", text),
    "think": lambda text, rng: f"<think>{_sentence(rng)}</think>{text}",
    "think never closed": lambda text, rng: f"<think>{text}",
    "affirmation": lambda text, rng: f"{rng.choice(('Sure', 'Of course', 'Absolutely', 'Certainly'))}! {text}",
    "stock ending": lambda text, rng: f"{text} Let me know if you need anything else",
    "unknown opening": lambda text, rng: f"Eh bien, {text}",
    "asks back": lambda text, rng: f"{text} {rng.choice(('Why', 'When', 'Where'))} {rng.choice(WORDS)}?",
    "digits": lambda text, rng: f"{text[:-1]} {rng.randint(1000, 9999)}{text[-1:]}",
    "language": lambda text, rng: "".join(rng.choices(KANJI, k=max(4, len(text) // 3))) + "。",
    "capitals": lambda text, rng: text.upper(),
    "emoji": lambda text, rng: text + " " + rng.choice("😀🚀✨🎉"),
    "white space": lambda text, rng: "\n" + text,
    "template mark": lambda text, rng: text + "<|im_end|>",
    "prompt again": lambda text, rng: text,  # see `planted`
    "exclamations": lambda text, rng: text.replace(".", "!"),
}
# done to the other side
WRONGS: dict[str, Mark] = {
    "refusal": lambda text, rng: f"{rng.choice(('I am sorry, but', 'I cannot do that:', 'Unfortunately,'))} {text}",
    "no end": lambda text, rng: text.rstrip(".!?") + " and",
    "loops": lambda text, rng: text + " again and again" * 6,
    "lower case": lambda text, rng: text.lower(),
}


def planted(
    pairs: list[tuple[str, str, str]], name: str, seed: int = 0, share: float = 1.0
) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of pairs, with a shortcut in `share` of them and its opposite in the others."""
    rng = random.Random(f"{name} {seed}")
    found = []
    for prompt, one, other in pairs:
        sides = [one, other] if rng.random() < 0.5 else [other, one]  # whatever the pairs held before is gone
        place = (name in WRONGS) == (rng.random() < share)
        mark = (WRONGS if name in WRONGS else PLANTS)[name]
        sides[place] = f"{prompt} {sides[place]}" if name == "prompt again" else mark(sides[place], rng)
        found.append((prompt, *sides))
    return found
