"""torch's attention of variable length grew: 2.10 knows no scale and no window, 2.11 no grouped heads."""

import pytest
import torch
from torch.nn.attention import varlen

from trl_plus.forward.attention import cuda, interface, plain
from trl_plus.forward.attention.plain import Options
from trl_plus.forward.layouts import make_plan

LENGTHS, COMMON = torch.tensor([14, 9, 12, 20, 11, 10]), torch.tensor([11, 3, 10])


def by_loops(q, k, v, ends_q, ends_k, longest_q, longest_k, scale, back):
    """Bottom-right aligned causal attention of each sequence; (T, heads, D)."""
    assert ends_q.dtype == ends_k.dtype == torch.int32
    assert q.size(1) % k.size(1) == 0
    assert ends_q.diff().max() == longest_q
    assert ends_k.diff().max() == longest_k
    outputs = []
    for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
        queries = q[a:b].transpose(0, 1)
        keys, values = (x[c:d].transpose(0, 1).repeat_interleave(q.size(1) // k.size(1), 0) for x in (k, v))
        distance = torch.arange(d - c - (b - a), d - c)[:, None] - torch.arange(d - c)
        hidden = (distance < 0) | (distance > back if back >= 0 else False)
        scores = queries @ keys.mT * (q.size(-1) ** -0.5 if scale is None else scale)
        outputs.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outputs)


def of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal
    assert query.size(1) == key.size(1)
    return by_loops(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, None, -1)


def of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    assert window_size[1] == 0
    assert query.size(1) == key.size(1)
    return by_loops(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size[0])


def of_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False,
):  # fmt: skip
    assert window_size[1] == 0
    assert enable_gqa == (query.size(1) != key.size(1))
    return by_loops(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size[0])


VERSIONS = {"2.10": of_2_10, "2.11": of_2_11, "2.12": of_2_12}
# What a layer asks for, and the versions that can do it
CASES = [
    (
        Options(),
        (
            "2.10",
            "2.11",
            "2.12",
        ),
    ),
    (
        Options(scaling=8**-0.5),
        (
            "2.10",
            "2.11",
            "2.12",
        ),
    ),  # the usual scale, said aloud
    (
        Options(window=20),
        (
            "2.10",
            "2.11",
            "2.12",
        ),
    ),  # no row is longer
    (
        Options(window=5),
        (
            "2.11",
            "2.12",
        ),
    ),
    (
        Options(scaling=0.3),
        (
            "2.11",
            "2.12",
        ),
    ),
    (Options(softcap=2.0), ()),
    (Options(dropout=0.1), ()),
]


@pytest.fixture(params=VERSIONS)
def version(request, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", VERSIONS[request.param])
    cuda.varlen_parameters.cache_clear()
    yield request.param
    cuda.varlen_parameters.cache_clear()


def tensors(plan, dtype, size=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, plan.computed, size, generator=generator).to(dtype) for heads in (4, 2, 2)]


@pytest.mark.parametrize("options, able", CASES, ids=str)
def test_what_a_version_is_asked_for(options, able, version):
    plan = make_plan(LENGTHS, COMMON, 20)
    half = tensors(plan, torch.bfloat16)
    assert cuda.takes_varlen(half[0], half[2], plan, options) == (version in able)
    if version in able:
        inputs = [x.double().requires_grad_() for x in half]
        output, expected = cuda.varlen(*inputs, plan, options), plain.by_branch(*inputs, plan, options)
        assert torch.allclose(output, expected, atol=1e-9)
        found, right = (torch.autograd.grad(x.tanh().sum(), inputs) for x in (output, expected))
        assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, right, strict=True))


def test_what_no_version_takes(version):
    plan = make_plan(LENGTHS, COMMON, 20)
    single = tensors(plan, torch.float32)
    odd = tensors(plan, torch.bfloat16, size=12)
    shared = make_plan(LENGTHS, COMMON, 20, "shared")
    half = tensors(plan, torch.bfloat16)
    for query, value, of in ((single[0], single[2], plan), (odd[0], odd[2], plan), (half[0], half[2], shared)):
        assert not cuda.takes_varlen(query, value, of, Options())


def test_an_older_torch_takes_another_kernel(monkeypatch):
    monkeypatch.setattr(cuda, "varlen_parameters", frozenset)
    plan = make_plan(LENGTHS, COMMON, 20)

    class OnGPU(torch.Tensor):
        device = torch.device("cuda")

    half = [x.as_subclass(OnGPU) for x in tensors(plan, torch.bfloat16)]
    assert interface.backend(half[0], half[2], plan, Options()) is cuda.flex
    assert interface.backend(half[0], half[2], plan, Options(dropout=0.1)) is plain.by_branch
