"""The layout that each model family gets is proved with gradients, and stands in docs/speed.md."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from trl_plus.forward.packing import RowLayout

sys.path.append(str(Path(__file__).parent))

from family_models import FAMILIES, build, layout_and_reason, reason_of, rows, table

SPEED = (Path(__file__).parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def verdict():
    """verdict(family) -> (model, reason), each made once."""
    made = {}

    def of(family):
        if family not in made:
            model = build(family)
            made[family] = model, reason_of(model)
        return made[family]

    return of


LINES = re.findall(r"^\| `\w+` \|.*\|$", SPEED.partition("### Families")[2].partition("\n## ")[0], re.MULTILINE)
DOCUMENTED = {
    family: (layout, reason)
    for layout, names, reason in (re.fullmatch(r"\| `(\w+)` \| (.+) \| (.*) \|", line).groups() for line in LINES)
    for family in names.split(", ")
}


def test_the_table_is_the_one_that_is_printed():
    """Each family once, in the order and grouping of `python tests/families/family_models.py`."""
    assert set(DOCUMENTED) == set(FAMILIES)
    assert table({family: DOCUMENTED[family] for family in FAMILIES}) == LINES


@pytest.mark.parametrize("family", FAMILIES)
def test_documented(family, verdict):
    """Layout and reason under the version that the table names; under another one no family may lose its layout."""
    found = layout_and_reason(verdict(family)[1])
    if version("transformers") == re.search(r"with transformers (\d+\.\d+\.\d+)", SPEED)[1]:
        assert found == DOCUMENTED[family]
    else:
        assert found[0] == "packed" or DOCUMENTED[family][0] == "rows"


def gradient(model, layout):
    for inner in {id(m): m for m in model.modules()}.values():
        inner.zero_grad()
    row_layout = RowLayout(model, layout)
    output = model(**rows(), fused_lm_head=True, use_cache=False)
    weights = torch.linspace(0, 1, output.log_probs.numel()).view_as(output.log_probs)
    (output.log_probs * weights).sum().backward()
    row_layout.layout = "rows"
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_what_is_laid_out(family, layout, verdict):
    """The start of a run compares values; here, that gradients agree wherever it finds the values right."""
    model, reason = verdict(family)
    if reason is not None:
        assert layout_and_reason(reason)[0] == "rows"
        return
    plain, laid_out = gradient(model, "rows"), gradient(model, layout)
    assert (plain - laid_out).norm() / plain.norm() < 1e-5


def test_router_statistics_are_those_of_the_rows():
    """The load-balancing loss counts the tokens of the rows as they were, prompts of a pair twice."""
    losses = []
    for layout in ("rows", "packed"):
        model = build("qwen2_moe")
        RowLayout(model, layout)
        losses.append(model(**rows(), fused_lm_head=True, use_cache=False, output_router_logits=True).aux_loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_nothing_of_ours_is_saved_with_a_model(tmp_path, verdict):
    """Eager attention gets a name of ours while training, which no other program would know."""
    model, _ = verdict("gemma2")
    model.save_pretrained(tmp_path)
    assert "trl_plus" not in (tmp_path / "config.json").read_text()
