"""docs/extending.md: every block runs, and what the page calls exact does not depend on how a step is cut."""

import pytest

from tests.docs.pages import blocks

BLOCKS = [code for code in blocks("python") if code.page.endswith("extending.md")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the blocks define, after all of them ran."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("extending"))
        names = {"__name__": "extending"}
        for code in BLOCKS:
            exec(compile(code.text, code.id, "exec"), names)
    return names


def test_the_page_has_an_example_of_each_kind(page):
    assert len(BLOCKS) >= 11
    assert {"DPOPositive", "StaysNear", "Shortens", "StopsWhenSeparated", "Curriculum", "FasterHead"} <= page.keys()


@pytest.mark.parametrize("name", ["DPOPositive", "LengthPenalty", "StaysNear", "KeepsLogitsSmall"])
def test_exact_examples_do_not_depend_on_the_cut(name, page, tmp_path):
    losses = []
    for batch, accumulation in ((8, 1), (3, 4)):
        args = page["config"](
            output_dir=str(tmp_path), max_steps=1, logging_steps=1, learning_rate=0.0, beta=0.5,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_grad_norm=1.0,
        )  # fmt: skip
        log = page["train"](page[name], args).state.log_history[0]
        losses.append((log["loss"], log["grad_norm"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
