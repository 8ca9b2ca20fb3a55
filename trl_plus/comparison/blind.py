"""A blind A/B sheet: written without telling which answer is whose, and read back as a win rate.

The sheet has a JSON object a line: `id`, `prompt`, `a`, `b` and an empty `winner`, for a person or a judge to fill with
`a`, `b` or `tie`. The key file beside it tells which answer is the tuned model's.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_plus.errors import DataError
from trl_plus.evaluation.intervals import wilson_interval
from trl_plus.ui.console import counted, say

CHOICES = ("a", "b", "tie")
_NAMED = 5  # rows that an error names


@dataclass(frozen=True)
class Score:
    """The result of a filled sheet.

    Attributes:
        wins, losses, ties: rows, from the tuned model's side. Rows whose answers are identical are not on the sheet and
            count among the ties.
        identical: how many those are.
        rate: wins and half of the ties, as a share of all rows.
        low, high: Wilson's 95% interval of `rate`. A tie varies less than a coin: with ties it is wide.
        longer: share of the decided rows that the longer answer won; None if nothing was decided between answers of
            different lengths.
    """

    wins: int
    losses: int
    ties: int
    identical: int
    rate: float
    low: float
    high: float
    longer: float | None

    @property
    def rows(self) -> int:
        return self.wins + self.losses + self.ties


def key_path(sheet: Path) -> Path:
    """`ab.jsonl` has the key `ab.key.jsonl`."""
    return sheet.with_name(f"{sheet.stem}.key{sheet.suffix}")


def refuse_existing(sheet: Path) -> None:
    """Nothing is written over a sheet.

    Raises:
        DataError: the sheet or its key exists.
    """
    for path in (sheet, key_path(sheet)):
        if path.exists():
            raise DataError(f"--blind: {path} exists, and may be filled already: name another file.")


def write_sheet(rows: Sequence[tuple[str, str, str]], sheet: Path) -> int:
    """Write a sheet and its key; returns the number of rows to judge.

    The order of each row is drawn by the operating system, so that no seed gives it away.

    Args:
        rows: (prompt, base answer, tuned answer).

    Raises:
        DataError: one of the files exists, or cannot be written.
    """
    refuse_existing(sheet)
    key = key_path(sheet)
    draw = random.SystemRandom()
    asked: list[dict[str, Any]] = []
    keys: list[dict[str, Any]] = []
    for number, (prompt, base, tuned) in enumerate(rows, 1):
        name = str(number)
        if base == tuned:
            keys.append({"id": name, "identical": True})
            continue
        a_is_tuned = draw.random() < 0.5
        row = {"id": name, "prompt": prompt, "a": tuned if a_is_tuned else base, "b": base if a_is_tuned else tuned}
        asked.append({**row, "winner": ""})
        keys.append({"id": name, "tuned": "a" if a_is_tuned else "b", "row": _print_of(row)})
    try:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        for path, lines in ((key, keys), (sheet, asked)):
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            path.write_bytes(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DataError(f"--blind: {sheet} cannot be written ({error.strerror}): name another file.") from error
    return len(asked)


def score_sheet(sheet: Path) -> Score:
    """The win rate of a filled sheet.

    Raises:
        DataError: a file is missing, or rows are not filled, missing, twice there or changed; they are named.
    """
    filled = _lines(sheet, "a sheet that --blind has written")
    key = {str(line.get("id")): line for line in _lines(key_path(sheet), "the key that was written with the sheet")}
    identical = sum(bool(line.get("identical")) for line in key.values())
    _check(sheet, filled, key)
    counts = {"win": 0, "loss": 0, "tie": identical}
    longer: list[bool] = []
    for row in filled:
        winner = _winner(row)
        outcome = "tie" if winner == "tie" else "win" if winner == key[str(row["id"])]["tuned"] else "loss"
        counts[outcome] += 1
        if winner != "tie" and len(row["a"]) != len(row["b"]):
            longer.append((len(row["a"]) > len(row["b"])) == (winner == "a"))
    total = sum(counts.values())
    if not total:
        raise DataError(f"--score: {sheet} holds no row: write it with --blind.")
    rate = (counts["win"] + counts["tie"] / 2) / total
    low, high = wilson_interval(rate, total)
    share = sum(longer) / len(longer) if longer else None
    return Score(counts["win"], counts["loss"], counts["tie"], identical, rate, low, high, share)


def _check(sheet: Path, filled: Sequence[dict[str, Any]], key: dict[str, dict[str, Any]]) -> None:
    """Name every row that cannot be counted."""
    names = [str(row.get("id")) for row in filled]
    asked = [name for name, line in key.items() if not line.get("identical")]
    known = [row for row, name in zip(filled, names, strict=True) if name in asked]
    problems = {
        "set `winner` to a, b or tie in": [str(row["id"]) for row in known if _winner(row) not in CHOICES],
        "put back": [name for name in asked if name not in names],
        "keep only one of": sorted({name for name in names if names.count(name) > 1}),
        "use the key that was written with the sheet, since it lacks": [name for name in names if name not in asked],
        "put back the prompt and the answers as they were written in": [
            str(row["id"]) for row in known if _print_of(row) != key[str(row["id"])].get("row")
        ],
    }
    found = [f"{cure} {_named(rows)}" for cure, rows in problems.items() if rows]
    if found:
        raise DataError(f"--score: {sheet}: {'; '.join(found)}.")


def _named(rows: Sequence[str]) -> str:
    more = len(rows) - _NAMED
    named = ", ".join(rows[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{'row' if len(rows) == 1 else 'rows'} {named}"


def _winner(row: dict[str, Any]) -> str:
    return str(row.get("winner") or "").strip().lower()


def _print_of(row: dict[str, Any]) -> str:
    """A fingerprint of a row's texts."""
    texts = json.dumps([row.get(name) for name in ("prompt", "a", "b")])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def _lines(path: Path, what: str) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"--score: there is no {path}: it must be {what}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--score: {path} cannot be read ({error}): it must be {what}.") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"--score: {path}, line {number} is no JSON object: keep one object a line.")
        rows.append(row)
    return rows


# -- the win rate in words and as JSON ----------------------------------------------------------------------------

SCHEMA_VERSION = 1  # rises when a key goes or changes its meaning; keys may be added within a version


def show_score(score: Score, as_json: bool) -> None:
    """Print the win rate of a sheet."""
    if as_json:
        rate = {"value": score.rate, "low": score.low, "high": score.high, "interval": "Wilson 95%"}
        counts = {name: getattr(score, name) for name in ("rows", "wins", "losses", "ties", "identical")}
        print(json.dumps({"schema_version": SCHEMA_VERSION, **counts, "win_rate": rate, "longer_won": score.longer}))
        return
    for sentence in score_sentences(score):
        say(sentence)


def score_sentences(score: Score) -> list[str]:
    """A filled sheet in sentences."""
    among = f", {score.identical} of them identical answers" if score.identical else ""
    rows = counted(score.rows, "row")
    found = [
        f"The tuned model wins {score.wins}, loses {score.losses} and ties {score.ties} of {rows}{among}.",
        f"Win rate {score.rate:.3f}, 95% interval {score.low:.3f} to {score.high:.3f} (Wilson; a tie counts half).",
    ]
    if score.longer is not None:
        found.append(f"The longer answer won {score.longer:.0%} of the decided rows.")
    return found
