"""Planters of D2xx: prompt, responses and turns as text."""

import copy
from typing import Any

from tests.preflight.planting import Field, chat, edit, implicit_text, pairs, planter, put, say


@planter("D201", lambda form: form.conversational)
def blank_question(field: Field, row: int) -> None:
    field[row].turns = [{"role": "user", "content": field.rng.choice(["", "  ", "\n\t"])}]


@planter("D201", lambda form: not form.conversational and form.prompt == "explicit")
def blank_text_prompt(field: Field, row: int) -> None:
    put(field[row], "prompt", field.rng.choice(["", " \n"]))


@planter("D201", implicit_text)
def nothing_in_common(field: Field, row: int) -> None:
    field[row].turns = []


@planter("D202")
def blank_wanted(field: Field, row: int) -> None:
    sample = field[row]
    sample.label = None if field.form.paired else True
    sample.responses[field.form.wanted] = " \n" if implicit_text(field.form) else field.rng.choice(["", "  ", "\n"])


@planter("D203")
def blank_unwanted(field: Field, row: int) -> None:
    sample = field[row]
    sample.label = None if field.form.paired else False
    sample.responses[field.form.unwanted] = " \n" if implicit_text(field.form) else field.rng.choice(["", "  ", "\n"])


@planter("D204", pairs)
def same_response(field: Field, row: int) -> None:
    field[row].responses["rejected"] = field[row].responses["chosen"]


@planter("D204", lambda form: form.paired and not implicit_text(form))
def same_but_for_space(field: Field, row: int) -> None:
    field[row].responses["rejected"] = field[row].responses["chosen"] + " \n"


# TRL ends the prompt where two texts begin to differ: here in the middle of the response
@planter("D205", pairs, lambda form: {"D209"} if implicit_text(form) else set())
def broken_off(field: Field, row: int) -> None:
    whole = "The compass shows north because its needle is a magnet that turns freely on a pin"
    short, long = field.rng.sample(["chosen", "rejected"], 2)
    inside_a_word = [end for end in range(40, 71) if whole[end - 2 : end].isalnum()]
    field[row].responses |= {short: whole[: field.rng.choice(inside_a_word)], long: f"{whole}."}


@planter("D206", chat)
def two_questions_running(field: Field, row: int) -> None:
    question = field[row].turns[-1]
    field[row].turns += [{"role": "user", "content": f"Again: {question['content']}"}]


@planter("D206", chat)
def begins_with_an_answer(field: Field, row: int) -> None:
    field[row].turns = [{"role": "assistant", "content": "Hello, I can help."}, field[row].turns[-1]]


@planter("D206", chat)
def late_system_message(field: Field, row: int) -> None:
    field[row].turns += [{"role": "system", "content": "Now be brief."}]


@planter("D114", lambda form: form.conversational and form.prompt == "explicit", implies=lambda form: {"D206"})
def whole_conversation_as_response(field: Field, row: int) -> None:
    turns = copy.deepcopy(field[row].turns)
    for side in field.form.sides:
        field[row].own[side] = turns


@planter("D207", chat)
def unheard_of_role(field: Field, row: int) -> None:
    question = field[row].turns[-1]["content"]
    field[row].turns = [{"role": field.rng.choice(["human", "User", "critic"]), "content": question}]


@planter("D208", lambda form: form.conversational and form.paired)
def other_history(field: Field, row: int) -> None:
    for side in field.form.sides:
        said = [{"role": "assistant", "content": f"Shall I answer as {side}?"}, {"role": "user", "content": "Do."}]
        field[row].own[side] = said


@planter("D209", implicit_text)
def split_inside_a_word(field: Field, row: int) -> None:
    field[row].responses = {"chosen": "Lisbon lies by the sea.", "rejected": "Limerick, perhaps, or Cork."}


@planter("D209", implicit_text)
def split_inside_a_turn(field: Field, row: int) -> None:
    asked = f"\n\nHuman: {field[row].turns[-1]['content']}\n\nAssistant: "
    for side, rest in (("chosen", "a good idea."), ("rejected", "not advisable.")):
        put(field[row], side, f"{asked}That is {rest}")


@planter("D210", chat)
def templated(field: Field, row: int) -> None:
    marks = (
        "<|im_start|>user\nHello", "<|start_header_id|>user<|end_header_id|>\n\nHello", "<start_of_turn>user\nHello",
        "[INST] Hello [/INST]", "<s>[INST] Hello [/INST]", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>",
        "<bos><start_of_turn>user\nHello", "<|user|>\nHello",
    )  # fmt: skip
    say(field, row, field.rng.choice(marks), at_start=True)


@planter("D210", chat)
def template_end_left_over(field: Field, row: int) -> None:
    side = field.side()
    field[row].responses[side] += field.rng.choice(["<|im_end|>", "<|eot_id|>\n", "<end_of_turn>"])


@planter("D211", lambda form: form.prompt == "explicit" and not form.conversational)
def prompt_again_in_response(field: Field, row: int) -> None:
    def repeat(raw: dict[str, Any]) -> None:
        for side in field.form.sides:
            raw[side] = f"{raw['prompt']}{raw[side]}"

    edit(field[row], repeat)


@planter("D212", chat)
def ran_on(field: Field, row: int) -> None:
    marks = (".</s> \nAnd then, what?", "\n<|user|>\nOne more thing.", "\n<|im_start|>user\nOne more thing.")
    field[row].responses[field.side()] += field.rng.choice(marks)
