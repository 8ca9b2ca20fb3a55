"""Planters of D1xx: rows that no trainer can tokenize."""

from tests.preflight.planting import Field, chat, edit, implicit_text, planter, put


@planter("D102")
def null_side(field: Field, row: int) -> None:
    put(field[row], field.side(), None)


@planter("D102", lambda form: form.prompt != "implicit")
def null_prompt(field: Field, row: int) -> None:
    put(field[row], "prompt", None)


@planter("D102", lambda form: not form.paired)
def null_label(field: Field, row: int) -> None:
    field[row].label = None


@planter("D103")
def side_of_the_other_kind(field: Field, row: int) -> None:
    value = "Only text." if field.form.conversational else [{"role": "assistant", "content": "A message."}]
    put(field[row], field.side(), value)


@planter("D103", chat)
def message_without_content(field: Field, row: int) -> None:
    side = field.side()
    edit(field[row], lambda row: row[side][-1].update(content=None))


@planter("D103", chat)
def message_without_role(field: Field, row: int) -> None:
    side = field.side()
    edit(field[row], lambda row: row[side][0].pop("role"))


@planter("D103", lambda form: not form.conversational)
def number_as_text(field: Field, row: int) -> None:
    put(field[row], field.side(), 42)


@planter("D104", lambda form: form.conversational)
def no_messages(field: Field, row: int) -> None:
    put(field[row], field.side(), [])


@planter("D104", implicit_text)
def no_text(field: Field, row: int) -> None:
    put(field[row], field.side(), "")


@planter("D105", lambda form: not form.paired)
def label_in_words(field: Field, row: int) -> None:
    field[row].label = field.rng.choice(["desirable", "yes", "good"])


@planter("D105", lambda form: not form.paired)
def label_out_of_range(field: Field, row: int) -> None:
    field[row].label = field.rng.choice([2, -1, 5])


@planter("D106")
def impossible_weight(field: Field, row: int) -> None:
    for sample in field.samples:
        sample.extra.setdefault("weight", 1.0)
    field[row].extra["weight"] = field.rng.choice([-1.0, -0.001])


@planter("D107", chat)
def user_speaks_last(field: Field, row: int) -> None:
    side = field.side()
    edit(field[row], lambda row: row[side].append({"role": "user", "content": "Thanks!"}))


@planter("D107", chat)
def response_of_another_role(field: Field, row: int) -> None:
    side, role = field.side(), field.rng.choice(["user", "tool", "system"])
    edit(field[row], lambda row: row[side][-1].update(role=role))


@planter("D108", lambda form: form.conversational and form.prompt == "implicit" and form.paired)
def different_questions(field: Field, row: int) -> None:
    edit(field[row], lambda row: row["rejected"][0].update(content="Another question altogether?"))


@planter("D108", lambda form: form.conversational and form.prompt != "text")
def no_question(field: Field, row: int) -> None:
    field[row].turns = []
