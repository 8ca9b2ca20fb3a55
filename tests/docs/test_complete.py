"""Pages that list what there is list all of it. docs/recipes.md and docs/data.md: tests/recipes, tests/data."""

import re

from tests.docs.pages import ROOT
from trl_plus.methods import METHODS


def test_objectives_are_complete():
    """Every method, every key of ours and every loss has its place in docs/objectives.md."""
    from trl_plus import objectives
    from trl_plus.trainers import configs

    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    for method in METHODS:
        assert f"`{method}`" in text, method
    for config in ("DPOConfig", "SimPOConfig", "ORPOConfig", "CPOConfig"):
        own = [name for name, kind in getattr(configs, config).__annotations__.items() if "ClassVar" not in str(kind)]
        for name in own:
            assert name == "overlong" or f"`{name}" in text, name
    losses = set(objectives.__all__) - {"Completions", "log1mexp", "log_odds", "log_odds_ratio", "reference_point"}
    for name in losses:
        assert f"`{name}`" in text or f": {name}`" in text, name


def test_the_table_of_preflight_is_that_of_the_checks():
    """`python scripts/preflight_codes.py` prints it."""
    import runpy

    wanted = runpy.run_path(str(ROOT / "scripts" / "preflight_codes.py"))["lines"]()
    page = (ROOT / "docs" / "preflight.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if re.match(r"\| D\d+ \|", line)] == wanted
