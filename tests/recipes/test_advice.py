"""Advice that a message gives is complete: the command of this run, the keys that can be changed."""

import shlex
from types import SimpleNamespace

import pytest
import torch

from trl_plus.data.files import missing_path
from trl_plus.recipes.recipe import load_recipe, parse_overrides
from trl_plus.setup.machine_errors import explain
from trl_plus.setup.plan import effective_batch, size_notes
from trl_plus.training.run import _weight


@pytest.mark.parametrize("words", [["beta=2.5"], ["--beta", "2.5", "output_dir=my runs"], ["run_name=it's; $HOME"], []])
def test_a_command_has_the_overrides_of_the_run(words):
    recipe = load_recipe("quickstart", words)
    program, name, argument, *rest = shlex.split(recipe.command("preflight"))
    assert (program, name, rest) == ("trl-plus", "preflight", words)
    again = load_recipe(argument, rest)
    assert again.values == recipe.values
    assert parse_overrides(rest) == parse_overrides(words)


def test_a_command_survives_what_the_machine_decides():
    recipe = load_recipe("quickstart", ["beta=2.5"]).with_machine("seed", 1, "a note")
    assert recipe.command("estimate") == "trl-plus estimate quickstart beta=2.5"
    assert "`trl-plus estimate quickstart beta=2.5`" in explain(MemoryError(), recipe)


def test_an_absolute_path_is_not_called_relative(tmp_path):
    assert missing_path("/none/rows.jsonl") == "/none/rows.jsonl does not exist: check the path."
    assert "relative to" in missing_path("rows.jsonl")
    assert "relative to" not in missing_path("~/rows.jsonl")


def batches(rows, **args):
    args = SimpleNamespace(**{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, **args})
    objects = SimpleNamespace(
        args=args, recipe=SimpleNamespace(method=SimpleNamespace(paired=True)), data=SimpleNamespace(max_eval_rows=0)
    )
    return objects, SimpleNamespace(train=range(rows), eval=None, format=SimpleNamespace(paired=True))


def test_only_keys_above_1_are_lowered():
    (note,) = size_notes(*batches(4, per_device_train_batch_size=16), 16)
    assert "per_device_train_batch_size" in note
    assert "gradient_accumulation_steps" not in note
    (note,) = size_notes(*batches(4), 8)
    assert note.endswith("start fewer processes.")


def test_the_effective_batch_of_processes():
    args = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert effective_batch(args, 3).startswith("Effective batch size: 24 = 4 per device * 2 accumulation steps * 3 p")


def test_what_concerns_most_training_rows_comes_first():
    def found(name, split, count, share):
        return SimpleNamespace(name=name, split=split, count=count, share=share)

    given = [
        found("d", "eval", 9, 0.9),
        found("c", "train", 1, 0.1),
        found("a", "train", 0, 0),
        found("b", "train", 5, 0.5),
    ]
    assert [one.name for one in sorted(given, key=_weight)] == ["a", "b", "c", "d"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has bfloat16")
def test_python_without_a_gpu_needs_no_option(tmp_path):
    from trl_plus import KTOConfig, SimPOConfig

    for config in (SimPOConfig, KTOConfig):
        assert config(output_dir=str(tmp_path)).bf16 is False
        assert config(output_dir=str(tmp_path), use_cpu=True).bf16 is True  # TRL's default, where it works
        for name in ("bf16", "bf16_full_eval"):
            with pytest.raises(ValueError, match=f"`{name}: true` needs a GPU .* Fix: remove it, or set `use_cpu"):
                config(output_dir=str(tmp_path), **{name: True})
