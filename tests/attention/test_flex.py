"""flex_attention's block mask comes from the branches, and a run of ragged batches compiles few variants."""

import logging

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from trl_plus.forward.attention import flex, plain
from trl_plus.forward.attention.plain import Options
from trl_plus.forward.layouts import make_plan

GEMMA = (Options(window=70, softcap=50.0), Options(softcap=50.0))


def ragged(seed, longest=160, rows=6):
    """Rows of 20 to `longest` tokens whose groups share 8 to 19 of them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, longest + 1, (rows,), generator=generator)
    common = torch.randint(8, 20, (rows // 2,), generator=generator)
    return lengths, common, int(lengths.max())


@pytest.mark.parametrize("window", [None, 30, 130, 1000])
@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("longest, common", [(160, None), (700, [600, 300, 0])])
def test_blocks(longest, common, layout, window):
    lengths, few, _ = ragged(1, longest)
    if common is not None:
        lengths, few = torch.tensor([640, 310, 500, 700, 690, 20]), torch.tensor(common)
    plan = make_plan(lengths, few, int(lengths.max()), layout)
    some, whole = flex.blocks(plan.branches, plan.source.shape, window)
    size = flex.padded(plan.source.size(1))
    seen = plan.visible(window)[:, 0] & (plan.group >= 0)[:, :, None]
    seen = torch.nn.functional.pad(seen, (0, size - seen.size(2), 0, size - seen.size(1)))
    by_block = seen.view(len(seen), size // 128, 128, size // 128, 128)
    assert torch.equal(some, by_block.any(4).any(2))
    assert not (whole & ~by_block.all(4).all(2)).any()
    if window is None and longest == 700:
        assert whole.any()  # blocks that the kernel need not look into


def test_the_block_mask_needs_no_square_of_the_tokens(monkeypatch):
    """16k tokens: the scores of one head would be 256 Mi elements."""
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            output = func(*args, **(kwargs or {}))
            for value in output if isinstance(output, tuple | list) else [output]:
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return output

    plan = make_plan(torch.full((8,), 2048), torch.full((4,), 1000), 2048)
    with Largest():
        flex._block_mask(plan, None, flex.padded(plan.computed), torch.device("cpu"))
    assert largest <= 16 * plan.computed


@pytest.fixture
def compiles(monkeypatch):
    """flex_attention as on CUDA but for the kernel: counts what torch traces, and what hits its limit."""
    count, limits = [], []

    def backend(graph, inputs):
        count.append(graph)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: compile(f, **kwargs, backend=backend))
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "must_compile", lambda _: True)
    handler = logging.Handler()
    handler.emit = lambda record: limits.append(record) if "recompile_limit" in record.getMessage() else None
    logger = logging.getLogger("torch._dynamo.convert_frame")
    logger.addHandler(handler)
    flex.attention_for.cache_clear()
    torch._dynamo.reset()
    yield count, limits
    logger.removeHandler(handler)
    flex.attention_for.cache_clear()
    torch._dynamo.reset()


def test_few_variants_are_compiled(compiles):
    """Ragged batches of two kinds of layer, with gradient for a policy and without for its reference."""
    count, limits = compiles
    for step in range(4):
        plan = make_plan(*ragged(step, longest=[40, 160, 90][step % 3], rows=4 + 2 * (step % 2)))
        for grad in (False, True):
            for options in GEMMA:
                q, k, v = (torch.randn(1, heads, plan.computed, 16, requires_grad=grad) for heads in (4, 2, 2))
                with torch.set_grad_enabled(grad):
                    output = flex.flex(q, k, v, plan, options)
                expected = plain.by_mask(q, k, v, plan, options)
                assert torch.allclose(output, expected, atol=1e-5)
        if step == 1:
            after_two = len(count)
    # twice for each: sizes that happen to be equal in the first batch are taken for one size
    assert len(count) == after_two <= 2 * 2 * len(GEMMA)
    assert not limits
