"""Planters of D22x: thinking blocks, tool calls and results."""

from typing import Any

from tests.preflight.planting import Field, chat, edit, pairs, planter

THOUGHTS = (
    "The question names two places, so I compare them.",
    "First I look at what is asked, then at what I know of it.",
    "It may be a trick: I check the words one by one.",
)


def chat_pairs(form: Any) -> bool:
    return form.conversational and pairs(form)


def think(field: Field, row: int, side: str, thought: str, close: bool = True) -> None:
    answer = field[row].responses[side]
    field[row].responses[side] = (
        f"<think>\n{thought}\n</think>\n\n{answer}" if close else f"<think>\n{thought} {answer}"
    )


@planter("D220", chat_pairs)
def one_side_thinks(field: Field, row: int) -> None:
    think(field, row, field.side(), field.rng.choice(THOUGHTS))


@planter("D220", chat_pairs)
def one_side_thinks_long(field: Field, row: int) -> None:
    think(field, row, "chosen", THOUGHTS[0])
    think(field, row, "rejected", " ".join(THOUGHTS * 4))


@planter("D221", chat)
def never_closed(field: Field, row: int) -> None:
    for side in field.form.sides:
        think(field, row, side, field.rng.choice(THOUGHTS), close=False)


@planter("D222", chat)
def empty_block(field: Field, row: int) -> None:
    for side in field.form.sides:
        think(field, row, side, field.rng.choice(["", " ", "\n"]))


@planter("D223", chat_pairs)
def other_thoughts_same_answer(field: Field, row: int) -> None:
    field[row].responses["rejected"] = field[row].responses["chosen"]
    for side, thought in zip(field.form.sides, field.rng.sample(THOUGHTS, 2), strict=True):
        think(field, row, side, thought)


@planter("D224", chat)
def broken_call(field: Field, row: int) -> None:
    field[row].responses[field.side()] += '\n<tool_call>{"name": "measure", "arguments": {"place"</tool_call>.'


def with_tools(row: dict[str, Any]) -> None:
    row["tools"] = [{"type": "function", "function": {"name": "measure", "parameters": {"type": "object"}}}]


@planter("D225", chat)
def unheard_of_tool(field: Field, row: int) -> None:
    field[row].responses[field.side()] += '\n<tool_call>{"name": "weigh", "arguments": {}}</tool_call>.'
    edit(field[row], with_tools)


@planter("D226", chat)
def result_in_response(field: Field, row: int) -> None:
    field[row].responses[field.side()] += "\n<tool_response>It weighs 3 kg.</tool_response>."
