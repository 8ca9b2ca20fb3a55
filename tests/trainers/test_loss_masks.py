"""`train_on` and `mask`: which tokens are in the loss, and that no other one has a gradient, in every layout."""

import pytest
import torch
from datasets import Dataset, IterableDataset

import trl_plus.trainers.base
import trl_plus.trainers.kto
from tests.conftest import assistant, user
from trl_plus.forward.score import score
from trl_plus.step.mismatched import KLRow, kl_batch, rows_of

CLOSE = "<|im_end|>\n"
SELECTIONS = {
    ("last", ()): "<think>\nsage\n</think>\n\nlarch" + CLOSE,
    ("last", ("think",)): "\n\nlarch" + CLOSE,
    ("final_answer", ()): "\n\nlarch" + CLOSE,
    ("all", ()): "<think>\nreed\n</think>\n\nfern" + CLOSE + "<think>\nsage\n</think>\n\nlarch" + CLOSE,
    ("all", ("think",)): "\n\nfern" + CLOSE + "\n\nlarch" + CLOSE,
    ("completion", ("think",)): f"\n\nfern{CLOSE}<|im_start|>user\nmore{CLOSE}<|im_start|>assistant\n\n\nlarch{CLOSE}",
}


def turns(first, last, thought="sage"):
    thinking = f"<think>\n{thought}\n</think>\n\n"
    return [assistant(f"<think>\nreed\n</think>\n\n{first}"), user("more"), assistant(thinking + last)]


def make_rows(count=4):
    words = ["larch", "meadow", "nickel", "olive"]
    return [
        {
            "prompt": [user(f"{i} anchor")],
            "chosen": turns("fern", words[i]),
            "rejected": turns("dune", "kite elm", "yew"),
        }
        for i in range(count)
    ]


def labelled(rows):
    return [
        {"prompt": r["prompt"], "completion": r[s], "label": s == "chosen"}
        for r in rows
        for s in ("chosen", "rejected")
    ]


def trained_text(trainer, batch, row=0):
    return trainer.processing_class.decode(batch["input_ids"][row][batch["completion_mask"][row].bool()])


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: "-".join([s[0], *s[1]]))
def test_what_is_trained_on(selection, make_trainer):
    config = {"train_on": selection[0], "mask": list(selection[1])}
    pairs = make_trainer("SimPO", make_rows(1), **config)
    batch = next(iter(pairs.get_train_dataloader()))
    assert trained_text(pairs, batch) == SELECTIONS[selection]
    stream = IterableDataset.from_generator(lambda: iter(labelled(make_rows(1))))
    singles = make_trainer("KTO", stream, **config)
    assert trained_text(singles, singles.data_collator(list(singles.train_dataset)[:1])) == SELECTIONS[selection]


METHODS = [("DPO", {}), ("SimPO", {"sft_weight": 1.0}), ("ORPO", {"nll_scope": "full"}), ("KTO", {})]


@pytest.fixture
def step_of(make_trainer, monkeypatch):
    """step_of("DPO", ...) -> (loss, changes of the weights, [(gradient of each log-probability, mask)])."""

    def step(method, **config):
        seen = []

        def watched(model, batch, *, scored=None, router=False):
            scores = score(model, batch, scored=scored, router=router)
            if scores.logps.requires_grad:
                scores.logps.register_hook(lambda gradient: seen.append((gradient.clone(), batch)))
            return scores

        for module in (trl_plus.trainers.base, trl_plus.trainers.kto):
            monkeypatch.setattr(module, "score", watched)
        rows = labelled(make_rows()) if method == "KTO" else make_rows()
        trainer = make_trainer(method, rows, per_device_train_batch_size=len(rows), **config)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        change = {n: (p.detach() - before[n]).double() for n, p in trainer.model.named_parameters()}
        return trainer.state.log_history[0]["loss"], change, seen, {one.layout for one in trainer.row_layouts}

    return step


@pytest.mark.parametrize("method, config", METHODS, ids=[m for m, _ in METHODS])
def test_no_masked_token_has_a_gradient(method, config, step_of, difference):
    chosen = {"train_on": "all", "mask": ["think"], **config}
    plain = step_of(method, layout="rows", **chosen)
    for layout in ("rows", "packed", "shared"):
        loss, change, seen, used = plain if layout == "rows" else step_of(method, layout=layout, **chosen)
        assert used == (set() if layout == "rows" else {layout})
        assert seen
        for gradient, batch in seen:
            masked = (batch["response_mask"].bool() & ~batch["completion_mask"].bool())[:, 1:]
            trained = batch["completion_mask"][:, 1:].bool()
            assert masked.any()
            assert (gradient[masked] == 0).all()
            assert (gradient[trained] != 0).all()
        assert loss == pytest.approx(plain[0], rel=1e-5)
        assert difference(plain[1], change) < 1e-5
    assert step_of(method, layout="rows", **config)[0] != pytest.approx(plain[0], rel=1e-4)


def test_simpo_by_hand(make_trainer):
    """The mean is over the trained tokens only."""
    trainer = make_trainer("SimPO", make_rows(), beta=2.0, gamma=1.0, train_on="final_answer")
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    means = []
    for row, ids in enumerate(batch["input_ids"].tolist()):
        text = trainer.processing_class.decode(
            [t for t, seen in zip(ids, batch["attention_mask"][row], strict=True) if seen]
        )
        answer = text[text.rindex("</think>") + len("</think>") :]
        count = len(trainer.processing_class(answer)["input_ids"])
        length = int(batch["attention_mask"][row].sum())
        means.append(logps[row, length - 1 - count : length - 1].mean())
    mean = torch.stack(means)
    by_hand = -torch.nn.functional.logsigmoid(2.0 * (mean[:4] - mean[4:]) - 1.0).mean()
    trainer.model.train()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_the_mask_is_cut_with_the_row(mode, make_trainer):
    config = {"train_on": "all", "mask": ["think"], "truncation_mode": mode}
    whole = make_trainer("DPO", make_rows(1), **config)
    full = next(iter(whole.get_train_dataloader()))
    length = int(full["attention_mask"][0].sum())
    left = length - 3
    cut = make_trainer("DPO", make_rows(1), max_length=left, **config)
    batch = next(iter(cut.get_train_dataloader()))
    part = slice(0, left) if mode == "keep_start" else slice(length - left, length)
    assert batch["completion_mask"][0, :left].tolist() == full["completion_mask"][0, part].tolist()


def test_rows_cut_before_their_first_trained_token_are_dropped(make_trainer, caplog):
    rows = [*make_rows(2), {"prompt": [user("short")], "chosen": [assistant("fern")], "rejected": [assistant("elm")]}]
    trainer = make_trainer("DPO", rows, train_on="final_answer", max_length=40)
    assert len(trainer.train_dataset) == 1
    assert "2 of 3 rows dropped" in caplog.text


def test_reference_log_probabilities_follow_the_mask(make_trainer):
    """Both the values and the name of the file that keeps them."""
    found = []
    for mask in ([], ["think"]):
        trainer = make_trainer("DPO", make_rows(), precompute_ref_log_probs=True, mask=mask, train_on="all")
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            logits = trainer.ref_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logps = logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        summed = (logps * batch["completion_mask"][:, 1:]).sum(1)
        assert torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]]) == pytest.approx(summed, rel=1e-4)
        found.append(batch["ref_chosen_logps"].tolist())
    assert found[0] != found[1]


def test_nothing_left_is_refused_in_words(make_trainer):
    rows = make_rows(3)
    rows[1]["rejected"] = [assistant("<think>\nnever closed")]
    with pytest.raises(
        ValueError, match=r"Row 1 of the train dataset has nothing left to train on in `rejected` \(1 such"
    ):
        make_trainer("SimPO", rows, mask=["think"])
    with pytest.raises(ValueError, match="has nothing left"):
        make_trainer("KTO", labelled(rows), train_on="final_answer")


@pytest.mark.parametrize(
    "config, message",
    [
        ({"train_on": "first"}, "`train_on` must be one of last, all"),
        ({"mask": ["thinking"]}, "`mask` must be a list of think"),
        ({"train_on": "final_answer", "mask": ["think"]}, "has no effect with `train_on: final_answer`"),
        ({"train_on": "completion", "mask": ["tool_results"]}, "Fix: `train_on: all`"),
        ({"chat_template_kwargs": {"tools": []}}, "must not hold `tools`"),
        ({"chat_template_kwargs": [1]}, "must be a mapping"),
    ],
)
def test_refused_settings(config, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer("SimPO", [], **config)


def test_a_single_mask_may_be_text(make_trainer):
    assert make_trainer("SimPO", make_rows(1), mask="think").args.mask == ["think"]


def test_a_masked_block_stays_with_its_completion_under_another_prompt():
    """KTO's mismatched rows: the whole completion is read, and its trained tokens are scored."""
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "response_mask": torch.tensor([[0, 0, 1, 1, 1, 0]]),
        "completion_mask": torch.tensor([[0, 0, 0, 0, 1, 0]]),
    }
    (row,) = rows_of(batch)
    assert row == KLRow((5, 6), (7, 8, 9), 1.0, (0, 1))
    made = kl_batch([(KLRow((1,), (2,)), row)], 0, 10, torch.device("cpu"))
    assert made["input_ids"].tolist() == [[1, 7, 8, 9]]
    assert made["completion_mask"].tolist() == [[0, 0, 0, 1]]


ASKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if not enable_thinking | default(true) %}"
    "{{ '<think></think>' }}{% endif %}{% endif %}{{ mood }}"
)


def test_chat_template_kwargs_of_the_run(make_trainer, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ mood }}" + ASKED)
    rows = [
        {"prompt": [user("anchor")], "chosen": [assistant("fern")], "rejected": [assistant("elm")], **more}
        for more in ({"chat_template_kwargs": {"mood": "gruff "}}, {"chat_template_kwargs": {}})
    ]
    trainer = make_trainer("SimPO", rows, chat_template_kwargs={"mood": "calm ", "moood": 1})
    prompts = [tokenizer.decode(ids) for ids in trainer.train_dataset["prompt_ids"]]
    assert [text.split("<")[0] for text in prompts] == ["gruff ", "calm "]
    assert "the chat template does not read `moood`" in caplog.text
    without = [{k: v for k, v in row.items() if k != "chat_template_kwargs"} for row in rows]
    for dataset in (Dataset.from_list(without), IterableDataset.from_generator(lambda: iter(without))):
        trainer = make_trainer("SimPO", dataset, chat_template_kwargs={"mood": "calm "})
        assert all(tokenizer.decode(row["prompt_ids"]).startswith("calm ") for row in trainer.train_dataset)
