"""D3xx: what stands in the texts: broken characters, invisible ones, personal data, secrets, scores."""

import re

from trl_plus.preflight.registry import INFO, WARNING, text_check
from trl_plus.preflight.rows import Row, excerpt

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
    ("reward_chosen", "reward_rejected"),
    ("chosen_reward", "rejected_reward"),
)
# UTF-8 read as Latin-1 or Windows-1252: a lead byte's letter followed by a continuation byte's sign
_MOJIBAKE = re.compile(
    "[ÃÂ](?:[\x80-\xbf\u20ac\u2122\u0152\u0153\u0160\u0161]|[\u2018-\u201d](?=\\w))"  # a closing quote ends a word
    "|â€[\x80-\xbf\u2122\u0153œ˜¦“”]|â‚¬|ðŸ"
)
# zero-width, direction marks, tag characters, control characters other than tab and line breaks; the flag of England
# and its like are written with tag characters
_INVISIBLE = re.compile(
    "\U0001f3f4[\U000e0020-\U000e007f]+|([\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060-\u2064\ufeff\u202a-\u202e"
    "\u2066-\u2069\U000e0000-\U000e007f\ud800-\udfff])"
)
_EMAIL = re.compile(
    r"\b(?!git@)[\w.+-]{1,64}@(?!(?:[\w-]+\.)*(?:example|test|domain|email)\.)[\w-]+(?:\.[\w-]+)*\.[a-z]{2,24}\b",
    re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?\(?\d{2,4}\)?(?:[ .-]\d{2,4}){2,3}|\(\d{3}\) ?\d{3}-\d{4})(?![\w-])"
)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_CARD = re.compile(
    r"(?<![\w.-])(?:\d{4}[ -]){3}\d{4}(?![\w-])|(?<![\w.-])(?:4\d{15}|5[1-5]\d{14}|3[47]\d{13}|6011\d{12})(?![\w.-])"
)
_SECRET_MARKS = ("AKIA", "PRIVATE KEY", "gh", "hf_", "sk-", "xox", "AIza", "eyJ")  # one of which every secret has
_DIGITS = re.compile(r"\d{2}")
_SECRET = re.compile(
    r"\bAKIA[0-9A-Z]{16}\b|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bhf_[A-Za-z]{34}\b"
    r"|\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{24,}\b|\bxox[abprs]-[A-Za-z0-9-]{12,}\b|\bAIza[A-Za-z0-9_-]{35}\b"
    r"|\beyJ[A-Za-z0-9_-]{12,}\.eyJ[A-Za-z0-9_-]{12,}\.[A-Za-z0-9_-]{12,}"
)


def _first_match(row: Row, pattern: re.Pattern[str]) -> str | None:
    for where, text in row.texts:
        match = pattern.search(text)
        if match:
            return f"{where}: {excerpt(text, match.start())}"
    return None


@text_check(
    "D301",
    WARNING,
    "text was decoded wrongly: replacement characters, or UTF-8 read as another encoding",
    "Read the source again as UTF-8, or repair the text (the ftfy package does).",
)
def broken_encoding(row: Row) -> str | None:
    for where, text in row.texts:
        if text.isascii():
            continue
        at = text.find("\ufffd")
        match = None if at >= 0 else _MOJIBAKE.search(text)
        if at >= 0 or match:
            return f"{where}: {excerpt(text, at if match is None else match.start())}"
    return None


@text_check(
    "D302",
    INFO,
    "text holds invisible characters: control, zero-width or direction marks",
    "Remove them unless the language needs them: the model learns to write them.",
)
def invisible_characters(row: Row) -> str | None:
    for where, text in row.texts:
        if text.isascii() and text.isprintable():
            continue
        match = next((match for match in _INVISIBLE.finditer(text) if match.group(1)), None)
        if match:
            return f"{where}: U+{ord(match.group(1)):04X} at {match.start()}"
    return None


@text_check(
    "D303",
    INFO,
    "text looks like personal data: an e-mail address, phone, card or social security number",
    "Mask what is real before training: models repeat such strings.",
)
def personal_data(row: Row) -> str | None:
    for where, text in row.texts:
        found = _EMAIL.search(text) if "@" in text else None
        found = found or _number(text)
        if found:
            return f"{where}: {found.group()[:4]}... at {found.start()}"
    return None


def _number(text: str) -> re.Match[str] | None:
    if not _DIGITS.search(text):
        return None
    card = next((match for match in _CARD.finditer(text) if _luhn(match.group())), None)
    return card or _PHONE.search(text) or _SSN.search(text)


def _luhn(number: str) -> bool:
    """True if the check digit of a card number is right (ISO/IEC 7812)."""
    digits = [int(character) for character in number if character.isdigit()]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0


@text_check(
    "D304",
    INFO,
    "text looks like a secret: a key, a token or a private key",
    "Revoke it if it is real, and mask it before training.",
)
def secrets(row: Row) -> str | None:
    for where, text in row.texts:
        found = _SECRET.search(text) if any(mark in text for mark in _SECRET_MARKS) else None
        if found:
            return f"{where}: {found.group()[:6]}... at {found.start()}"
    return None


@text_check(
    "D305",
    WARNING,
    "the score of the chosen side is below that of the rejected side",
    "Swap the sides of these rows, or remove them: the score and the pair say opposite things.",
)
def score_contradicts(row: Row) -> str | None:
    if not row.paired:
        return None
    for chosen, rejected in SCORES:
        a, b = as_number(row.raw.get(chosen)), as_number(row.raw.get(rejected))
        if a is not None and b is not None and a < b:
            return f"{chosen} {a:g} < {rejected} {b:g}"
    return None


def as_number(value: object) -> float | None:
    """A score, which tables may keep as text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number == number else None
