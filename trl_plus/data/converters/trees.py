"""Pairs from several messages: trees, as OpenAssistant publishes them, and one scored answer a row.

What gives no pair is named with its reason: (row, new row, or text that says why there is none).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from trl_plus.data.converters.parts import CONTEXT, PROMPT, answer_turns, prompt_turns
from trl_plus.data.converters.rows import Row, Shape, Unconvertible, WrongShape, best_and_worst, pair, scores_of

_ROLES = {"prompter": "user", "user": "user", "human": "user", "assistant": "assistant", "system": "system"}


def tree_rows(columns: Mapping[str, list[Any]]) -> Iterator[tuple[int, Row | str]]:
    """(row of the chosen answer, pair) for each message that has answers of different ranks: the best and the worst.
    (row, reason) for each answer that is compared with no other.

    Args:
        columns: `message_id`, `parent_id`, `text`, `role` and `rank` of all rows.

    Raises:
        WrongShape: a role is unknown, or a message answers itself.
    """
    ids, parents, ranks = columns["message_id"], columns["parent_id"], columns["rank"]
    place = {message: row for row, message in enumerate(ids)}
    answers: dict[Any, list[int]] = defaultdict(list)
    for row, (parent, role) in enumerate(zip(parents, columns["role"], strict=True)):
        if role not in _ROLES:
            raise WrongShape(f"`role` of row {row} is {role!r}, which is none of {', '.join(_ROLES)}")
        if parent is not None and _ROLES[role] == "assistant":
            answers[parent].append(row)
    for parent, rows in answers.items():
        yield from ((row, "the answer has no rank") for row in rows if ranks[row] is None)
        ordered = sorted((row for row in rows if ranks[row] is not None), key=lambda row: ranks[row])
        path = _path(place.get(parent), parents, place)
        reason = _no_pair([ranks[row] for row in ordered], path is None)
        if reason is not None:
            yield from ((row, reason) for row in ordered)
            continue
        best, worst = ordered[0], ordered[-1]
        turns = [{"role": _ROLES[columns["role"][at]], "content": columns["text"][at]} for at in (*path, best, worst)]
        yield best, pair(turns[:-2], turns[-2:-1], turns[-1:])


def _no_pair(ranks: list[Any], lost: bool = False) -> str | None:
    """Why ranked answers to one message give no pair; None if they do."""
    if lost:
        return "a message before the answer is missing"
    if len(ranks) < 2:
        return "the answer is the only one with a rank"
    return "the answers have the same rank" if ranks[0] == ranks[-1] else None


def nested_tree(fields: Row, paired: bool) -> list[Row]:
    """A tree whose messages hold their answers in `replies`: a pair for each message with answers of two ranks."""
    root = fields["prompt"]
    if not isinstance(root, dict) or not {"text", "role", "replies"} <= set(root):
        raise WrongShape(f"`prompt` must be a message {{text, role, replies}}, but is {root!r:.60}")
    rows: list[Row] = []
    open_nodes = [(root, [])]
    while open_nodes:
        node, before = open_nodes.pop()
        if node["role"] not in _ROLES:
            raise WrongShape(f"a role in `prompt` is {node['role']!r}, which is none of {', '.join(_ROLES)}")
        path = [*before, {"role": _ROLES[node["role"]], "content": node["text"]}]
        replies = [reply for reply in node.get("replies") or [] if isinstance(reply, dict)]
        answers = [
            reply for reply in replies if _ROLES.get(reply["role"]) == "assistant" and reply.get("rank") is not None
        ]
        answers.sort(key=lambda reply: reply["rank"])
        if _no_pair([reply["rank"] for reply in answers]) is None:
            best, worst = ([{"role": "assistant", "content": reply["text"]}] for reply in (answers[0], answers[-1]))
            rows.append(pair(path, best, worst))
        open_nodes += [(reply, path) for reply in reversed(replies)]
    if not rows:
        raise Unconvertible("no message has answers of different ranks")
    return rows


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


def grouped_rows(columns: Mapping[str, list[Any]]) -> Iterator[tuple[int, Row | str]]:
    """(row of the best answer, pair) for each prompt whose answers, one a row, have different scores; (row, reason) for
    each answer that is compared with no other."""
    prompts: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(columns["prompt"]):
        prompts[repr(prompt)].append(row)
    scores = scores_of(columns["score"], "score")
    for rows in prompts.values():
        known = [row for row in rows if scores[row] is not None]
        yield from ((row, "the answer has no score") for row in rows if scores[row] is None)
        try:
            if len(known) == 1:
                raise Unconvertible("the prompt has no second answer with a score")
            best, worst = (known[place] for place in best_and_worst([scores[row] for row in known]))
            fields = {name: values[best] for name, values in columns.items()}
            sides = [answer_turns(columns["response"][row], "response") for row in (best, worst)]
            made = pair(prompt_turns(fields), *sides)
        except Unconvertible as error:
            yield from ((row, str(error)) for row in known)
            continue
        yield best, {**made, "score_chosen": scores[best], "score_rejected": scores[worst]}


def _needs_all(fields: Row, paired: bool) -> list[Row]:
    raise Unconvertible("a pair is made of several rows")


_SCORE = ("score", "rating", "reward", "helpfulness", "overall_score", "overall_rating", "quality")
TREES = (
    Shape((("message_id",), ("parent_id",), ("text",), ("role",), ("rank",)), _needs_all, gather=tree_rows),
    Shape((("prompt", "root"), ("message_tree_id", "tree_state")), nested_tree, many=True),
)
GROUPS = (
    Shape((PROMPT, ("response", "completion", "answer", "output"), _SCORE), _needs_all,
          tuple(names for names in CONTEXT if names[0] != "history"), gather=grouped_rows),
)  # fmt: skip
