"""Arguments that Typer cannot express: `--resume` with an optional path."""

from collections.abc import Sequence

from trl_plus.runs.resume import NEWEST


def normalise(words: Sequence[str]) -> list[str]:
    """Return the words of the command line with `--resume` without a path written as `--resume=newest`.

    The word after `--resume` is its path unless it is an option or an override (`KEY=VALUE`).
    """
    out: list[str] = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else "-"
        bare = word == "--resume" and (following.startswith("-") or "=" in following)
        out.append(f"--resume={NEWEST}" if bare else word)
    return out


def with_dashes(option: str) -> str:
    """Return the name of an option as it is declared: `--dry_run` is `--dry-run`. Click leaves other words alone."""
    return option.replace("_", "-")
