"""Optimizer states as the real optimizers allocate them."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from trl_plus.estimate.measure import state_bytes


def real_bytes(optim, tmp_path):
    model = torch.nn.Sequential(torch.nn.Embedding(300, 64), torch.nn.Linear(64, 128), torch.nn.Linear(128, 8))
    args = TrainingArguments(output_dir=str(tmp_path), optim=optim, use_cpu=True, report_to="none")
    optimizer = Trainer(model=model, args=args).create_optimizer()
    model(torch.zeros(2, dtype=torch.long)).sum().backward()
    optimizer.step()
    tensors = [
        (name, value)
        for state in optimizer.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and value.numel() > 1 and not name.startswith("qmap")  # shared by all parameters
    ]
    embeddings = {id(model[0].weight)}
    found = state_bytes(optim, [(p, id(p) in embeddings) for p in model.parameters()])
    return found, sum(value.numel() * value.element_size() for _, value in tensors)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"])
def test_torch_and_transformers(optim, tmp_path):
    found, real = real_bytes(optim, tmp_path)
    assert found == real


@pytest.mark.parametrize(
    "optim",
    ["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit", "rmsprop_bnb"],
)
def test_bitsandbytes(optim, tmp_path):
    found, real = real_bytes(optim, tmp_path)
    assert found == real


def test_an_unknown_optimizer_is_said_to_be(recipe):
    from trl_plus.estimate.run import estimate

    assert state_bytes("lomo", []) is None
    notes = " ".join(estimate(recipe("optim=lomo"), device="cpu").notes)
    assert "`optim: lomo`" in notes
