"""All backends give the attention of plain rows. What runs on CUDA only is checked by what it is told."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from trl_plus.forward.attention import cuda, plain
from trl_plus.forward.attention.plain import Options
from trl_plus.forward.layouts import make_plan

# Three groups: a long common beginning, one that is too short to share, and a row that begins the other
LENGTHS, COMMON, WIDTH = torch.tensor([14, 9, 12, 20, 11, 10]), torch.tensor([11, 3, 10]), 20
HEADS, KEY_HEADS, SIZE = 4, 2, 8
OPTIONS = [
    Options(),
    Options(scaling=0.3),
    Options(window=5),
    Options(window=100),
    Options(softcap=2.0),
    Options(window=4, softcap=2.0, scaling=0.5),
]


@pytest.fixture
def padded():
    """Queries, keys and values of the padded rows, equal where the rows begin alike; (R, heads, L, D)."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), WIDTH, SIZE)
    made = [torch.randn(heads, *shape, generator=generator).transpose(0, 1) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    for tensor in made:
        for group, shared in enumerate(COMMON):
            tensor[group + len(COMMON), :, :shared] = tensor[group, :, :shared]
    return made


def eager(query, key, value, options):
    """Eager causal attention of each row by itself."""
    key, value = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (key, value))
    distance = torch.arange(WIDTH)[:, None] - torch.arange(WIDTH)
    hidden = (distance < 0) | (distance >= (options.window or WIDTH + 1))
    scores = query @ key.mT * (options.scaling or SIZE**-0.5)
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value


def laid_out(tensor, plan):
    return tensor.transpose(1, 2).reshape(-1, *tensor.shape[1::2])[plan.source].transpose(1, 2)


def by_row(output, plan):
    return output.transpose(1, 2).reshape(-1, HEADS, SIZE)[plan.gather].transpose(1, 2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("attend", [plain.by_branch, plain.by_mask, cuda.flex], ids=["segments", "dense", "flex"])
def test_backend(attend, layout, options, padded):
    plan = make_plan(LENGTHS, COMMON, WIDTH, layout)
    with torch.no_grad():
        output = by_row(attend(*(laid_out(x, plan) for x in padded), plan, options), plan)
    real = torch.arange(WIDTH) < LENGTHS[:, None]
    expected = eager(*padded, options)
    assert torch.allclose(output.transpose(1, 2)[real], expected.transpose(1, 2)[real], atol=1e-5)


def test_what_kernels_of_variable_length_are_told(padded):
    """A sequence's keys end where its queries end: with that, any such kernel is right. Here, a loop stands in."""
    plan = make_plan(LENGTHS, COMMON, WIDTH)
    query, key, value = (laid_out(x, plan) for x in padded)
    told = cuda.sequences(plan, query.device)
    keys, values = (x[:, :, told.keys].repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (key, value))
    outputs = []
    ends = [told.ends_q.tolist(), told.ends_k.tolist()]
    for a, b, c, d in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
        mask = torch.arange(d - c - (b - a), d - c)[:, None] >= torch.arange(d - c)
        outputs.append(sdpa(query[:, :, a:b], keys[:, :, c:d], values[:, :, c:d], attn_mask=mask))
    assert torch.allclose(torch.cat(outputs, 2), plain.by_branch(query, key, value, plan, Options()), atol=1e-6)
    assert told.longest_q == max(b - a for a, b in zip(ends[0], ends[0][1:], strict=False))
    assert told.longest_k == max(b - a for a, b in zip(ends[1], ends[1][1:], strict=False))
