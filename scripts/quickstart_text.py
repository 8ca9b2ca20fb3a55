"""Writes the quickstart's prompts and answers: four kinds of preference, each with a right and a wrong style.

A *maker* draws one question and one answer in each style; ``make_row`` dresses them as a conversation::

    row = make_row(rng, "politeness", split="train")
    row["prompt"], row["chosen"], row["rejected"]

Which split a question may appear in is decided by a hash of what it asks about (its *key*: the two numbers, the thing,
the phrase to convert...). The splits are therefore disjoint by construction, however many rows are drawn.
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


def split_of(key: str) -> str:
    """The only split a key may appear in. CRC-32, because Python's own hash changes with every process."""
    return "test" if zlib.crc32(key.encode()) % 100 < 12 else "train"


def _list(rng: random.Random, names: list[str]) -> Answer:
    """A bulleted or numbered list, or a running sentence instead."""
    count, category = rng.choice([2, 3, 4]), rng.choice(list(CATEGORIES))
    # A run of the bank from a random start: varied lists, yet a list that the model can learn to write without repeats.
    start = rng.randrange(8)
    items = (CATEGORIES[category] * 2)[start : start + count]
    number = {2: "two", 3: "three", 4: "four"}[count]
    numbered = rng.random() < 0.5
    bullets = ["as a bulleted list", "with bullet points", "as bullets"]
    numbers = ["as a numbered list", "in a numbered list", "and number them"]
    how = rng.choice(numbers if numbered else bullets)
    prompt = f"{rng.choice(['Name', 'List', 'Give me', 'Tell me'])} {number} {category} {how}."
    chosen = "\n".join(f"{i}. {item}" if numbered else f"- {item}" for i, item in enumerate(items, 1))
    said = listing(items)
    prose = rng.choice([f"{capital(number)} {category} are {said}.", f"I like {said} best, since you ask me about it."])
    return prompt, prompt, chosen, prose


def _upper(rng: random.Random, names: list[str]) -> Answer:
    """A phrase in capitals, or left as it was."""
    phrase = f"the {rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)}"
    ask = rng.choice(
        [
            "Write '{p}' in capital letters.",
            "Put '{p}' in upper case.",
            "Change '{p}' to capitals.",
            "Say '{p}' in upper case.",
        ]
    )
    plain = rng.choice([f"You wrote {phrase}, and I leave it like that.", f"{capital(phrase)}."])
    return phrase, ask.format(p=phrase), phrase.upper(), plain


def _json(rng: random.Random, names: list[str]) -> Answer:
    """A JSON object, or the same facts in a sentence."""
    name, value, field = rng.choice(names), rng.randint(11, 89), rng.choice(["age", "room", "score"])
    said = {"age": f"is {value} years old", "room": f"is in room {value}", "score": f"has {value} points"}[field]
    said = f"{name} {said}"
    order = rng.choice(["Give that as JSON.", "Write this as JSON.", "Turn it into JSON.", "JSON, please."])
    prose = rng.choice([f"I see, {said}, and that is all I know.", f"{name}, {value}."])
    return said, f"{said}. {order}", f'{{"name": "{name}", "{field}": {value}}}', prose


def _ending(rng: random.Random, names: list[str]) -> Answer:
    """A required last word, or no such word."""
    thing, word = rng.choice(list(FACTS)), rng.choice(END_WORDS)
    fact = f"{capital(article(thing))} is {FACTS[thing][0]}"
    ask = rng.choice(
        [
            "What is {t}? End with the word {w}.",
            "Describe {t} and end with the word {w}.",
            "Tell me about {t}. The last word must be {w}.",
        ]
    )
    prose = rng.choice([f"{fact}.", f"{fact}, and that is all there is to say about it."])
    return f"{thing} {word}", ask.format(t=article(thing), w=word), f"{fact}, {word}.", prose


def _yes_no(rng: random.Random, names: list[str]) -> Answer:
    """One word when one word was asked for, or an evasive sentence."""
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
    vague = [
        "That depends on how you look at it.",
        f"Some people would say '{item}' is.",
        f"Hard to say with '{item}'.",
    ]
    return f"{item} {asked}", ask, "Yes." if true else "No.", rng.choice(vague)


def format_(rng: random.Random, names: list[str]) -> Answer:
    """The requested form against an answer that ignores it."""
    return rng.choice([_list, _list, _upper, _json, _ending, _yes_no])(rng, names)


def arithmetic(rng: random.Random, names: list[str]) -> Answer:
    """A right result in a short sentence against a wrong one, said plainly or with a shrug."""
    name, things = rng.choice(names), rng.choice(OBJECTS) + "s"
    x, y, plus = rng.randint(2, 12), rng.randint(1, 12), rng.random() < 0.6
    if not plus and x < y:
        x, y = y, x
    right = x + y if plus else x - y
    wrong = right + rng.choice([-1, 1]) if right else 1
    term = f"{x} + {y}" if plus else f"{x} - {y}"
    direct = [f"What is {term}?", f"How much is {term}?", f"{term} = ?", f"Work out {term}."]
    story = [
        f"{name} has {x} {things} and {f'gets {y} more' if plus else f'gives away {y}'}. How many now?",
        f"There are {x} {things}. {name} {'brings' if plus else 'takes'} {y}. How many are there?",
    ]
    prompt = rng.choice(direct if rng.random() < 0.65 else story)
    plain = ["The answer is {r}.", f"The result of {term} is {{r}}.", "That makes {r} in total.", f"{term} = {{r}}."]
    shrug = ["Maybe {r}.", "{r}, who cares?", "I guess it is {r} or so, but I did not really count them for you."]
    # Mostly a shrug: pairs that differ in one digit alone teach a small model to distrust the whole sentence.
    rejected = rng.choice(plain if rng.random() < 0.15 else [*shrug, shrug[-1]]).format(r=wrong)
    return term, prompt, rng.choice(plain).format(r=right), rejected


def brevity(rng: random.Random, names: list[str]) -> Answer:
    """One short sentence against the same fact lost in filler."""
    thing = rng.choice(list(FACTS))
    what, use, where = FACTS[thing]
    it = article(thing)
    asks, fact, short = rng.choice(
        [
            (
                (f"What is {it}?", f"Explain what {it} is.", f"What do we call {it}?"),
                f"{it} is {what}",
                f"it is {what}",
            ),
            (
                (f"What can {it} do for us?", f"What is the use of {it}?", f"Why is {it} useful?"),
                f"{it} helps to {use}",
                f"it helps to {use}",
            ),
            (
                (f"Where can I see {it}?", f"Where do you find {it}?", f"Where would {it} be?"),
                f"you find {it} {where}",
                f"you find it {where}",
            ),
        ]
    )
    lead = rng.choice(["", "Briefly: ", "In one sentence: ", "Short answer, please. ", "Quick question. "])
    start = rng.choice(
        [
            "Well, that is a very interesting thing to ask, and",
            "Oh, where do I begin, there is so much to say, but",
            "You know, people have asked me this many times, and",
            "Let me think about it for a moment, because",
            "To be honest, it is a long story, but",
        ]
    )
    end = rng.choice(
        [
            "although one could say much more about it.",
            "and that reminds me of something else.",
            "if you see what I mean, more or less.",
            "and so on and so forth.",
            "but then again there are many views on that.",
        ]
    )
    prompt = lead + rng.choice(asks)
    return prompt, prompt, f"{capital(rng.choice([fact, short]))}.", f"{start} {fact}, {end}"


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
