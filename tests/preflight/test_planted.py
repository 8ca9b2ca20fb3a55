"""Every defect is found at the rows that it was planted in, alone and among others, and nothing else is."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.preflight.corpus import FORMS, clean_samples, rendered
from tests.preflight.looks import counts, first_rows, look
from tests.preflight.planters import PLANTERS, Field
from trl_plus.preflight.registry import every_check

ROWS, PLANTED = 120, 4
CASES = [(planter, form) for planter in PLANTERS for form in planter.forms]


def new_field(form, seed, rows=ROWS):
    return Field(clean_samples(form, rows, seed), form, random.Random(seed), list(range(rows)))


def planted(field, planter, times):
    """The rows at which a planter's code must be found."""
    rows = set()
    for _ in range(times):
        row = field.take()
        found = planter.plant(field, row)
        rows |= {row} if found is None else found
    return rows


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_clean_rows_have_no_finding(form, tmp_path):
    result = look(rendered(clean_samples(form, 400, 3), form), form, tmp_path / "rows.jsonl")
    assert not result.findings
    assert result.splits[0].checked == 400


@pytest.mark.parametrize("planter, form", CASES, ids=[f"{p.code}-{p.name}-{form.name}" for p, form in CASES])
def test_a_defect_alone_is_found_and_nothing_else(planter, form, tmp_path):
    field = new_field(form, len(planter.name) + len(form.name))
    rows = planted(field, planter, PLANTED)
    result = look(rendered(field.samples, form), form, tmp_path / "rows.jsonl")
    assert set(counts(result)) == {planter.code} | planter.implies(form)
    assert counts(result)[planter.code] == len(rows)
    assert first_rows(result)[planter.code] == sorted(rows)[:3]
    assert result.findings[0].severity is every_check()[planter.code].severity


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_defects_among_each_other_are_all_found(form, tmp_path, seed):
    field = new_field(form, seed, rows=200)
    planters = [planter for planter in PLANTERS if planter.fits(form)]
    field.rng.shuffle(planters)
    wanted, implied = {}, set()
    for planter in planters:
        rows = planted(field, planter, field.rng.randint(0, 2))
        if rows:
            wanted.setdefault(planter.code, set()).update(rows)
            implied |= planter.implies(form) if rows else set()
    result = look(rendered(field.samples, form), form, tmp_path / f"{seed}.jsonl")
    found = counts(result)
    found.pop("D510", None)  # blank and long responses, planted on one side by chance
    assert {code: found.get(code, 0) for code in wanted if code not in implied} == {
        code: len(rows) for code, rows in wanted.items() if code not in implied
    }
    assert set(found) == set(wanted) | implied
    for code in set(wanted) - implied:
        assert first_rows(result)[code] == sorted(wanted[code])[:3], code


@pytest.mark.parametrize("code, name", [("D108", "no_question"), ("D102", "null_side"), ("D104", "no_messages")])
def test_a_defect_in_the_first_row_does_not_hide_those_of_the_others(code, name, tmp_path):
    form = FORMS["chat"]
    field = new_field(form, 1)
    [plant] = [planter.plant for planter in PLANTERS if planter.name == name and planter.code == code]
    for row in (0, 1, 60):
        plant(field, row)
    result = look(rendered(field.samples, form), form, tmp_path / "rows.jsonl")
    assert first_rows(result) == {code: [0, 1, 60]}


@pytest.mark.parametrize("name", ["chat-implicit", "text-implicit"])
def test_a_column_prompt_that_only_some_rows_fill(name, tmp_path):
    """TRL looks for the prompt in the sides only where there is no such column at all."""
    form = FORMS[name]
    rows = rendered(clean_samples(form, 60), form)
    for row in (5, 6):
        rows[row]["prompt"] = "Why?"
    result = look(rows, form, tmp_path / "rows.jsonl")
    assert counts(result) == {"D102": 58, "D103": 2}
    assert first_rows(result) == {"D102": [0, 1, 2], "D103": [5, 6]}
