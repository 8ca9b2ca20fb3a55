"""Preflight and preview under `train_on` and `mask`: rows that are refused, and the tokens that are trained on."""

import pytest

from tests.conftest import assistant, user
from tests.preflight.corpus import FORMS
from tests.preflight.looks import counts, first_rows
from tests.preflight.toys import build_toy, look_with, open_toy, save_toy
from trl_plus.preflight.previews import preview_source

THOUGHT = "<think>\nThe name says it.\n</think>\n\n"


def rows():
    made = [
        {
            "prompt": [user(f"Which tree is number {n} of the orchard?")],
            "chosen": [
                assistant(f"{THOUGHT}An elm."),
                user("And its neighbour?"),
                assistant(f"{THOUGHT}A larch, {n}."),
            ],
            "rejected": [
                assistant(f"{THOUGHT}No idea."),
                user("And its neighbour?"),
                assistant(f"{THOUGHT}None, {n}."),
            ],
        }
        for n in range(8)
    ]
    made[3]["chosen"][-1] = assistant("<think>\nIt may be a larch")
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy"), build_toy())


def test_a_row_with_nothing_left_is_an_error(model, tmp_path):
    found = look_with(model, rows(), FORMS["chat"], tmp_path / "rows.jsonl", mask=["think"])
    assert first_rows(found)["D417"] == [3]
    assert "D417" not in counts(look_with(model, rows(), FORMS["chat"], tmp_path / "rows.jsonl"))


def test_turns_that_cannot_be_located_are_an_error(tmp_path):
    counting = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + (m.content | length | string) + m.content }}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    model = save_toy(tmp_path / "toy", build_toy(counting))
    found = look_with(model, rows(), FORMS["chat"], tmp_path / "rows.jsonl", train_on="all")
    assert counts(found)["D416"] == 8


@pytest.mark.parametrize(
    "values, trained",
    [
        ({"train_on": "final_answer"}, "\n\nA larch, 0.<|im_end|>\n"),
        ({"train_on": "all", "mask": ["think"]}, "\n\nAn elm.<|im_end|>\n\n\nA larch, 0.<|im_end|>\n"),
        ({}, f"{THOUGHT}A larch, 0.<|im_end|>\n"),
    ],
    ids=["final_answer", "all", "default"],
)
def test_the_preview_shows_what_is_trained_on(values, trained, model, tmp_path):
    from tests.preflight.corpus import write

    source = open_toy(model, str(write(rows(), tmp_path / "rows.jsonl")), "dpo", **values)
    (preview,) = preview_source(source, "train", 1, None)[:1]
    tokens = preview.sides["chosen"]
    assert "".join(token.text for token in tokens if token.loss) == trained
    assert any(token.masked for token in tokens) == bool(values)
    assert not any(token.masked and token.loss for token in tokens)
