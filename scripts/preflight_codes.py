"""Print the codes of preflight as a table.

python scripts/preflight_codes.py          # the table of docs/preflight.md
python scripts/preflight_codes.py --fix    # with the fix that a finding prints
"""

import argparse

from trl_plus.preflight import checks, run, unused  # noqa: F401  (checks registers them)
from trl_plus.preflight.registry import every_check
from trl_plus.preflight.run import OTHER_SPLITS, REFUSALS
from trl_plus.preflight.with_model import CODES


def lines(fix: bool = False) -> list[str]:
    """One table row per code, in the order of the codes: severity, title and, with `fix`, the fix."""
    rows = {code: ("error", title, cure) for code, (title, cure) in REFUSALS.items()}
    rows |= {code: (severity.value, title, cure) for code, (severity, title, cure) in CODES.items()}
    rows[OTHER_SPLITS[0]] = ("info", *OTHER_SPLITS[1:])
    rows[run.LEFT_OUT] = (f"warning, rare: {run.RARE:.0%}", run.TITLE, run.CURE)
    rows[unused.CODE] = ("warning or info", unused.TITLE, unused.CURE)
    for code, check in every_check().items():
        rare = f", rare: {check.rare:.0%}" if check.rare else ""
        rows[code] = (f"{check.severity.value}{rare}", check.title, check.cure)
    return [f"| {code} | {' | '.join(rows[code][: 3 if fix else 2])} |" for code in sorted(rows)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fix", action="store_true", help="add what a finding prints as its fix")
    print("\n".join(lines(parser.parse_args().fix)))
