"""What Typer cannot express: `--resume` with an optional path, and `_` for `-` in our own options."""

from collections.abc import Sequence

from trl_plus.recipes.checkpoints import NEWEST

_OURS = (
    "dry-run",
    "accelerate-config",
    "num-processes",
    "no-preflight",
    "num-proc",
    "with-model",
    "max-shard-size",
    "max-new-tokens",
    "batch-size",
)
_OPTIONS = {f"--{name.replace('-', '_')}": f"--{name}" for name in _OURS}


def normalise(words: Sequence[str]) -> list[str]:
    """The words of the command line, `--resume` without a path written as `--resume=newest`.

    What follows `--resume` is its path unless it is an option or an override (`KEY=VALUE`).
    """
    out: list[str] = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else "-"
        if word == "--resume" and (following.startswith("-") or "=" in following):
            out.append(f"--resume={NEWEST}")
        else:
            option, equals, value = word.partition("=")
            out.append(_OPTIONS.get(option, option) + equals + value)
    return out
