"""The tables of a run."""

import pytest
from rich.console import Console

from trl_plus.comparison.prompts import generate, held_out_prompts, prompt_text
from trl_plus.evaluation.intervals import held_out_table, wilson_interval


def text(renderable):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_wilson_by_hand():
    # p = 1/2, n = 100, z = 1.96: centre 1/2, half-width z sqrt(25 + z^2/4) / (n + z^2) = 0.09617
    low, high = wilson_interval(0.5, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0.0)


def test_table():
    before = {"eval_rewards/accuracies": 0.0, "eval_rewards/margins": 0.0, "eval_loss": 0.6931}
    after = {"eval_rewards/accuracies": 0.75, "eval_rewards/margins": 1.5, "eval_loss": 0.4}
    shown = text(held_out_table(before, after, 100, has_reference=True))
    assert "0.750 [0.657, 0.825]" in shown
    assert "its own reference" in shown
    assert "its own reference" not in text(held_out_table(before, after, 100, has_reference=False))
    assert "0.750" in text(held_out_table(None, after, None, has_reference=True))
    without = text(held_out_table({"eval_rewards/margins": 0.0}, {"eval_rewards/margins": 1.0}, 5, has_reference=True))
    assert "accuracy" not in without


def test_prompts_of_any_format(pair_rows, unpaired_rows):
    pair = pair_rows(1)[0]
    whole = {side: pair["prompt"] + pair[side] for side in ("chosen", "rejected")}
    assert held_out_prompts([pair, whole], 3) == [pair["prompt"]]
    assert len(held_out_prompts(unpaired_rows(8), 3)) == 3  # two rows to a prompt
    assert held_out_prompts([{"prompt": "a", "chosen": "b", "rejected": "c"}], 3) == ["a"]
    assert held_out_prompts([{"chosen": "a b", "rejected": "a c"}], 3) == ["a"]
    assert prompt_text([{"role": "user", "content": "hi"}]) == "user: hi"


def test_generation_is_the_same_alone_and_in_a_batch(tiny_model_dir, tokenizer, pair_rows):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).train()
    prompts = [row["prompt"] for row in pair_rows(3)]
    together = generate(model, tokenizer, prompts)
    assert model.training
    assert together == [generate(model, tokenizer, [prompt])[0] for prompt in prompts]
