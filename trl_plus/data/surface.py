"""Surface features of a response: figures that need no reading, such as its length, lists, openings and marks.

`measure` turns responses into one row of `FEATURES` each. Characters are counted for all responses of a batch at once,
on their UTF-8 bytes; lines and openings are looked at one response at a time. Imports only numpy.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from os.path import commonprefix  # of characters, which is meant here
from string import ascii_lowercase, ascii_uppercase, digits
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
Keys = NDArray[np.uint32]


@dataclass(frozen=True)
class Feature:
    """One figure of a response.

    Attributes:
        name: stable, as `--json` prints it.
        more: what a response is or has if the figure is high, as it follows "the preferred side".
        less: the same if the figure is low.
        size: it measures how long the response is.
    """

    name: str
    more: str
    less: str
    size: bool = False


FEATURES = (
    Feature("characters", "is longer in characters", "is shorter in characters", size=True),
    Feature("words", "has more words", "has fewer words", size=True),
    Feature("lines", "has more lines", "has fewer lines", size=True),
    Feature("sentences", "has more sentences", "has fewer sentences", size=True),
    Feature("tokens", "has more tokens", "has fewer tokens", size=True),
    Feature("paragraphs", "has more paragraphs", "has fewer paragraphs"),
    Feature("word_length", "has longer words", "has shorter words"),
    Feature("list_items", "has more list items", "has fewer list items"),
    Feature("numbered_items", "has more numbered items", "has fewer numbered items"),
    Feature("headings", "has more headings", "has fewer headings"),
    Feature("tables", "has more table rows", "has fewer table rows"),
    Feature("bold", "has more bold or italic marks", "has fewer bold or italic marks"),
    Feature("code", "has more code marks", "has fewer code marks"),
    Feature("think_opened", "opens a thinking block", "opens no thinking block"),
    Feature("think_closed", "closes a thinking block", "closes no thinking block"),
    Feature("refusal", "opens with a refusal or an apology", "opens without a refusal or an apology"),
    Feature("affirmation", "opens with an affirmation", "opens without an affirmation"),
    Feature("stock_opening", "opens with words that many responses open with", "opens with words of its own"),
    Feature("stock_ending", "ends with words that many responses end with", "ends with words of its own"),
    Feature("first_person", "speaks of itself more (I, my)", "speaks of itself less (I, my)"),
    Feature("questions", "has more question marks", "has fewer question marks"),
    Feature("question_end", "ends with a question", "does not end with a question"),
    Feature("exclamations", "has more exclamation marks", "has fewer exclamation marks"),
    Feature("digits", "has a larger share of digits", "has a smaller share of digits"),
    Feature("capitals", "has a larger share of capitals", "has a smaller share of capitals"),
    Feature("lower_start", "does not start with a capital", "starts with a capital"),
    Feature("commas", "has more commas and colons per word", "has fewer commas and colons per word"),
    Feature("quotes", "has more quotation marks", "has fewer quotation marks"),
    Feature("brackets", "has more brackets", "has fewer brackets"),
    Feature("links", "has more links", "has fewer links"),
    Feature("emoji", "has more emoji", "has fewer emoji"),
    Feature("accents", "has more accented Latin letters", "has fewer accented Latin letters"),
    Feature("other_scripts", "has more letters of other scripts", "has fewer letters of other scripts"),
    Feature("east_asian", "has more Chinese, Japanese or Korean", "has less Chinese, Japanese or Korean"),
    Feature("end_mark", "ends with a full stop or another end mark", "ends without an end mark"),
    Feature("outer_space", "begins or ends with white space", "begins and ends without white space"),
    Feature("template_marks", "holds more marks of a chat template", "holds fewer marks of a chat template"),
    Feature("repetition", "repeats its words more", "repeats its words less"),
    Feature("prompt_start", "begins with the prompt's own words", "begins without the prompt's own words"),
)  # fmt: skip
NAMES = tuple(feature.name for feature in FEATURES)
_PLACE = {name: place for place, name in enumerate(NAMES)}
TOKENS, STOCK = _PLACE["tokens"], (_PLACE["stock_opening"], _PLACE["stock_ending"])  # filled in by others

_I_AM = r"i(?:(?:'|’)?m| am) (?:really |very |so )?(?:sorry|afraid|unable|not able|not comfortable)"
_NOT = r"(?:can(?:no|'|’| )?t|won(?:'|’)t|will not|do not|don(?:'|’)t|must decline|have to decline|apologi[sz]e|regret)"
_REFUSAL = re.compile(
    rf"(?:\W|sorry,? but|unfortunately|however)*(?:{_I_AM}|i {_NOT}|as an ai|as a (?:large )?language model|sorry|no, i"
    r"|my apologies|apologies|unfortunately|lo siento|je suis désolé|es tut mir leid|entschuldigung)\b",
    re.IGNORECASE,
)
_AFFIRMATION = re.compile(
    r"\W*(?:sure(?:ly)?|certainly|of course|absolutely|definitely|yes|yeah|yep|great|good (?:question|idea)|okay|ok"
    r"|happy to|i(?:'|’)d (?:be|love)|no problem|here (?:is|are)|here(?:'|’)s|gladly|perfect|awesome"
    r"|thank(?:s| you))\b",
    re.IGNORECASE,
)
_ITEM = re.compile(r"\s*(?:[-*+•‣◦–]|\(?[a-zA-Z][.)])\s")
_NUMBERED = re.compile(r"\s*\(?\d{1,3}[.):]\s")
_HEADING = re.compile(r"\s*(?:#{1,6}\s|\*\*[^*]+\*\*:?\s*$)")
_FIRST_PERSON = (" I ", " I'", " I’", " my ", " me ")
_MARKS = ("<|", "|>", "[INST]", "[/INST]", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "### ", "Human:",
          "Assistant:", "User:")  # fmt: skip
_ENDS = ".!?…。！？\"'”’)`}]>।؟"

# What a byte of UTF-8 counts as
_CLASSES = ("letter", "upper", "digit", "space", "newline", "question", "exclamation", "comma", "stop", "quote",
            "bracket", "star", "tick", "rest", "inner", "latin", "script", "asian", "symbol", "emoji")  # fmt: skip
_AT = {name: place for place, name in enumerate(_CLASSES)}


def _byte_classes() -> NDArray[np.uint8]:
    table = np.full(256, _AT["rest"], np.uint8)
    for name, characters in {
        "letter": ascii_lowercase, "upper": ascii_uppercase, "digit": digits, "space": " \t\r", "newline": "\n",
        "question": "?", "exclamation": "!", "comma": ",;:", "stop": ".", "quote": '"', "bracket": "()[]{}",
        "star": "*_", "tick": "`",
    }.items():  # fmt: skip
        table[[ord(character) for character in characters]] = _AT[name]
    table[0x80:0xC0] = _AT["inner"]  # the second and later bytes of a character
    table[0xC2:0xCC] = _AT["latin"]
    table[0xCC:0xE1] = _AT["script"]  # Greek, Cyrillic, Hebrew, Arabic, Indic scripts, Thai
    table[0xE1] = _AT["latin"]  # Vietnamese
    table[0xE2] = _AT["symbol"]  # typographic quotation marks, dashes, bullets
    table[0xE3:0xEE] = _AT["asian"]
    table[0xEE:0xF0] = _AT["symbol"]
    table[0xF0:] = _AT["emoji"]
    return table


_CLASS_OF = _byte_classes()
_CHUNK = 2**20  # characters that are counted at once


def measure(responses: Sequence[str], prompts: Sequence[str]) -> Features:
    """(N, F): the features of N responses. Those that need more than the text are 0: see `with_stock`.

    Args:
        prompts: (N,), the message that each response answers.
    """
    found = np.zeros((len(responses), len(FEATURES)), np.float32)
    if not len(responses):
        return found
    counts = _character_counts(responses)
    lines = np.array([_of_lines(text) for text in responses], np.float32)
    marks = np.array([_of_text(*both) for both in zip(responses, prompts, strict=True)], np.float32)
    counts, words, sentences = counts[:, :-2], counts[:, -2], counts[:, -1]
    characters = counts.sum(1) - counts[:, _AT["inner"]]
    one = {name: counts[:, place] for name, place in _AT.items()}
    size, spoken = np.maximum(characters, 1), np.maximum(words, 1)
    letters = np.maximum(one["letter"] + one["upper"], 1)
    numbers = {
        "characters": characters, "words": words, "lines": one["newline"], "sentences": sentences, "bold": one["star"],
        "code": one["tick"], "questions": one["question"], "exclamations": one["exclamation"], "quotes": one["quote"],
        "brackets": one["bracket"], "emoji": one["emoji"], **dict(zip(_LINES, lines.T, strict=True)),
    }  # fmt: skip
    shares = {
        "digits": one["digit"] / size, "capitals": one["upper"] / letters, "accents": one["latin"] / size,
        "other_scripts": one["script"] / size, "east_asian": one["asian"] / size,
    }  # fmt: skip
    columns = {
        **{name: np.log1p(values) for name, values in numbers.items()},
        **{name: np.sqrt(values) for name, values in shares.items()},
        **dict(zip(_TEXT, marks.T, strict=True)),
        "word_length": np.minimum(size / spoken, 20),
        "commas": np.minimum(one["comma"] / spoken, 2),
    }
    for name, values in columns.items():
        found[:, _PLACE[name]] = values
    return found


def stock_keys(responses: Sequence[str]) -> Keys:
    """(N, 2): hashes of how each response opens (two words) and ends (three words)."""
    found = np.zeros((len(responses), 2), np.uint32)
    for place, text in enumerate(responses):
        opening, ending = text[:200].lower().split(None, 2)[:2], text[-200:].lower().split()[-3:]
        found[place] = [crc32(" ".join(words).encode("utf-8", "surrogatepass")) for words in (opening, ending)]
    return found


@dataclass(frozen=True)
class Stock:
    """How often openings and endings occur among the responses that a rule is fitted on.

    Attributes:
        responses: how many these are.
        counts: key -> how many of them have it; of openings, then of endings.
    """

    responses: int
    counts: tuple[tuple[Keys, NDArray[np.int64]], ...]

    @classmethod
    def of(cls, keys: Keys) -> "Stock":
        """Of keys, (N, 2)."""
        found = tuple(np.unique(column, return_counts=True) for column in keys.T)
        return cls(len(keys), found)

    def common(self, keys: Keys, own: bool) -> NDArray[np.float64]:
        """(N, 2): log(1 + others per thousand responses that open, or end, like each of N responses).

        Args:
            own: the N responses are among those counted, so each is left out of its own count.
        """
        found = np.zeros(keys.shape)
        for side, (known, counts) in enumerate(self.counts):
            place = np.minimum(np.searchsorted(known, keys[:, side]), max(len(known) - 1, 0))
            times = np.where(known[place] == keys[:, side], counts[place], own) if len(known) else np.zeros(len(keys))
            found[:, side] = np.log1p(1000 * (times - own) / max(self.responses, 1))
        return found


def _character_counts(texts: Sequence[str]) -> NDArray[np.float64]:
    """(N, classes + 2): bytes of each class, words, and sentences. `_CHUNK` and the longest text bound memory."""
    chunk = np.cumsum([len(text) for text in texts]) // _CHUNK
    cuts = (np.flatnonzero(np.diff(chunk)) + 1).tolist()
    parts = zip([0, *cuts], [*cuts, len(texts)], strict=True)
    return np.concatenate([_counts_of(texts[start:end]) for start, end in parts])


def _counts_of(texts: Sequence[str]) -> NDArray[np.float64]:
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    starts = np.concatenate([[0], np.cumsum([len(part) + 1 for part in parts])])
    kinds = _CLASS_OF[np.frombuffer(b"\n".join(parts) + b"\n", np.uint8)]
    row = np.repeat(np.arange(len(texts)), np.diff(starts))
    width = len(_CLASSES)
    counts = np.bincount(row * width + kinds, minlength=len(texts) * width).reshape(len(texts), width)
    counts[:, _AT["newline"]] -= 1  # the one between two responses
    blank = (kinds == _AT["space"]) | (kinds == _AT["newline"])
    before = np.concatenate([[_AT["newline"]], kinds[:-1]])
    ended = (before == _AT["stop"]) | (before == _AT["question"]) | (before == _AT["exclamation"])
    after_blank = np.concatenate([[True], blank[:-1]])
    words = np.bincount(row[after_blank & ~blank], minlength=len(texts))
    return np.column_stack([counts, words, np.bincount(row[blank & ended], minlength=len(texts))]).astype(float)


_LINES = ("paragraphs", "list_items", "numbered_items", "headings", "tables")


def _of_lines(text: str) -> tuple[int, ...]:
    """How many `_LINES` a response has."""
    paragraphs = items = numbered = headings = tables = 0
    for line in text.split("\n") if "\n" in text else (text,):
        start = line.lstrip()[:1]
        if not start:
            paragraphs += 1
        elif start.isdigit() or start == "(":
            numbered += _NUMBERED.match(line) is not None
        elif start == "|":
            tables += 1
        elif start in "#*" and _HEADING.match(line):
            headings += 1
        elif start in "-*+•‣◦–" or line.lstrip()[1:2] in (".", ")"):
            items += _ITEM.match(line) is not None
    return paragraphs, items, numbered, headings, tables


_TEXT = ("think_opened", "think_closed", "refusal", "affirmation", "first_person", "question_end", "lower_start",
         "links", "end_mark", "outer_space", "template_marks", "repetition", "prompt_start")  # fmt: skip


def _of_text(text: str, prompt: str) -> tuple[float, ...]:
    """`_TEXT` of a response."""
    bare = text.strip()
    start, last = bare[:120], bare[-1:]
    tags, words = "<" in text, bare.split()
    shared = len(commonprefix((bare[:200].lower(), prompt.strip()[:200].lower()))) if prompt else 0  # noqa: RUF071
    return (
        tags and ("<think" in text or "<reasoning" in text),
        tags and ("</think" in text or "</reasoning" in text),
        _REFUSAL.match(start) is not None,
        _AFFIRMATION.match(start) is not None,
        (sum(map(text.count, _FIRST_PERSON)) + start.startswith(("I ", "I'", "I’", "My "))) ** 0.5,
        last in ("?", "？"),
        start[:1].islower(),
        text.count("http") ** 0.5,
        bool(last) and last in _ENDS,
        len(bare) != len(text),
        sum(map(text.count, _MARKS)) ** 0.5,
        1 - log(len(set(words))) / log(len(words)) if len(words) > 1 else 0.0,  # Herdan 1960: hardly grows with length
        min(shared, 40) / 40,
    )


def read_responses(sides: Sequence[Sequence[str]], prompts: Sequence[str]) -> tuple[Features, Keys]:
    """The features of responses from their texts alone: `measure`, (N, sides, F), and `stock_keys`, (N, sides, 2).

    Args:
        sides: N responses of each side.
        prompts: (N,), the message that they answer.
    """
    return np.stack([measure(side, prompts) for side in sides], 1), np.stack([stock_keys(side) for side in sides], 1)


def of_responses(
    sides: Sequence[Sequence[str]], prompts: Sequence[str], stock: Stock | None = None
) -> tuple[Features, Stock]:
    """Features of responses, (N, sides, F), without lengths in tokens, and how common their openings and endings are.

    Args:
        stock: of other responses, which a rule was fitted on; None for these themselves.
    """
    return with_stock(*read_responses(sides, prompts), stock)


def with_stock(measured: Features, keys: Keys, stock: Stock | None = None) -> tuple[Features, Stock]:
    """`of_responses`, from `read_responses`."""
    flat = keys.reshape(-1, 2)
    known = Stock.of(flat) if stock is None else stock
    measured = measured.copy()
    measured[..., STOCK] = known.common(flat, own=stock is None).reshape(keys.shape)
    return measured, known
