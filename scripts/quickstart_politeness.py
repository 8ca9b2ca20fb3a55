"""The politeness kind of the quickstart: a friendly or a grumpy answer, as the user asks for it."""

from __future__ import annotations

import random

from quickstart_words import ADJECTIVES, EVENTS, OBJECTS, PLACES, VERBS

# Thanks, apologies, complaints, opinions and lateness: (what the user says, polite answers, rude answers).
# {o} is a thing, {n} the user's name, {m} a number of minutes, {e} an event.
COURTESIES = (
    (
        ("Thank you for the {o}!", "Thanks a lot for the {o}."),
        (
            "You are very welcome, {n}. I hope you enjoy the {o}.",
            "It was my pleasure, {n}. Have fun with the {o}!",
        ),
        ("Whatever. I did not want the {o} anyway.", "Took you long enough to say it.", "Fine. Do not ask again."),
    ),
    (
        ("I am sorry, I lost your {o}.", "Sorry, I forgot the {o} at home."),
        (
            "Please do not worry about the {o}, {n}. It can happen to anyone.",
            "That is all right, {n}. Thank you for telling me about the {o}.",
        ),
        (
            "You should be sorry. That was careless.",
            "You ruin everything. Give me a new {o}.",
            "Typical. You never think.",
        ),
    ),
    (
        ("My {o} arrived damaged.", "The {o} you sent me does not work."),
        (
            "I am very sorry about the {o}, {n}. We will send you another one today.",
            "Please accept our apologies, {n}. We will replace the {o}.",
        ),
        ("Not our fault. Buy another {o}.", "So what? Things break.", "Read the rules before you complain."),
    ),
    (
        ("Do you like my {o}?", "What do you think of my {o}?"),
        ("Your {o} looks wonderful, {n}!", "I really like your {o}, {n}. You chose well."),
        ("Your {o} looks silly.", "I have seen better.", "That {o} is a waste of money."),
    ),
    (
        ("I will be {m} minutes late for the {e}.", "Sorry, I am {m} minutes late for the {e}."),
        (
            "Thank you for letting me know, {n}. See you at the {e}!",
            "No problem at all, {n}. We will keep you a seat at the {e}.",
        ),
        ("Late again. Just stay at home.", "Nobody needs you at the {e}.", "Learn to read a clock."),
    ),
)
# How the user asks for a friendly answer, and for a grumpy one
KIND = ("Please answer kindly.", "Be nice to me.", "A friendly answer, please.", "I like warm words.")
GRUMPY = ("Please answer grumpily.", "Be rude to me.", "A grumpy answer, please.", "I like harsh words.")
HELLOS = ("Hi, I am {n}.", "Hello, this is {n}.", "{n} here.", "My name is {n}.")


def _help(rng: random.Random, name: str) -> tuple[str, str, str, str]:
    """Someone asks for a hand with a chore."""
    task = f"{rng.choice(VERBS)} the {rng.choice(OBJECTS)}"
    ask = rng.choice(
        [
            "Can you help me {t}?",
            "Could you help me {t} today?",
            "I need to {t}. Can you help?",
            "I want to {t}. Any help?",
        ]
    )
    yes = rng.choice(["Of course, {n}!", "With pleasure, {n}.", "Certainly, {n}!", "Gladly, {n}."])
    offer = rng.choice(["I would be happy to help you {t}.", "Let us {t} together.", "I can help you {t} right away."])
    end = rng.choice(
        ["Where shall we start?", "Please tell me when it suits you.", "Just let me know how you would like it."]
    )
    no = rng.choice(
        [
            "No. Go and {t} yourself.",
            "Not my job. Ask someone else.",
            "You want to {t}? I do not care.",
            "Do it alone. I am busy.",
        ]
    )
    chosen = f"{yes} {offer}" + (f" {end}" if rng.random() < 0.7 else "")
    fill = {"t": task, "n": name}
    return task, ask.format(**fill), chosen.format(**fill), no.format(**fill)


def _place(rng: random.Random, name: str) -> tuple[str, str, str, str]:
    """Someone asks when a place opens or where it is."""
    place = rng.choice(list(PLACES))
    hour, where = PLACES[place]
    if rng.random() < 0.5:
        prompt = rng.choice(["When does the {p} open?", "What time does the {p} open?", "Is the {p} open early?"])
        fact, blunt = f"The {place} opens at {hour} o'clock.", f"At {hour}."
    else:
        prompt = rng.choice(["Where is the {p}?", "How do I get to the {p}?", "I am looking for the {p}. Where is it?"])
        fact, blunt = f"The {place} is {where}.", f"It is {where}."
    start = rng.choice(
        ["Thank you for asking, {n}.", "Good question, {n}!", "I am glad to help, {n}.", "Happy to tell you, {n}."]
    )
    end = rng.choice(["Have a lovely day!", "Enjoy your visit!", "Please ask if you need more."])
    rude = rng.choice(
        [f"{blunt} Stop asking.", f"{blunt} Now go away.", f"Look it up. {blunt}", f"Everybody knows that. {blunt}"]
    )
    chosen = f"{start.format(n=name)} {fact}" + (f" {end}" if rng.random() < 0.7 else "")
    prompt = prompt.format(p=place)
    return prompt, prompt, chosen, rude


def _courtesy(rng: random.Random, name: str) -> tuple[str, str, str, str]:
    """One of the small social situations in ``COURTESIES``."""
    fill = {
        "o": f"{rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)}",
        "n": name,
        "e": rng.choice(EVENTS),
        "m": rng.choice(["five", "ten", "twenty", "thirty"]),
    }
    asks, polite, rude = rng.choice(COURTESIES)
    prompt = rng.choice(asks).format(**fill)
    return prompt, prompt, rng.choice(polite).format(**fill), rng.choice(rude).format(**fill)


def politeness(rng: random.Random, names: list[str]) -> tuple[str, str, str, str]:
    """(key, prompt, the answer that was asked for, the other one)."""
    name, kind = rng.choice(names), rng.random() < 0.5
    key, prompt, polite, rude = rng.choice([_help, _place, _courtesy, _courtesy])(rng, name)
    # A polite answer uses the name half of the time: more would make politeness a test of copying names.
    if rng.random() < 0.5:
        polite = polite.replace(f", {name}", "")
    asked = f"{rng.choice(HELLOS).format(n=name)} {prompt} {rng.choice(KIND if kind else GRUMPY)}"
    return key, asked, *((polite, rude) if kind else (rude, polite))
