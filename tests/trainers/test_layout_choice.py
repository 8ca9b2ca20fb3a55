"""Which layout a run takes, what it says, and that asking leaves no trace."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig

from trl_plus.forward.attention import interface, plain

PROMPT_TUNING = {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)}


@pytest.fixture
def layouts_of(make_trainer, pair_rows):
    """layouts_of("SimPO", ...) -> (layouts in use after a step, what the trainer's models were given)."""

    def run(method, **kwargs):
        trainer = make_trainer(method, pair_rows(4), **kwargs)
        trainer.train()
        return {layout.layout for layout in trainer.row_layouts}

    return run


@pytest.mark.parametrize("method", ["DPO", "SimPO", "CPO", "ORPO"])
def test_auto_is_packed_for_policy_and_reference(method, layouts_of, caplog):
    assert layouts_of(method) == {"packed"}
    assert "layout" not in caplog.text


def test_rows_touch_nothing(layouts_of):
    assert layouts_of("DPO", layout="rows") == set()


CASES = {
    "noise": ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
    "virtual tokens": ({"trainer": PROMPT_TUNING}, "no layout knows"),
}


@pytest.mark.parametrize("config, reason", CASES.values(), ids=CASES)
def test_what_cannot_be_laid_out_is_said_once(config, reason, layouts_of, caplog):
    assert layouts_of("SimPO", max_steps=2, **config) <= {"rows"}
    assert caplog.text.count("layout: rows") == 1
    assert reason in caplog.text


@pytest.mark.parametrize("config, reason", CASES.values(), ids=CASES)
def test_a_layout_asked_for_that_cannot_work_is_an_error(config, reason, layouts_of):
    with pytest.raises(ValueError, match=f"`layout: packed` does not work here: .*{reason}"):
        layouts_of("SimPO", layout="packed", **config)


def wrong_attention(query, key, value, plan, options):
    """Every token sees itself only."""
    return value.repeat_interleave(query.size(1) // value.size(1), dim=1)


def test_a_wrong_layout_is_found(layouts_of, caplog, monkeypatch):
    monkeypatch.setattr(plain, "by_branch", wrong_attention)
    assert layouts_of("SimPO") == {"rows"}
    assert "log-probabilities of the first rows differ" in caplog.text


def half_gradient_of_keys(query, key, value, plan, options):
    return plain.by_mask(query, (key + key.detach()) / 2, value, plan, options)


def failing_backward(query, key, value, plan, options):
    if torch.is_grad_enabled():
        raise RuntimeError("no kernel image for the backward pass")
    return plain.by_mask(query, key, value, plan, options)


@pytest.mark.parametrize("kernel, layout, said", [
    (plain.by_mask, "packed", ""),
    (half_gradient_of_keys, "rows", "attention has another gradient"),
    (failing_backward, "rows", "no kernel image"),
])  # fmt: skip
def test_a_kernel_whose_gradient_is_wrong_is_found(kernel, layout, said, layouts_of, caplog, monkeypatch):
    """Its log-probabilities are right: what a GPU's kernel may do that nobody ran on it."""
    monkeypatch.setattr(interface, "backend", lambda *_: kernel)
    assert layouts_of("DPO") == {layout}
    assert said in caplog.text
    assert ("layout: rows" in caplog.text) == bool(said)


def test_kernels_get_what_autocast_makes_of_float32(layouts_of, monkeypatch):
    """Rotary embeddings in float32 weights give queries in float32 under autocast, and values in bfloat16."""
    seen = set()

    def spy(query, key, value, plan, options):
        seen.add((query.dtype, key.dtype, value.dtype))
        return plain.by_branch(query, key, value, plan, options)

    monkeypatch.setattr(interface, "backend", lambda *_: spy)
    assert layouts_of("SimPO", bf16=True) == {"packed"}
    assert seen == {(torch.bfloat16,) * 3}


def test_rows_padded_on_the_left(make_trainer, pair_rows, caplog):
    trainer = make_trainer("SimPO", pair_rows(4))
    collate = trainer.data_collator.collator
    trainer.data_collator.collator = lambda rows: {n: x.flip(1) for n, x in collate(rows).items()}
    trainer.train()
    assert trainer.row_layouts[0].layout == "rows"
    assert "not padded on the right" in caplog.text


def test_dropout_is_drawn_apart(make_trainer, pair_rows, caplog):
    adapter = {"peft_config": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.3)}
    trainer = make_trainer("SimPO", pair_rows(4), trainer=adapter, disable_dropout=False)
    trainer.train()
    assert trainer.row_layouts[0].layout == "packed"
    assert not any(branch.shared for branch in trainer.row_layouts[0].plan.branches)
    assert "Dropout is on" in caplog.text


def test_the_proof_leaves_no_trace(make_trainer, pair_rows):
    states = []
    for layout in ("auto", "rows"):
        trainer = make_trainer("DPO", pair_rows(4), layout=layout)
        modes = [module.training for module in trainer.ref_model.modules()]
        trainer.train()
        states.append(torch.get_rng_state())
        assert [module.training for module in trainer.ref_model.modules()] == modes
        assert all(module.training for module in trainer.model.modules())
    assert torch.equal(*states)


def test_generation_goes_on_as_before(make_trainer, pair_rows, tokenizer):
    tokens = []
    for layout in ("packed", "rows"):
        trainer = make_trainer("SimPO", pair_rows(4), layout=layout, learning_rate=0.0)
        trainer.train()
        ids = torch.tensor([tokenizer.encode("fern heath")])
        tokens.append(trainer.model.generate(ids, max_new_tokens=8, do_sample=False))
    assert torch.equal(*tokens)


@pytest.mark.parametrize("name", ["", "padded"])
def test_layouts_have_names(name, make_trainer, pair_rows):
    with pytest.raises(ValueError, match="`layout` must be one of"):
        make_trainer("SimPO", pair_rows(4), layout=name)


def test_statistics_are_computed_for_steps_that_are_logged(make_trainer, pair_rows):
    trainer = make_trainer("SimPO", pair_rows(12), max_steps=3, logging_steps=2)
    seen = []
    score = trainer.score
    trainer.score = lambda *args: seen.append(score(*args)) or seen[-1]
    trainer.train()
    assert [scores.entropy is not None for scores in seen] == [False, True, True]
    assert "entropy" in trainer.state.log_history[0]


def test_a_micro_batch_does_not_wait_for_the_device(make_trainer, pair_rows, monkeypatch):
    """Metrics stay on the device until they are logged; what a layout must know is read before the step begins."""
    trainer = make_trainer("DPO", pair_rows(16), max_steps=2, gradient_accumulation_steps=2, logging_steps=2)
    read = dict.fromkeys(("item", "tolist", "cpu", "numpy"), 0)
    for name in read:
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            read[name] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    loss, reads = trainer.compute_loss, []

    def compute_loss(*args, **kwargs):
        before = dict(read)
        value = loss(*args, **kwargs)
        reads.append({name: read[name] - before[name] for name in read})
        return value

    trainer.compute_loss = compute_loss
    trainer.train()
    assert len(reads) == 4
    assert reads[1]["cpu"] == 1  # the first step is not planned, since its first micro-batch proves the layout
    for counts in reads[2:]:
        assert counts["cpu"] == counts["item"] == counts["numpy"] == counts["tolist"] == 0


def test_autocast_ends_with_the_run(pair_rows, tiny_model_dir, tokenizer, tmp_path):
    """accelerate puts one autocast round the forward of a whole model; entered twice, it would never be left."""
    import torch
    from datasets import Dataset

    from trl_plus import SimPOConfig, SimPOTrainer

    args = SimPOConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=2, bf16=True, use_cpu=True, report_to=[],
                       save_strategy="no", gradient_checkpointing=False, disable_tqdm=True)  # fmt: skip
    rows = Dataset.from_list(pair_rows(4))
    trainer = SimPOTrainer(tiny_model_dir, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.row_layouts[0].layout == "packed"
    assert not torch.is_autocast_enabled("cpu")
