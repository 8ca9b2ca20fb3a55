"""The win rate of a filled blind sheet, in sentences or as JSON."""

import json

from trl_plus.comparison.blind import Score
from trl_plus.ui.console import say

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
    found = [
        f"The tuned model wins {score.wins}, loses {score.losses} and ties {score.ties} of {score.rows} rows{among}.",
        f"Win rate {score.rate:.3f}, 95% interval {score.low:.3f} to {score.high:.3f} (Wilson; a tie counts half).",
    ]
    if score.longer is not None:
        found.append(f"The longer answer won {score.longer:.0%} of the decided rows.")
    return found
