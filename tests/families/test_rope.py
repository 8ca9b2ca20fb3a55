"""Models whose rotary factors depend on the length of a row: each row is scored as the model scores it alone."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_plus.forward.attention.interface import name_eager_attention
from trl_plus.forward.lm_head import CompletionHead
from trl_plus.forward.packing import RowLayout
from trl_plus.forward.rope import Factors, forget_rows, own_factors

sys.path.append(str(Path(__file__).parent))

from family_models import BASE, HEAD

BORDER = 24  # tokens that the tiny models were "pretrained" on
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
SHORT_WINDOW = BASE | {"max_position_embeddings": BORDER}
MODELS = {
    "longrope": ("Phi3Config", BASE | {"original_max_position_embeddings": BORDER, "rope_parameters": LONG}),
    "dynamic": ("LlamaConfig", SHORT_WINDOW | {"rope_parameters": DYNAMIC}),
    "scaled": ("PhimoeConfig", BASE | {
        "num_local_experts": 4, "original_max_position_embeddings": BORDER,
        "rope_parameters": LONG | {"short_mscale": 1.0, "long_mscale": 1.3},
    }),
    "one kind of layer": ("Gemma3TextConfig", BASE | HEAD | {
        "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"full_attention": LONG, "sliding_attention": PLAIN},
    }),
}  # fmt: skip
FACTORS = {"dynamic": Factors(BORDER + 1, True)}
# Rows of a pair share their beginning; lengths lie on both sides of the border, in one pair too, and on it
LENGTHS = [
    (BORDER + 30, BORDER + 12),
    (10, 12),
    (BORDER + 5, BORDER - 4),
    (BORDER, BORDER + 1),
    (BORDER + 9, BORDER + 9),
]


def build(name):
    config, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**settings)
    config._attn_implementation = "sdpa"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model


def batch_of(lengths):
    """Chosen rows, then rejected rows, right-padded; labels from the middle of each row on."""
    draw = torch.Generator().manual_seed(1)
    width = max(map(max, lengths))
    rows = [torch.randint(5, 200, (2, width), generator=draw) for _ in lengths]
    for (first, second), row in zip(lengths, rows, strict=True):
        row[1, : min(first, second) // 2] = row[0, : min(first, second) // 2]
    ids = torch.cat([torch.stack([row[side] for row in rows]) for side in (0, 1)])
    size = torch.tensor([pair[side] for side in (0, 1) for pair in lengths])
    mask = (torch.arange(width) < size[:, None]).long()
    labels = ids.masked_fill((mask == 0) | (torch.arange(width) < size[:, None] // 2), -100)
    return ids * mask, mask, labels


@torch.no_grad()
def alone(model, ids, mask, labels):
    """What copies of the untouched model give each row, without padding and without a row before it."""
    found = torch.zeros(ids.size(0), ids.size(1) - 1)
    for row, length in enumerate(mask.sum(1).tolist()):
        part = ids[row : row + 1, :length]
        logits = copy.deepcopy(model)(input_ids=part, use_cache=False).logits[0, :-1]
        found[row, : length - 1] = logits.log_softmax(-1).gather(1, part[0, 1:, None])[:, 0]
    return found * (labels[:, 1:] != -100)


@pytest.mark.parametrize("layout", ["rows", "packed", "shared"])
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_scored_as_alone(name, layout):
    model = build(name)
    untouched = copy.deepcopy(model)
    assert name_eager_attention(model) is None
    add_fused_lm_head(model)
    CompletionHead(model)
    row_layout = RowLayout(model, layout)
    # the longest rows come first: a state they left behind would show
    for lengths in (LENGTHS, LENGTHS[1:], LENGTHS[1:2]):
        ids, mask, labels = batch_of(lengths)
        own = alone(untouched, ids, mask, labels)
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
        torch.testing.assert_close(output.log_probs * (labels[:, 1:] != -100), own, atol=2e-5, rtol=0)
        assert (row_layout.plan is None) == (layout == "rows")
        if row_layout.plan is not None and len(lengths) > 1:  # pairs with the same factors still share their prompt
            assert any(run.shared for run in row_layout.plan.branches)


@pytest.mark.parametrize("name", MODELS)
def test_factors_are_found_by_asking_the_model(name):
    model = build(name)
    assert own_factors(model) == FACTORS.get(name, Factors(BORDER + 1, False))
    assert own_factors(model) is own_factors(model)  # and a second call changes nothing
    copied = copy.deepcopy(model)  # works apart from the original
    copied.base_model.rotary_rows.lengths = torch.ones(1, 1)
    assert model.base_model.rotary_rows.lengths is None


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
def test_factors_of_other_kinds_depend_on_no_row(kind):
    extra = {"factor": 2.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.LlamaConfig(**BASE | {"rope_parameters": PLAIN | {"rope_type": kind} | extra})
    model = AutoModelForCausalLM.from_config(config)
    assert own_factors(model) is None
    assert not forget_rows(model)


def test_generation_does_not_remember_longer_prompts():
    model = build("dynamic")
    own_factors(model)
    rotary = model.model.rotary_emb
    short = torch.randint(5, 200, (1, BORDER + 4), generator=torch.Generator().manual_seed(2))
    fresh = build("dynamic").generate(short, max_new_tokens=8, do_sample=False)
    model.generate(torch.randint(5, 200, (1, BORDER + 40)), max_new_tokens=8, do_sample=False)
    assert rotary.max_seq_len_cached > BORDER
    assert forget_rows(model)
    assert model.generate(short, max_new_tokens=8, do_sample=False).equal(fresh)
