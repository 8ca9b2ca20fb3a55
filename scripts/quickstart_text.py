"""Writes the quickstart's prompts and answers: four kinds of preference, each answered as asked or otherwise.

A *maker* draws one question and two answers; ``make_row`` dresses them as a conversation::

    row = make_row(rng, "politeness", split="train")
    row["prompt"], row["chosen"], row["rejected"]

The question decides which answer is right: a grumpy answer if one is asked for, a list or a sentence, a short or a long
one. Each manner is chosen as often as it is rejected, so that nothing but reading the prompt tells the two apart
(`trl-plus preflight` measures it, finding D520).

A hash of what a question asks about (its *key*: the two numbers, the thing, the phrase to convert...) decides the split
that it may appear in. The splits are therefore disjoint by construction, however many rows are drawn.
"""

from __future__ import annotations

import random
import zlib

from quickstart_politeness import politeness
from quickstart_words import (
    ADJECTIVES,
    CATEGORIES,
    END_WORDS,
    FACTS,
    NAMES,
    OBJECTS,
    OPENERS,
    SYSTEMS,
    article,
    capital,
    listing,
)

KINDS = ("politeness", "format", "arithmetic", "brevity")
Answer = tuple[str, str, str, str]  # key, prompt, chosen, rejected


def _as_asked(first: bool, one: str, other: str) -> tuple[str, str]:
    """The answer that was asked for, then the other."""
    return (one, other) if first else (other, one)


def split_of(key: str) -> str:
    """The only split a key may appear in. CRC-32, because Python's own hash changes with every process."""
    return "test" if zlib.crc32(key.encode()) % 100 < 12 else "train"


def _list(rng: random.Random, names: list[str]) -> Answer:
    """A bulleted or numbered list, or a sentence."""
    count, category = rng.choice([2, 3, 4]), rng.choice(list(CATEGORIES))
    # A run of the bank from a random start: varied lists, yet a list that the model can learn to write without repeats.
    start = rng.randrange(8)
    items = (CATEGORIES[category] * 2)[start : start + count]
    number = {2: "two", 3: "three", 4: "four"}[count]
    numbered, as_list = rng.random() < 0.5, rng.random() < 0.5
    bullets = ["as a bulleted list", "with bullet points", "as bullets"]
    numbers = ["as a numbered list", "in a numbered list", "and number them"]
    sentence = ["in a sentence", "in one line of text", "without a list"]
    how = rng.choice((numbers if numbered else bullets) if as_list else sentence)
    ask = f"{rng.choice(['Name', 'List', 'Give me', 'Tell me'])} {number} {category}"
    lines = "\n".join(f"{i}. {item}" if numbered else f"- {item}" for i, item in enumerate(items, 1))
    prose = f"{capital(number)} {category} are {listing(items)}."
    return ask, f"{ask} {how}.", *_as_asked(as_list, lines, prose)


def _capitals(rng: random.Random, names: list[str]) -> Answer:
    """A phrase in capitals, or in small letters."""
    phrase, upper = f"the {rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)}", rng.random() < 0.5
    ask = rng.choice(["Write '{p}' {h}.", "Put '{p}' {h}.", "Say '{p}' {h}."])
    how = rng.choice(["in capital letters", "in upper case"] if upper else ["in small letters", "in lower case"])
    return phrase, ask.format(p=phrase, h=how), *_as_asked(upper, phrase.upper(), phrase)


def _json(rng: random.Random, names: list[str]) -> Answer:
    """A JSON object, or the same facts in a sentence."""
    name, value, field = rng.choice(names), rng.randint(11, 89), rng.choice(["age", "room", "score"])
    said = {"age": f"is {value} years old", "room": f"is in room {value}", "score": f"has {value} points"}[field]
    said, structured = f"{name} {said}", rng.random() < 0.5
    order = rng.choice(
        ["Give that as JSON.", "Write this as JSON.", "Turn it into JSON.", "JSON, please."]
        if structured
        else ["Say that in words.", "Write this as a sentence.", "Repeat it in words.", "In words, please."]
    )
    return said, f"{said}. {order}", *_as_asked(structured, f'{{"name": "{name}", "{field}": {value}}}', f"{said}.")


def _ending(rng: random.Random, names: list[str]) -> Answer:
    """A required last word, or another one."""
    thing, (word, other) = rng.choice(list(FACTS)), rng.sample(END_WORDS, 2)
    fact = f"{capital(article(thing))} is {FACTS[thing][0]}"
    ask = rng.choice(
        [
            "What is {t}? End with the word {w}.",
            "Describe {t} and end with the word {w}.",
            "Tell me about {t}. The last word must be {w}.",
        ]
    )
    return f"{thing} {word}", ask.format(t=article(thing), w=word), f"{fact}, {word}.", f"{fact}, {other}."


def _yes_no(rng: random.Random, names: list[str]) -> Answer:
    """The right one of two words, or the wrong one."""
    category, other = rng.sample(list(CATEGORIES), 2)
    item, true = rng.choice(CATEGORIES[category]), rng.random() < 0.5
    asked = category if true else other
    ask = rng.choice(
        [
            f"Yes or no only: does '{item}' go with the {asked}?",
            f"Answer yes or no: is '{item}' on a list of {asked}?",
            f"Is '{item}' one of the {asked}? Yes or no.",
        ]
    )
    return f"{item} {asked}", ask, *_as_asked(true, "Yes.", "No.")


def format_(rng: random.Random, names: list[str]) -> Answer:
    """The requested form against another one."""
    return rng.choice([_list, _list, _capitals, _json, _ending, _yes_no])(rng, names)


def arithmetic(rng: random.Random, names: list[str]) -> Answer:
    """A sum as an equation, or its result in a sentence. Both are right."""
    name, things = rng.choice(names), rng.choice(OBJECTS) + "s"
    x, y, plus, equation = rng.randint(2, 12), rng.randint(1, 12), rng.random() < 0.6, rng.random() < 0.5
    if not plus and x < y:
        x, y = y, x
    right = x + y if plus else x - y
    term = f"{x} + {y}" if plus else f"{x} - {y}"
    direct = [f"What is {term}?", f"How much is {term}?", f"Work out {term}."]
    story = [
        f"{name} has {x} {things} and {f'gets {y} more' if plus else f'gives away {y}'}. How many now?",
        f"There are {x} {things}. {name} {'brings' if plus else 'takes'} {y}. How many are there?",
    ]
    how = rng.choice(
        ["Show the sum.", "Write an equation.", "As an equation, please."]
        if equation
        else ["Use a sentence.", "Write a sentence.", "In a sentence, please."]
    )
    said = rng.choice([f"The answer is {right}.", f"That makes {right} in total."])
    ask = rng.choice(direct if rng.random() < 0.65 else story)
    return term, f"{ask} {how}", *_as_asked(equation, f"{term} = {right}.", said)


def brevity(rng: random.Random, names: list[str]) -> Answer:
    """One short sentence, or the same fact with a long opening and ending."""
    thing, brief = rng.choice(list(FACTS)), rng.random() < 0.5
    what, use, where = FACTS[thing]
    it = article(thing)
    asks, fact = rng.choice(
        [
            ((f"What is {it}?", f"Explain what {it} is.", f"What do we call {it}?"), f"{it} is {what}"),
            (
                (f"What can {it} do for us?", f"What is the use of {it}?", f"Why is {it} useful?"),
                f"{it} helps to {use}",
            ),
            ((f"Where can I see {it}?", f"Where do you find {it}?", f"Where would {it} be?"), f"you find {it} {where}"),
        ]
    )
    lead = rng.choice(
        ["Briefly:", "In one short sentence:", "Short answer, please.", "Quick question."]
        if brief
        else ["Take your time:", "At some length:", "Long answer, please.", "Let us chat a while."]
    )
    start = rng.choice(
        [
            "Well, that is a very interesting thing to ask, and",
            "Let me think about it for a moment, because",
            "To be honest, it is a long story, but",
        ]
    )
    end = rng.choice(["although one could say much more about it.", "and so on and so forth."])
    ask = rng.choice(asks)
    return ask, f"{lead} {ask}", *_as_asked(brief, f"{capital(fact)}.", f"{start} {fact}, {end}")


MAKERS = {"politeness": politeness, "format": format_, "arithmetic": arithmetic, "brevity": brevity}


def make_row(rng: random.Random, kind: str, split: str) -> dict:
    """Draws questions of a kind until one belongs to the split, then dresses it as a conversation.

    One prompt in sixteen has an earlier exchange and one in sixteen a system message.
    """
    key = None
    while key is None or split_of(f"{kind} {key}") != split:
        key, prompt, chosen, rejected = MAKERS[kind](rng, NAMES)
    messages = [{"role": "user", "content": prompt}]
    dice = rng.random()
    if dice < 1 / 16:
        hello, reply = rng.choice(OPENERS)
        messages = [{"role": "user", "content": hello}, {"role": "assistant", "content": reply}, *messages]
    elif dice < 2 / 16:
        messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, *messages]
    answers = {"chosen": chosen, "rejected": rejected}
    said = {style: [{"role": "assistant", "content": text}] for style, text in answers.items()}
    return {"prompt": messages, **said, "kind": kind}
