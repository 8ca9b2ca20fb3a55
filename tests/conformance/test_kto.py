"""KTO: TRL's numbers where both define the same z_ref, and the documented difference where not."""

import pytest
import trl
from datasets import Dataset, IterableDataset
from peft import LoraConfig

import trl_plus

ZERO = {"loss_type": "apo_zero_unpaired", "absent": ("kl",)}  # TRL logs a constant zero: this loss has no KL term


def two_rows(pairs):
    """With two rows there is only one mismatched pairing, so TRL's rotation and our rule agree."""
    return [{"prompt": row["prompt"], "completion": row["chosen"], "label": i == 0} for i, row in enumerate(pairs(2))]


def plain(rows):
    return [{n: row[n] if n == "label" else row[n][0]["content"] for n in row} for row in rows]


OPTIONS = [
    {},
    {"desirable_weight": 1.5},
    {"undesirable_weight": 0.5},
    {"precompute_ref_log_probs": True},
    {"max_length": 24},
    {"gradient_checkpointing": True},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
]


@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_apo_zero_unpaired(config, both, unpaired_rows):
    both("KTO", unpaired_rows(8), **ZERO, **config)


def test_plain_text(both, unpaired_rows):
    both("KTO", plain(unpaired_rows(8)), **ZERO)


def test_paired_rows(both, pair_rows):
    both("KTO", pair_rows(8), **ZERO)


def test_iterable(both, unpaired_rows):
    both("KTO", lambda: IterableDataset.from_generator(unpaired_rows, gen_kwargs={"n": 8}), **ZERO)


def test_adapter(both, unpaired_rows):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    both("KTO", unpaired_rows(8), reference=False, trainer={"peft_config": lora}, **ZERO)


def test_evaluation(both, unpaired_rows):
    both("KTO", unpaired_rows(8), eval_rows=Dataset.from_list(unpaired_rows(4, 5)), **ZERO)


def test_compute_metrics(both, unpaired_rows, token_accuracy):
    rows = {"eval_rows": Dataset.from_list(unpaired_rows(4, 5)), "trainer": {"compute_metrics": lambda: token_accuracy}}
    ours, _ = both("KTO", unpaired_rows(8), **ZERO, **rows)
    assert ours.evaluation["eval_first_logit"] != 0


def test_kto_with_the_partners_of_trl(both, pair_rows):
    _, theirs = both("KTO", two_rows(pair_rows), steps=1, rel=1e-5, per_device_train_batch_size=2)
    assert theirs.logs[0]["kl"] > 0


def test_kto_z_ref_is_that_of_the_whole_window(run, unpaired_rows):
    """docs/migrating.md: TRL's `kl` depends on the cut of the batch; ours does not and is logged as `z_ref` too."""
    cuts = [{"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}]
    ours, theirs = (
        [run(module, "KTO", unpaired_rows(8), steps=1, **cut).logs[0] for cut in cuts] for module in (trl_plus, trl)
    )
    assert ours[0]["kl"] == ours[0]["z_ref"] == pytest.approx(ours[1]["kl"], rel=1e-5)
    assert theirs[0]["kl"] != pytest.approx(theirs[1]["kl"], rel=1e-3)
