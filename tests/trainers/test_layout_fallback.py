"""A kernel that fails, at its proof or later: `auto` takes plain rows and the step stays the same."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from trl_plus.forward.attention import interface, plain
from trl_plus.trainers import layouts

ERRORS = [
    RuntimeError("no kernel image is available"),
    NotImplementedError("flex_attention on this device"),
    AssertionError("head_dim"),
    KeyError("num_warps"),
    ImportError("No module named 'triton'"),
    subprocess.CalledProcessError(1, ["gcc"]),
    type("OutOfResources", (Exception,), {})("out of resource: shared memory"),
]


def kernel(monkeypatch, attend):
    monkeypatch.setattr(interface, "backend", lambda *_: attend)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_of_the_proof(error, make_trainer, pair_rows, caplog, monkeypatch):
    def attend(*_):
        raise error

    kernel(monkeypatch, attend)
    trainer = make_trainer("SimPO", pair_rows(4))
    trainer.train()
    assert trainer.row_layouts[0].layout == "rows"
    assert caplog.text.count("layout: rows") == 1
    assert type(error).__name__ in caplog.text


FATAL = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("CUDA error: an illegal memory access"),
]
if hasattr(torch, "AcceleratorError"):
    FATAL.append(torch.AcceleratorError("device-side assert triggered"))


@pytest.mark.parametrize("after", [0, 30])
@pytest.mark.parametrize("error", FATAL, ids=lambda error: type(error).__name__)
def test_errors_that_plain_rows_do_not_mend(error, after, make_trainer, pair_rows, monkeypatch):
    monkeypatch.setattr(interface, "backend", lambda *_: Failing(after, error))
    Failing.calls = 0
    with pytest.raises(type(error)):
        make_trainer("SimPO", pair_rows(64), max_steps=20).train()


class Failing:
    """A kernel that fails for good after some calls, forwards or backwards."""

    calls = 0

    def __init__(self, after, error, backward=False):
        self.after, self.error, self.backward = after, error, backward

    def __call__(self, query, key, value, plan, options):
        output = plain.by_mask(query, key, value, plan, options)
        Failing.calls += 1
        if Failing.calls > self.after:
            if not self.backward:
                raise self.error
            if output.requires_grad:
                output.register_hook(self.fail)
        return output

    def fail(self, gradient):
        raise self.error


SETTINGS = {"max_steps": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.1, "logging_steps": 2}
METHODS = ["DPO", "KTO"]


def outcome(trainer):
    trainer.train()
    log = trainer.state.log_history[0]
    named = ("loss", "rewards/chosen", "logps/chosen", "num_tokens")
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}, {n: log[n] for n in named}


@pytest.fixture
def calls_of(make_trainer, pair_rows, unpaired_rows, monkeypatch):
    """calls_of(method) -> (rows, attention calls of a run on them whose kernel works)."""

    def count(method, **settings):
        rows = (unpaired_rows if method == "KTO" else pair_rows)(16)
        Failing.calls = 0
        kernel(monkeypatch, Failing(10**6, None))
        make_trainer(method, rows, **settings).train()
        return rows, Failing.calls

    return count


@pytest.mark.parametrize("share", [0.6, 0.85])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_kernel_that_fails_later(method, backward, share, calls_of, make_trainer, difference, caplog, monkeypatch):
    rows, calls = calls_of(method, **SETTINGS)
    expected, log = outcome(make_trainer(method, rows, layout="rows", **SETTINGS))
    Failing.calls = 0
    kernel(monkeypatch, Failing(int(share * calls), ValueError("longer than ever"), backward))
    trainer = make_trainer(method, rows, **SETTINGS)
    caplog.clear()
    found, found_log = outcome(trainer)
    assert {layout.layout for layout in trainer.row_layouts} == {"rows"}
    assert caplog.text.count("longer than ever") == 1
    assert difference(found, expected) < 1e-5
    assert found_log == pytest.approx(log, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("backward", [False, True])
def test_a_layout_asked_for_by_name(backward, calls_of, make_trainer, monkeypatch):
    rows, calls = calls_of("SimPO", **SETTINGS)
    Failing.calls = 0
    kernel(monkeypatch, Failing(calls // 2, ValueError("longer than ever"), backward))
    with pytest.raises(RuntimeError, match=r"longer than ever.* Set `layout: rows`"):
        make_trainer("SimPO", rows, layout="packed", **SETTINGS).train()


def test_an_error_that_is_not_the_layouts_comes_through(make_trainer, pair_rows, monkeypatch):
    trainer = make_trainer("SimPO", pair_rows(16), **SETTINGS)
    losses, calls = trainer.pair_losses, []

    def pair_losses(*args):
        calls.append(args)
        if len(calls) > 2:
            raise ValueError("of a subclass")
        return losses(*args)

    trainer.pair_losses = pair_losses
    with pytest.raises(ValueError, match="of a subclass"):
        trainer.train()
    assert len(calls) == 3


@pytest.mark.parametrize("capability, said", [((7, 5), "7.5"), ((8, 0), None), ((9, 0), None), ((12, 0), None)])
def test_old_cards(capability, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    reason = layouts.too_old(torch.device("cuda"))
    assert reason is None if said is None else said in reason


def test_layers_on_several_gpus(make_trainer, pair_rows, monkeypatch):
    trainer = make_trainer("SimPO", pair_rows(4), layout="rows")
    monkeypatch.setattr(layouts, "too_old", lambda _: "too old")
    parameters = [SimpleNamespace(device=torch.device("cuda", i)) for i in (0, 1)]
    monkeypatch.setattr(layouts, "base_model", lambda _: SimpleNamespace(parameters=lambda: parameters))
    assert "--num-processes" in layouts.reason_of_run(trainer.model, trainer.args)
    del parameters[1]
    assert layouts.reason_of_run(trainer.model, trainer.args) == "too old"
