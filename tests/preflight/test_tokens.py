"""D4xx: what a tokenizer and a chat template do to the rows, each trait planted in a tokenizer or in some rows."""

import pytest

from tests.conftest import build_tokenizer
from tests.preflight import toys
from tests.preflight.corpus import FORMS, SYSTEM, clean_samples, rendered
from tests.preflight.looks import counts, first_rows
from tests.preflight.toys import BOS, END, build_toy, look_with, save_toy, template
from trl_plus.preflight.preview import token_texts

ROWS = 40
CHAT, TEXT = FORMS["chat"], FORMS["text"]
PLANTED = [3, 11, 12, 30]


@pytest.fixture
def toy(tmp_path):
    return lambda tokenizer, ends=None: save_toy(tmp_path / "model", tokenizer, ends)


@pytest.fixture
def look(toy, tmp_path):
    """look(form, tokenizer) -> Result of clean rows; `plant` changes the samples at `PLANTED` before."""

    def run(form, tokenizer=None, plant=None, ends=None, **values):
        samples = clean_samples(form, ROWS, 5)
        for row in PLANTED if plant else ():
            plant(samples[row])
        model = toy(tokenizer or build_toy(), ends)
        return look_with(model, rendered(samples, form), form, tmp_path / "rows.jsonl", **values)

    return run


def found_at_planted(result, code, also=()):
    assert set(counts(result)) == {code, *also}
    assert counts(result)[code] == len(PLANTED)
    assert first_rows(result)[code] == PLANTED[:3]


def found_everywhere(result, code):
    assert counts(result) == {code: ROWS}
    assert first_rows(result)[code] == [0, 1, 2]


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_clean_rows_have_no_finding_with_a_tokenizer(form, look):
    assert counts(look(form)) == {}


def test_prompt_rendered_differently_when_it_stands_alone(look):
    found_everywhere(look(CHAT, build_toy(template(opening=toys.THINKING_OPEN))), "D401")


def test_text_prompts_whose_last_token_merges_with_the_response(look):
    def plant(sample):
        sample.responses = {"chosen": "anchor and more.", "rejected": "basil, rather."}
        sample.edits.append(
            lambda row: row.update(prompt=row["prompt"] + " ", chosen="anchor, I say.", rejected="basil.")
        )

    found_at_planted(look(TEXT, plant=plant), "D401")


def test_turns_that_the_template_does_not_close(look):
    found_everywhere(look(CHAT, build_toy(template(close="\n"))), "D402")


@pytest.mark.parametrize("ends, found", [(["<|endoftext|>"], True), (["<|endoftext|>", END], False), (None, True)])
def test_the_stop_token_is_what_the_generation_config_stops_on(ends, found, look):
    result = look(CHAT, build_toy(end="<|endoftext|>", pad="<|im_start|>"), ends=ends)
    assert counts(result) == ({"D402": ROWS} if found else {})


def test_text_gets_its_stop_token_from_the_trainer(look):
    def plant(sample):
        sample.edits.append(lambda row: row.update(chosen=row["chosen"] + END))  # TRL adds none then

    assert counts(look(TEXT, plant=plant)) == {}


@pytest.mark.parametrize("end", [END + END, f"{END} And more."])
def test_stop_tokens_in_the_text(end, look):
    def plant(sample):
        sample.edits.append(lambda row: row.update(rejected=row["rejected"] + end))

    found_at_planted(look(TEXT, plant=plant), "D403")


def test_stop_token_in_a_message_is_a_control_token_too(look):
    def plant(sample):
        sample.responses["rejected"] = f"One.{END} Two."

    found_at_planted(look(CHAT, plant=plant), "D403", also=["D411"])


def test_text_that_begins_with_the_token_that_the_tokenizer_adds(look):
    def plant(sample):
        sample.edits.append(lambda row: row.update(prompt=BOS + row["prompt"]))

    found_at_planted(look(TEXT, build_toy(bos=True), plant), "D404")


def test_a_template_that_begins_twice(look):
    found_everywhere(look(CHAT, build_toy(template(before=BOS + BOS), bos=True)), "D404")


def test_a_template_that_begins_once(look):
    assert counts(look(CHAT, build_toy(template(before=BOS), bos=True))) == {}
    assert counts(look(TEXT, build_toy(bos=True))) == {}


def test_a_template_that_lacks_the_beginning(look):
    found_everywhere(look(CHAT, build_toy(template(), bos=True)), "D405")


@pytest.mark.parametrize("form", [CHAT, TEXT], ids=["chat", "text"])
def test_padding_with_the_end_of_sequence(form, look):
    assert counts(look(form, build_toy(pad=END))) == {"D406": 0}


def test_thoughts_that_the_template_drops(look):
    def plant(sample):
        for side, text in sample.responses.items():  # on one side only it is D220
            sample.responses[side] = f"<think>First the sum, then the rest.</think>{text}"

    found_at_planted(look(CHAT, build_toy(template(toys.WITHOUT_THOUGHTS)), plant), "D407")
    assert counts(look(CHAT, build_toy(template()), plant)) == {}


CALL = {"type": "function", "function": {"name": "read_clock", "arguments": {"zone": "UTC"}}}


def test_tool_calls_that_the_template_drops(look):
    def plant(sample):
        sample.message = {"tool_calls": [CALL]}

    found_at_planted(look(CHAT, build_toy(template()), plant), "D407")
    assert counts(look(CHAT, build_toy(template(inside=toys.CALLS)), plant)) == {}


def test_thoughts_in_a_key_of_their_own(look):
    def plant(sample):
        sample.message = {"reasoning_content": "The clock is on the wall, so read it."}

    found_at_planted(look(CHAT, plant=plant), "D407")


def test_system_messages_that_the_template_drops(look):
    systems = [
        number for number, sample in enumerate(clean_samples(CHAT, ROWS, 5)) if sample.turns[0]["role"] == "system"
    ]
    result = look(CHAT, build_toy(template(before=toys.WITHOUT_SYSTEM)))
    assert counts(result) == {"D408": len(systems)}
    assert first_rows(result)["D408"] == systems[:3]
    assert SYSTEM in result.findings[0].examples[0].detail


def test_characters_that_the_vocabulary_lacks(look, tmp_path, toy):
    ascii_only = build_toy(unknown=True)
    samples = clean_samples(CHAT, ROWS, 5)
    rows = rendered(samples, CHAT)
    unknown = [number for number, row in enumerate(rows) if not str(row).replace("\\n", "").isascii()]
    assert unknown  # café and dashes
    result = look(CHAT, ascii_only)
    assert counts(result) == {"D409": len(unknown)}
    assert first_rows(result)["D409"] == unknown[:3]


def test_rows_that_the_template_refuses(look):
    systems = [
        number for number, sample in enumerate(clean_samples(CHAT, ROWS, 5)) if sample.turns[0]["role"] == "system"
    ]
    result = look(CHAT, build_toy(template(before=toys.REFUSING_SYSTEM)))
    assert counts(result) == {"D410": len(systems)}
    assert first_rows(result)["D410"] == systems[:3]
    assert "System role not supported" in result.findings[0].examples[0].detail


def test_control_tokens_in_a_prompt(look):
    def plant(sample):
        sample.turns[-1]["content"] += " What does <|endoftext|> do?"

    found_at_planted(look(CHAT, plant=plant), "D411")


def test_a_template_that_refuses_every_row(look):
    result = look(CHAT, build_toy("{{ raise_exception('Never.') }}"))
    assert counts(result) == {"D410": ROWS}


def test_the_other_rows_are_looked_at_when_some_are_refused(look):
    def plant(sample):
        sample.turns = [{"role": "system", "content": SYSTEM}, sample.turns[-1]]
        sample.turns[-1]["content"] += " <|endoftext|>?"

    result = look(CHAT, build_toy(template(before=toys.REFUSING_SYSTEM, close="\n")), plant)
    refused = counts(result)["D410"]
    assert counts(result) == {"D410": refused, "D402": ROWS - refused}


def test_a_long_row_decodes_each_token_once():
    """A preview of a row decodes as often as it has different tokens, not as it has tokens, and cuts no character."""
    tokenizer = build_tokenizer()
    calls, text = [], "meadow é 漢 🙂 " * 50

    class Counting:
        def decode(self, ids, **kwargs):
            calls.append(ids)
            return tokenizer.decode(ids, **kwargs)

    ids = tokenizer(text)["input_ids"]
    assert "".join(token_texts(Counting(), ids)) == text
    broken = sum(len(call) > 1 for call in calls)  # characters of several tokens
    assert len(calls) - broken <= len(set(ids)) < len(ids) / 10
