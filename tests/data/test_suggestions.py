"""The mapping that an error suggests: a guess by words of the names, and never by letters that look alike."""

import pytest

from trl_plus.data.suggestions import mapping_for

CHOSEN, REJECTED = "YOUR_CHOSEN_COLUMN", "YOUR_REJECTED_COLUMN"


@pytest.mark.parametrize(
    "columns, paired, prompt, others",
    [
        ("question_text chosen_answer rejected_answer", True, "question_text", ("chosen_answer", "rejected_answer")),
        ("user_query good_reply bad_reply", True, "user_query", ("good_reply", "bad_reply")),
        ("chosen_model chosenText rejectedText task", True, "YOUR_PROMPT_COLUMN", ("chosenText", "rejectedText")),
        ("ask response_a response_b", True, "YOUR_PROMPT_COLUMN", (CHOSEN, REJECTED)),
        ("message_tree_id tree_state worker", True, "YOUR_PROMPT_COLUMN", (CHOSEN, REJECTED)),
        ("an_instruction reply kto_tag", False, "an_instruction", ("YOUR_COMPLETION_COLUMN", "kto_tag")),
    ],
)
def test_by_words(columns, paired, prompt, others):
    row = dict.fromkeys(columns.split(), "text")
    targets = ("chosen", "rejected") if paired else ("completion", "label")
    assert mapping_for(row, paired) == {"prompt": prompt, **dict(zip(targets, others, strict=True))}


def test_a_column_of_messages_is_the_conversation():
    row = {
        "turns": [{"speaker": "user", "text": "q"}],
        "good": {"speaker": "bot", "text": "a"},
        "bad": {"role": "assistant", "content": "b"},
    }
    assert mapping_for(row, True) == {"messages": "turns", "chosen": "good", "rejected": "bad"}


def test_columns_inside_a_column():
    row = {"id": 1, "data": {"prompt": "q", "chosen": "a", "rejected": "b"}}
    assert mapping_for(row, True) == {"prompt": "data.prompt", "chosen": "data.chosen", "rejected": "data.rejected"}


def test_true_or_false_is_a_label():
    row = {"question": "q", "answer": "a", "helpful_and_safe": True}
    assert mapping_for(row, False) == {"prompt": "question", "completion": "answer", "label": "helpful_and_safe"}
