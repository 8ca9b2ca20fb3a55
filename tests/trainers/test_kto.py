"""Unpaired KTO with one z_ref for the effective batch, drawn from rows of other prompts."""

import random

import pytest
import torch
from datasets import Dataset

from trl_plus.step.mismatched import KLRow, kl_batch, mismatched_partners, rows_of


def rows(*prompts):
    return [KLRow((prompt,), (100 + i,)) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("prompts", [(1, 2), (1, 1, 2, 2), (1, 2, 3, 4, 5), (1, 1, 2, 3, 3, 4), (1, 1, 1, 2, 3, 4)])
def test_partners_are_a_permutation_without_a_true_pair(prompts):
    given = rows(*prompts)
    partners = mismatched_partners(given)
    assert sorted(partners) == list(range(len(given)))
    assert all(given[i].prompt != given[j].prompt for i, j in enumerate(partners))


def test_a_prompt_with_most_of_the_rows_still_meets_only_others():
    given = rows(1, 1, 1, 1, 2)
    partners = mismatched_partners(given)
    assert all(given[i].prompt != given[j].prompt for i, j in enumerate(partners))


def test_one_dominant_prompt_goes_round_the_others():
    """4 other completions over 16 rows: nobody stands for all, whatever the shift already hands out."""
    given = rows(*[1] * 12, 2, 3, 4, 5)
    used = [partner for row, partner in zip(given, mismatched_partners(given), strict=True) if row.prompt == (1,)]
    assert sorted(set(used)) == [12, 13, 14, 15]
    assert max(used.count(index) for index in range(12, 16)) <= 4


def test_one_prompt_only_has_no_partner():
    assert mismatched_partners(rows(1, 1, 1)) == [None, None, None]
    assert mismatched_partners(rows(1)) == [None]


def test_partners_depend_on_contents_and_not_on_order():
    given = rows(1, 2, 3, 3, 4, 5, 5, 6)
    pairs = {(row, given[partner]) for row, partner in zip(given, mismatched_partners(given), strict=True)}
    shuffled = random.Random(1).sample(given, len(given))
    assert {(row, shuffled[p]) for row, p in zip(shuffled, mismatched_partners(shuffled), strict=True)} == pairs


def test_rows_of_reads_back_what_was_collated():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "completion_mask": torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]]),
        "weight": torch.tensor([0.5, 2.0]),
    }
    assert rows_of(batch) == [KLRow((5, 6), (7, 8), 0.5), KLRow((9,), (4,), 2.0)]


def test_kl_batch_is_cut_at_max_length():
    batch = kl_batch([(KLRow((1, 2), (3,)), KLRow((9,), (4, 5)))], 0, 3, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[1, 2, 4]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1]]


def test_z_ref_is_the_pooled_mean_over_the_window_by_hand(make_trainer, unpaired_rows):
    """Each KL row scored alone by policy and reference, averaged over the whole window, against the logged value."""
    trainer = make_trainer("KTO", unpaired_rows(6), per_device_train_batch_size=2, gradient_accumulation_steps=3)
    window = [row for batch in trainer.get_train_dataloader() for row in rows_of(batch)]
    ratios = []
    for row, partner in zip(window, mismatched_partners(window), strict=True):
        ids = torch.tensor([row.prompt + window[partner].completion])
        start = len(row.prompt)
        with torch.no_grad():
            scored = [m(input_ids=ids).logits.log_softmax(-1) for m in (trainer.model, trainer.ref_model)]
        policy, ref = (x[0, start - 1 : -1].gather(1, ids[0, start:, None]).sum() for x in scored)
        ratios.append(policy - ref)
    expected = max(0.0, torch.stack(ratios).mean().item())
    trainer.train()
    assert expected > 0
    assert trainer.state.log_history[0]["z_ref"] == pytest.approx(expected, rel=1e-4)
    assert trainer.state.log_history[0]["kl"] == trainer.state.log_history[0]["z_ref"]


def test_evaluation_does_not_depend_on_batch_sizes(make_trainer, unpaired_rows):
    """TRL rotates the evaluation rows by the *training* batch size, so its eval_loss moves with it."""
    results = []
    for train, evaluation in ((2, 3), (4, 8)):
        trainer = make_trainer(
            "KTO",
            unpaired_rows(4),
            per_device_train_batch_size=train,
            per_device_eval_batch_size=evaluation,
            trainer={"eval_dataset": Dataset.from_list(unpaired_rows(7, 3))},
        )
        results.append(trainer.evaluate())
    for name in ("eval_loss", "eval_z_ref", "eval_rewards/margins", "eval_logps/chosen"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-5), name
    assert results[0]["eval_z_ref"] > 0


def test_rows_are_shuffled_every_epoch_with_the_seed(make_trainer, pair_rows):
    """A paired dataset is unpaired into all chosen, then all rejected: unshuffled, windows hold one label only."""

    def orders(seed):
        trainer = make_trainer("KTO", pair_rows(16), per_device_train_batch_size=8, seed=seed)
        loader = trainer.accelerator.prepare(trainer.get_train_dataloader())
        found = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            found.append([label for batch in loader for label in batch["label"].tolist()])
        return found

    first, second = orders(1)
    assert first != second
    assert orders(1) == [first, second]
    assert orders(2) != [first, second]
    windows = [first[i : i + 8] for i in range(0, 32, 8)]
    assert all(0 < sum(window) < 8 for window in windows)


def test_precomputed_reference_gives_the_same_step(make_trainer, unpaired_rows):
    logs = []
    for precompute in (False, True):
        trainer = make_trainer("KTO", unpaired_rows(6), precompute_ref_log_probs=precompute)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-6)
    assert logs[0]["z_ref"] == pytest.approx(logs[1]["z_ref"], rel=1e-6)
