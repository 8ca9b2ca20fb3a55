"""Pairs from several rows: trees of messages, as OpenAssistant publishes them, and one scored answer a row."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from trl_plus.data.converters.parts import CONTEXT, PROMPT, answer_turns, prompt_turns
from trl_plus.data.converters.rows import Row, Shape, Unconvertible, WrongShape, best_and_worst, pair, scores_of

_ROLES = {"prompter": "user", "user": "user", "human": "user", "assistant": "assistant", "system": "system"}


def tree_rows(columns: Mapping[str, list[Any]]) -> Iterator[tuple[int, Row]]:
    """(row of the chosen answer, pair) for each message that has answers of different ranks: the best and the worst.

    Args:
        columns: `message_id`, `parent_id`, `text`, `role` and `rank` of all rows.

    Raises:
        WrongShape: a role is unknown, or a message answers itself.
    """
    ids, parents = columns["message_id"], columns["parent_id"]
    place = {message: row for row, message in enumerate(ids)}
    answers: dict[Any, list[int]] = defaultdict(list)
    for row, (parent, role) in enumerate(zip(parents, columns["role"], strict=True)):
        if role not in _ROLES:
            raise WrongShape(f"`role` of row {row} is {role!r}, which is none of {', '.join(_ROLES)}")
        if parent is not None and _ROLES[role] == "assistant" and columns["rank"][row] is not None:
            answers[parent].append(row)
    for parent, rows in answers.items():
        ordered = sorted(rows, key=lambda row: columns["rank"][row])
        best, worst = ordered[0], ordered[-1]
        path = _path(place.get(parent), parents, place)
        if path is None or columns["rank"][best] == columns["rank"][worst]:
            continue
        turns = [{"role": _ROLES[columns["role"][at]], "content": columns["text"][at]} for at in (*path, best, worst)]
        yield best, pair(turns[:-2], turns[-2:-1], turns[-1:])


def _path(row: int | None, parents: list[Any], place: Mapping[Any, int]) -> list[int] | None:
    """The rows from the root of the tree to a row; None if one of them is missing."""
    path: list[int] = []
    while row is not None:
        if row in path:
            raise WrongShape(f"row {row} answers itself")
        path.append(row)
        if parents[row] is None:
            return path[::-1]
        row = place.get(parents[row])
    return None


def grouped_rows(columns: Mapping[str, list[Any]]) -> Iterator[tuple[int, Row]]:
    """(row of the best answer, pair) for each prompt whose answers, one a row, have different scores."""
    prompts: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(columns["prompt"]):
        prompts[repr(prompt)].append(row)
    scores = scores_of(columns["score"], "score")
    for rows in prompts.values():
        try:
            best, worst = (rows[place] for place in best_and_worst([scores[row] for row in rows]))
            fields = {name: values[best] for name, values in columns.items()}
            sides = [answer_turns(columns["response"][row], "response") for row in (best, worst)]
            made = pair(prompt_turns(fields), *sides)
        except Unconvertible:
            continue
        yield best, {**made, "score_chosen": scores[best], "score_rejected": scores[worst]}


def _needs_all(fields: Row, paired: bool) -> list[Row]:
    raise Unconvertible("a pair is made of several rows")


_SCORE = ("score", "rating", "reward", "helpfulness", "overall_score", "overall_rating", "quality")
TREES = (Shape((("message_id",), ("parent_id",), ("text",), ("role",), ("rank",)), _needs_all, gather=tree_rows),)
GROUPS = (
    Shape((PROMPT, ("response", "completion", "answer", "output"), _SCORE), _needs_all,
          tuple(names for names in CONTEXT if names[0] != "history"), gather=grouped_rows),
)  # fmt: skip
