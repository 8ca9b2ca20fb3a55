"""Planters of D3xx, what stands in the texts, and of D6xx, rows that repeat others."""

import copy

from tests.preflight.planting import Field, pairs, planter, say


@planter("D301")
def read_as_latin_1(field: Field, row: int) -> None:
    words = ["naïve café", "l’été", "don’t — stop", "Füße", "smiling 😀", "“quoted”", "a … b", "20 € each"]
    say(field, row, field.rng.choice(words).encode().decode("cp1252", errors="replace"))


@planter("D301")
def replacement_character(field: Field, row: int) -> None:
    say(field, row, "na\ufffdve")


@planter("D302")
def invisible(field: Field, row: int) -> None:
    known = ["\u200b", "\u202e", "\u2060", "\x00", "\x1b", "\U000e0041"]
    say(field, row, f"zero{field.rng.choice(known)}width")


@planter("D303")
def personal(field: Field, row: int) -> None:
    known = ["jane.doe@mailhost.org", "4111 1111 1111 1111", "+44 20 7946 0958", "(212) 555-0147", "536-22-1846"]
    say(field, row, f"Reach me at {field.rng.choice(known)}.")


@planter("D304")
def secret(field: Field, row: int) -> None:
    known = ["AKIA" + "Q3EXAMPLE7RTYUIO", "ghp_" + "aB3" * 12, "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
             "-----BEGIN RSA " + "PRIVATE KEY-----", "sk-" + "proj-a1B2c3D4e5F6g7H8i9J0k1L2m3"]  # fmt: skip
    say(field, row, f"Use {field.rng.choice(known)} there.")


@planter("D305", pairs)
def score_says_the_opposite(field: Field, row: int) -> None:
    for sample in field.samples:
        sample.extra |= {"score_chosen": 8.0, "score_rejected": 3.5} if "score_chosen" not in sample.extra else {}
    field[row].extra |= {"score_chosen": 2.0, "score_rejected": 6.5}


@planter("D601")
def exact_copy(field: Field, row: int) -> set[int]:
    donor = field.take()
    field.samples[row] = copy.deepcopy(field[donor])
    return {max(row, donor)}


@planter("D602")
def near_copy(field: Field, row: int) -> set[int]:
    donor = field.take()
    long = " ".join(f"{word} {number}" for number, word in enumerate(("maple", "cedar", "birch") * 25))
    for number, side in enumerate(field.form.sides):
        field[donor].responses[side] = f"{'Trees'[number:]} of row {donor}: {long}"
    field.samples[row] = copy.deepcopy(field[donor])
    side = field.side()
    field[row].responses[side] += " and one more."
    return {max(row, donor)}


@planter("D603")
def opposite_preference(field: Field, row: int) -> set[int]:
    donor = field.take()
    field.samples[row] = copy.deepcopy(field[donor])
    if field.form.paired:
        chosen, rejected = field.form.sides
        said = field[row].responses
        field[row].responses = {chosen: said[rejected], rejected: said[chosen]}
    else:
        field[row].label = not field[donor].label
    return {row, donor}
