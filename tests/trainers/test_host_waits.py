"""How often a step makes the host wait for its device, counted on a CPU by what would wait on a GPU."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trl_plus.forward import layouts
from trl_plus.forward.packing import all_labelled

LORA = {"peft_config": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")}
# Files and functions that name the device a tensor is on already, but for layers on several; `_mask` is for the CPU
STAYS = {"meters.py", "totals_of", "kto.py", "_mask"}
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
MAKES = (torch.tensor, torch.as_tensor, torch.from_numpy)
SIZES = (
    "aten.nonzero", "aten.masked_select", "aten.unique", "aten._local_scalar_dense", "aten.repeat_interleave.Tensor",
)  # fmt: skip


class Functions(TorchFunctionMode):
    """Reads from the device, and copies to it."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        moves = name in ("to", "cuda") and any(isinstance(x, torch.device | str | Tensor) for x in args[1:])
        if name in READS or moves or ("device" in kwargs and (func in MAKES or name == "to")):
            code = sys._getframe(1).f_code
            file = Path(code.co_filename)
            if name in READS or (not STAYS & {file.name, code.co_name} and not file.name.startswith("modeling_")):
                self.found.append(f"{name} in {file.name}")
        return func(*args, **kwargs)


class Operators(TorchDispatchMode):
    """Operators whose result has a size that only the device knows, forwards and backwards."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, boolean = str(func), False
        if name.startswith(("aten.index.", "aten.index_put", "aten._index_put_impl")):
            boolean = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        if name.startswith(SIZES) or boolean:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


# What works on copies on the host, and the two functions that copy
ON_HOST = [
    ("forward.layouts", "plan_of"),
    ("forward.layouts", "counts_from"),
    ("step.mismatched", "kl_batch"),
    ("step.mismatched", "count_rows"),
    ("trainers.kto", "rows_of"),
]
COPIES = [
    ("forward.layouts", "to_host"),
    ("forward.layouts", "place"),
    ("step.mismatched", "to_host"),
    ("step.mismatched", "to_device"),
    ("trainers.kto", "to_device"),
]


@pytest.fixture
def waits_of(monkeypatch):
    """waits_of(trainer) -> (waits and copies before the first forward of each step, those of each micro-batch)."""
    found = []

    def replaced(owner, name, counted):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            before = list(found)
            output = original(*args, **kwargs)
            found[:] = before + counted
            return output

        monkeypatch.setattr(owner, name, call)

    for names, is_copy in ((ON_HOST, False), (COPIES, True)):
        for module, name in names:
            replaced(import_module(f"trl_plus.{module}"), name, [name] if is_copy else [])

    def counting(owner, name, into):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            found.clear()
            with Functions(found), Operators(found):
                output = original(*args, **kwargs)
            into.append(list(found))
            return output

        setattr(owner, name, call)

    def run(trainer):
        steps, forwards, backwards = [], [], []
        counting(trainer, "measure", steps)
        counting(trainer, "compute_loss", forwards)
        counting(trainer.accelerator, "backward", backwards)
        trainer.train()
        return steps, [a + b for a, b in zip(forwards, backwards, strict=True)]

    return run


SETTINGS = {"max_steps": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1}
METHODS = {
    "DPO": {},
    "SimPO": {},
    "CPO": {},
    "ORPO": {},
    "DPO with an NLL": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "DPO with LoRA": {"reference": False, "trainer": LORA},
    "DPO with checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("name", METHODS)
def test_pairs(name, waits_of, make_trainer, pair_rows):
    """One read and one copy per step, whatever is logged; nothing between its first forward and its last backward."""
    steps, micro = waits_of(make_trainer(name.split()[0], pair_rows(32), **SETTINGS, **METHODS[name]))
    assert steps[1:] == [["to_host", "place"]] * 2  # the first step proves the layout
    assert micro[2:] == [[]] * 4


def test_labels_that_nobody_counted(waits_of, make_trainer, pair_rows):
    """An NLL over prompts has labels of its own: their number is read, once per micro-batch."""
    _, micro = waits_of(make_trainer("ORPO", pair_rows(32), **SETTINGS, nll_scope="full"))
    assert micro[2:] == [["__int__ in layouts.py", "aten._local_scalar_dense.default"]] * 4


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_kto(loss_type, waits_of, make_trainer, unpaired_rows):
    steps, micro = waits_of(make_trainer("KTO", unpaired_rows(24), **SETTINGS, loss_type=loss_type))
    assert steps[1:] == [["to_host", "place"]] * 2
    assert micro[2:] == [[]] * 4


def test_what_would_wait_is_seen():
    x, found = torch.arange(4.0, requires_grad=True), []
    with Functions(found), Operators(found):
        x[x > 1].sum().backward()
        x.detach().cpu()
        x.detach().sum().item()
        torch.tensor(1.0, device=x.device)
        x.detach().to("cpu")
        x.detach().nonzero()
        torch.zeros(4).masked_scatter(x.detach() > 1, x.detach())
        bool(x.detach().any())
    names = " ".join(found)
    for name in ("aten.index.Tensor", "aten.index_put", "cpu", "item", "tensor", "to", "aten.nonzero", "__bool__"):
        assert name in names


def test_copies_keep_what_they_carry():
    tensors = [
        torch.tensor([[True, False]]),
        torch.tensor([2**40, -100]),
        torch.tensor([0.1, float("inf")]),
        torch.zeros(0, 3, dtype=torch.int32),
    ]
    for moved in (layouts.to_host(tensors), layouts._unpack(layouts._pack(tensors), tensors)):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(moved, tensors, strict=True))


def test_a_head_that_looks_for_labels_does_not_wait():
    """As TRL's fused head on CUDA: states and labels by a mask, and what it finds back in the mask's shape."""
    states, labels, found = torch.randn(1, 3, 2, requires_grad=True), all_labelled(torch.tensor([[5, 6, 7]])), []
    with Functions(found), Operators(found):
        mask = labels != -100
        chosen, targets = states[mask], labels[mask]
        placed = states.new_zeros(mask.shape).masked_scatter(mask, chosen[:, 0])
        placed.sum().backward()
    assert found == []
    assert type(chosen) is type(targets) is type(placed) is Tensor
    assert torch.equal(targets, torch.tensor([5, 6, 7]))
    assert torch.equal(chosen, states[0])
    assert torch.equal(placed, states[..., 0])
    assert torch.equal(states.grad[..., 0], torch.ones(1, 3))
    assert type(labels[:, 1:]) is type(labels.clamp(min=0)) is type(mask.sum()) is Tensor
