"""A model that an earlier run of the same process has trained, and its copies: each computes with its own weights."""

import copy

import pytest
import torch
from datasets import Dataset
from independent import distance, loss_and_gradient
from trl import SFTConfig, SFTTrainer

BAR = 1e-5
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def like(model, build):
    """A new model with the same weights, on which nothing is installed."""
    plain = build(0)
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def moved(model, by=0.05):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
    return model


def sft(model, rows, tokenizer, folder):
    config = SFTConfig(
        str(folder), max_steps=1, bf16=False, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, learning_rate=1e-2,
    )  # fmt: skip
    messages = [{"messages": [*row["prompt"], *row["chosen"]]} for row in rows]
    SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(messages), processing_class=tokenizer).train()


@pytest.fixture(params=["SimPO", "DPO", "DPO in bf16", "SFT"])
def used(request, build_tiny_model, make_trainer, pair_rows, tokenizer, tmp_path):
    """A model that such a trainer has trained."""
    model = build_tiny_model(0)
    if request.param == "SFT":
        sft(model, pair_rows(2), tokenizer, tmp_path / "sft")
    else:
        settings = {"bf16": True} if "bf16" in request.param else {}
        make_trainer(
            request.param.split()[0], pair_rows(2), reference=False, trainer={"model": model}, learning_rate=1e-2,
            **settings,
        ).train()  # fmt: skip
    return model


def test_the_reference_of_a_second_run_stays(used, build_tiny_model, make_trainer, pair_rows):
    """A copy whose forward computed with the policy's weights would move with it: a loss of ln 2 for ever."""
    reference, own = like(used, build_tiny_model), moved(like(used, build_tiny_model))
    trainer = make_trainer("DPO", pair_rows(4), reference=False, trainer={"model": used}, beta=0.1)
    trainer.model.load_state_dict(own.state_dict())
    loss, expected = loss_and_gradient("DPO", own, trainer.train_dataset, reference=reference, beta=0.1)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    step = {name: before[name] - parameter.detach() for name, parameter in trainer.model.named_parameters()}
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=BAR)
    assert distance(step, expected) < 1e-4


@pytest.mark.parametrize("layout", ["auto", "rows"])
def test_a_copy_computes_with_its_own_weights(layout, build_tiny_model, make_trainer, pair_rows):
    """Such as an average of the weights, or a reference that is replaced by a copy of the policy in a run."""
    trainer = make_trainer("DPO", pair_rows(4), reference=False, layout=layout, learning_rate=1e-2)
    trainer.train()
    copied = moved(copy.deepcopy(trainer.model)).eval()
    plain = like(copied, build_tiny_model)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        torch.testing.assert_close(copied(IDS).logits, plain(IDS).logits)
        scored = torch.stack(trainer.compute_ref_log_probs(copied, batch)).flatten()
        ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
        logits = plain(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
        expected = (logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0] * mask).sum(1)
    torch.testing.assert_close(scored, expected, rtol=1e-5, atol=1e-4)


def test_a_compiled_model_has_a_copy_as_its_reference(build_tiny_model, make_trainer, pair_rows):
    compiled = torch.compile(build_tiny_model(0), backend="eager")
    trainer = make_trainer("DPO", pair_rows(2), reference=False, trainer={"model": compiled})
    assert trainer.ref_model is not None
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=BAR)
