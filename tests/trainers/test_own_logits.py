"""A fast LM head is used only if it gives the model's own logits, in value and for the gradient of every parameter."""

import copy
from types import SimpleNamespace

import independent
import odd_models
import pytest
import torch
from odd_models import OURS, THEIRS
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from trl_plus.evaluation.models import scorer
from trl_plus.forward.lm_head import CompletionHead, Unscorable
from trl_plus.forward.score import score

OWN = "are taken from the logits of"
WITHOUT_CACHE = {"use_cache": None}  # a forward that has no such argument is called without it


def lora(**kwargs):
    return LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **kwargs)


@pytest.fixture
def compared(make_trainer, pair_rows, tokenizer):
    """compared(kind, method) -> (trainer after a step, its loss and gradient against the independent ones)."""

    def of(kind, method="SimPO", rows=3, adapter=None, layout="auto", **settings):
        model = odd_models.build(kind, len(tokenizer))
        own, reference = copy.deepcopy(model), copy.deepcopy(model) if method == "DPO" else None
        extra = {"model": model} | ({} if adapter is None else {"peft_config": copy.deepcopy(adapter)})
        trainer = make_trainer(method, pair_rows(rows), trainer=extra, reference=False, layout=layout, **settings)
        if adapter is not None:
            own = get_peft_model(own, adapter)
            own.load_state_dict(trainer.model.state_dict())
        loss, expected = independent.loss_and_gradient(
            method, own.eval(), trainer.train_dataset, reference=reference, inputs=WITHOUT_CACHE, **settings
        )
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        after = dict(trainer.model.named_parameters())
        step = {name: (value - after[name].detach()).double() for name, value in before.items()}
        logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        return trainer, abs(logged - loss) / max(1, abs(loss)), independent.distance(step, expected)

    return of


# -- every kind of model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*OURS, *THEIRS], ids=lambda kind: getattr(kind, "__name__", kind))
def test_a_step_is_that_of_the_models_own_logits(kind, compared):
    _, loss, gradient = compared(kind)
    assert loss < 1e-5
    assert gradient < 1e-4


@pytest.mark.parametrize("kind, slow", [
    (odd_models.WritesIntoIds, 0),
    (odd_models.LearnedScale, 1),  # the scale of a frozen reference stays one, so its fused head is right
    ("ModernBertDecoderConfig", 2),
])  # fmt: skip
def test_a_reference_is_scored_right(kind, slow, compared, caplog):
    _, loss, gradient = compared(kind, "DPO", loss_type=["ipo"])
    assert loss < 1e-5
    assert gradient < 1e-4
    assert caplog.text.count(OWN) == slow


def test_losses_of_trl_take_the_same_way(compared, caplog):
    _, loss, gradient = compared(odd_models.Transformed, "DPO", use_weighting=True)
    assert OWN in caplog.text
    assert loss < 1e-5
    assert gradient < 1e-4


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("kind", [odd_models.Transformed, odd_models.LearnedScale, "ModernBertDecoderConfig"])
def test_layouts_work_with_the_models_own_logits(kind, layout, compared):
    """The backbone computes each token once, and what follows it sees the states that predict a label."""
    trainer, loss, gradient = compared(kind, layout=layout)
    assert trainer.row_layouts[0].layout == layout
    assert loss < 1e-5
    assert gradient < 1e-4


@pytest.mark.parametrize("kind, adapter, own", [
    (odd_models.Transformed, lora(target_modules=["q_proj", "dense"]), True),
    (odd_models.Transformed, lora(target_modules=["q_proj"], modules_to_save=["lm_head"]), True),
    (odd_models.Odd, lora(target_modules=["q_proj"], modules_to_save=["lm_head"]), False),
    (odd_models.Odd, lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]), False),
    (odd_models.Odd, lora(target_modules="all-linear"), False),
])  # fmt: skip
def test_adapters(kind, adapter, own, compared, caplog):
    """An adapter changes nothing when training begins, so values say nothing of its gradient."""
    _, loss, gradient = compared(kind, adapter=adapter)
    assert loss < 1e-5
    assert gradient < 1e-4
    assert (OWN in caplog.text) == own


# -- what is said and what is refused ---------------------------------------------------------------------------------


def test_a_plain_model_keeps_its_head_and_a_warning_comes_once(make_trainer, pair_rows, tokenizer, caplog):
    for kind, times in ((odd_models.Odd, 0), (odd_models.OtherHead, 0), (odd_models.Capped, 1)):
        caplog.clear()
        model = odd_models.build(kind, len(tokenizer))
        make_trainer("SimPO", pair_rows(8), trainer={"model": model}, max_steps=2).train()
        assert caplog.text.count(OWN) == times, kind


@pytest.mark.parametrize("kind, settings, sentence", [
    ("BertConfig", {"is_decoder": False}, "a token depends on tokens after it. Use a decoder"),
    (odd_models.SequenceFirst, {}, r"its logits of 2 rows of \d+ tokens have the shape"),
])  # fmt: skip
def test_a_model_without_log_probabilities_is_refused(kind, settings, sentence, make_trainer, pair_rows, tokenizer):
    model = odd_models.build(kind, len(tokenizer), **settings)
    with pytest.raises(Unscorable, match=sentence):
        make_trainer("SimPO", pair_rows(4), trainer={"model": model}).train()


# -- the proof itself -------------------------------------------------------------------------------------------------


def batch(rows=3, width=90):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 300, (rows, width), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, -20:] = 0
    completion = mask.clone()
    completion[:, :30] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "completion_mask": completion}


def with_head(model):
    add_fused_lm_head(model)
    return CompletionHead(model)


def test_it_reads_one_short_row_and_leaves_no_trace():
    model = odd_models.build(odd_models.Capped, 300).train()
    sizes = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    with_head(model)
    state, rows = torch.get_rng_state(), batch()
    kept = {name: value.clone() for name, value in rows.items()}
    score(model, rows)
    assert set(sizes[:-1]) == {(2, 64)}
    assert sizes[-1] == (3, 90)
    first = len(sizes)
    score(model, rows)
    assert len(sizes) == first + 1
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, kept[name]) for name, value in rows.items())
    assert all(module.training for module in model.modules())


def test_every_process_asks_the_others_alike():
    """One process whose head is right and one whose head is wrong ask the same questions, and take the same way."""
    asked = []
    for kind in (odd_models.Odd, odd_models.Transformed):
        head = with_head(model := odd_models.build(kind, 300))
        calls = []
        head.agree = lambda reason, calls=calls: calls.append(reason) or reason
        score(model, batch())
        asked.append(len(calls))
    assert asked[0] == asked[1]

    head = with_head(model := odd_models.build(odd_models.Odd, 300))
    # its row, the row's own logits, that no token sees ahead; then the fast head, and `logits_to_keep`
    answers = iter([None, None, None, "another process finds it wrong", "it does not"])
    head.agree = lambda reason: next(answers)
    ways, own = [], head._on_own_logits
    head._on_own_logits = lambda **kwargs: ways.append("own") or own(**kwargs)
    score(model, batch())
    assert ways == ["own"]
    assert not list(answers)


def test_rows_with_more_than_text_are_proved_on_a_completion():
    class Seeing(odd_models.Transformed):
        def forward(self, input_ids=None, attention_mask=None, labels=None, pixel_values=None, **kwargs):
            return super().forward(input_ids, attention_mask, **kwargs)

    model = odd_models.build(Seeing, 300)
    own = copy.deepcopy(model)
    with_head(model)
    rows = batch()
    with torch.no_grad():
        found = score(model, rows | {"pixel_values": torch.zeros(5, 3, 4, 4)}).logps
        logits = own(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    expected = logits[:, :-1].log_softmax(-1).gather(2, rows["input_ids"][:, 1:, None])[..., 0]
    assert (found - expected * rows["completion_mask"][:, 1:]).abs().max() < 1e-4


@pytest.mark.parametrize("here", [True, False])
def test_no_process_tries_a_row_that_another_one_lacks(here):
    """Rows of images whose completions have two tokens, here or in another process: both take the batch as it is."""
    images = []

    class Seeing(odd_models.Transformed):
        def forward(self, input_ids=None, attention_mask=None, labels=None, pixel_values=None, **kwargs):
            images.append(pixel_values is not None)
            return super().forward(input_ids, attention_mask, **kwargs)

    head = with_head(model := odd_models.build(Seeing, 300))
    rows = batch() | {"pixel_values": torch.zeros(5, 3, 4, 4)}
    if here:
        places = rows["attention_mask"].cumsum(1)
        ends = places.amax(1, keepdim=True)
        rows["completion_mask"] = ((places > ends - 2) & rows["attention_mask"].bool()).long()
    asked = []

    def agree(reason):
        asked.append(reason)
        return reason if here or len(asked) > 1 else "another process finds that no completion has three tokens"

    head.agree = agree
    score(model, rows)
    assert all(images)
    assert (asked[0] is not None) == here


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_the_loss_of_a_router_is_the_models_own(factor):
    class Balanced(odd_models.transformers.Qwen2MoeForCausalLM):
        def forward(self, *args, output_router_logits=None, **kwargs):
            output = super().forward(*args, output_router_logits=output_router_logits, **kwargs)
            if output_router_logits:
                output.aux_loss = output.aux_loss * factor
            return output

    torch.manual_seed(0)
    config = odd_models.transformers.Qwen2MoeConfig(
        **odd_models.SIZES, vocab_size=300, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )  # fmt: skip
    model = Balanced(config)
    rows = {name: value for name, value in batch().items() if name != "completion_mask"}
    with torch.no_grad():
        expected = model(**rows, output_router_logits=True).aux_loss
        with_head(model)
        found = score(model, batch(), router=True).aux_loss
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_takes_the_same_way(make_trainer, pair_rows, tokenizer):
    model = odd_models.build(odd_models.Transformed, len(tokenizer))
    own = copy.deepcopy(model).eval()
    rows = make_trainer("SimPO", pair_rows(5), trainer={"model": copy.deepcopy(model)}).train_dataset
    trainer = make_trainer("SimPO", pair_rows(4), trainer={"model": model, "eval_dataset": rows})
    expected = independent.loss_of("SimPO", own, rows).detach()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_scorer_of_commands_takes_the_same_way():
    """`trl-plus evaluate`, `merge` and `preflight --with-model` score with it."""
    model = odd_models.build(odd_models.Transformed, 300)
    own, rows = copy.deepcopy(model).eval(), batch()
    args = SimpleNamespace(bf16_full_eval=False, fp16_full_eval=False, bf16=False, fp16=False, device=model.device)
    ready = scorer(SimpleNamespace(args=args), model)
    with ready.passes():
        found = score(ready.model, rows).logps.sum(1)
        logits = own(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    logps = logits[:, :-1].log_softmax(-1).gather(2, rows["input_ids"][:, 1:, None])[..., 0]
    assert torch.allclose(found, (logps * rows["completion_mask"][:, 1:]).sum(1), rtol=1e-5)
