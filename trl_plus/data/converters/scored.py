"""Converters of datasets whose answers carry scores: the best against the worst, or a label for each."""

from typing import Any

from trl_plus.data.converters.dialogues import answers
from trl_plus.data.converters.parts import CONTEXT, TEXT_KEYS, answer_turns, prompt_turns, turns_of_prompt
from trl_plus.data.converters.rows import (
    COLUMNS,
    Row,
    Shape,
    Unconvertible,
    WrongShape,
    assistant,
    best_and_worst,
    labelled,
    pair,
    scores_of,
    text,
    user,
    with_system,
)
from trl_plus.data.responses import Message


def ultrafeedback_pair(fields: Row, paired: bool) -> list[Row]:
    """The binarized form: a text prompt, and two conversations whose last message is the answer."""
    text(fields, "prompt")
    return [answers(fields)]


# The mean of the aspects' ratings comes first: some early releases have wrong overall scores
_ULTRAFEEDBACK_SCORES = ("fine-grained_score", "overall_score")


def ultrafeedback_scored(fields: Row, paired: bool) -> list[Row]:
    """The original form: an instruction and four completions with scores. Best against worst."""
    completions = fields["completions"]
    if completions is None:
        raise Unconvertible("`completions` is null")
    if not isinstance(completions, list) or not all(isinstance(c, dict) and "response" in c for c in completions):
        raise WrongShape(f"`completions` must hold {{response, overall_score}}, but is {completions!r:.60}")
    known = [c for c in completions if c["response"] is not None]
    for name in _ULTRAFEEDBACK_SCORES:
        scores = scores_of([c.get(name) for c in known], name) if known else []
        if sum(score is not None for score in scores) >= 2:
            break
    turns = [[assistant(text(completion, "response"))] for completion in known]
    return [_binarized([user(text(fields, "instruction"))], turns, scores)]


def argilla_pair(fields: Row, paired: bool) -> list[Row]:
    """Two message lists or two texts, with a text prompt where they need one, and their ratings."""
    if isinstance(fields["chosen"], str):
        prompt = with_system(fields, [user(text(fields, "prompt"))])
        row = pair(prompt, *([assistant(text(fields, side))] for side in ("chosen", "rejected")))
    else:
        if isinstance(fields.get("prompt"), list):
            text(fields, "prompt")
        row = answers(fields)
    ratings = {f"score_{side}": fields[f"score_{side}"] for side in ("chosen", "rejected") if f"score_{side}" in fields}
    return [{**row, **{name: scores_of([value], name)[0] for name, value in ratings.items()}}]


def scored(fields: Row, paired: bool) -> list[Row]:
    """A prompt, its completions and their scores.

    For a method of pairs the best and the worst completion, the first of equal ones. For labelled rows every
    completion: desirable from the middle between the best and the worst score upwards.
    """
    context = with_system(fields, turns_of_prompt(fields["prompt"], "prompt"))
    completions, scores = fields["completions"], scores_of(fields["scores"], "scores")
    if "rank" in fields.get(COLUMNS, {}).get("scores", ""):  # the first is the best
        scores = [None if score is None else -score for score in scores]
    if completions is None:
        raise Unconvertible("`completions` is null")
    if not isinstance(completions, list):
        raise WrongShape(f"`completions` must be a list, but is {completions!r:.60}")
    if len(completions) != len(scores):
        raise Unconvertible(f"there are {len(completions)} completions but {len(scores)} scores")
    turns = [None if completion is None else _answer(completion) for completion in completions]
    return _scored_rows(context, turns, scores, paired)


def _scored_rows(
    context: list[Message], turns: list[list[Message] | None], scores: list[float | None], paired: bool
) -> list[Row]:
    """A pair of the best and the worst answer, or a labelled row of each."""
    if paired:
        known = [None if turn is None else score for turn, score in zip(turns, scores, strict=True)]
        return [_binarized(context, turns, known)]
    best, worst = best_and_worst(scores)
    middle = ((scores[best] or 0.0) + (scores[worst] or 0.0)) / 2
    rows = []
    for index, (turn, score) in enumerate(zip(turns, scores, strict=True)):
        if turn is None or score is None:
            raise Unconvertible(f"completion {index} has no {'score' if score is None else 'text'}")
        rows.append({**labelled(context, turn, score >= middle, source="completions"), "score": score})
    return rows


_ITEM_SCORES = ("score", "rating", "overall_score", "pm_score", "reward", "rank", "preference_rank")
_ITEM_TEXTS = ("completion", "messages", *TEXT_KEYS)
_ITEM_MARKS = {"chosen": 1.0, "rejected": 0.0, "preferred": 1.0, "dispreferred": 0.0}


def ranked(fields: Row, paired: bool) -> list[Row]:
    """A prompt and answers, each a mapping with its text or messages and its score or rank (the lowest is best)."""
    items = fields["answers"]
    if items is None:
        raise Unconvertible("`answers` is null")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise WrongShape(f"`answers` must hold mappings with a rank or a score, but is {items!r:.60}")
    turns = [_item_turns(item) for item in items]
    return _scored_rows(prompt_turns(fields), turns, _item_scores(items), paired)


def _item_scores(items: list[Row]) -> list[float | None]:
    """The score of each answer, the higher the better; of answers marked as chosen or rejected 1 and 0."""
    marks = [next((key for key in _ITEM_SCORES if isinstance(item.get(key), (int, float))), None) for item in items]
    mark = next((key for key in marks if key is not None), None)
    if mark is None:
        marked = [next((_ITEM_MARKS[v] for v in item.values() if isinstance(v, str) and v in _ITEM_MARKS), None)
                  for item in items]  # fmt: skip
        if None in marked or not marked:
            raise WrongShape(f"`answers` holds none of {', '.join(_ITEM_SCORES)}")
        return marked
    scores = scores_of([item.get(mark) for item in items], mark)
    return [None if score is None else -score for score in scores] if mark.endswith("rank") else scores


def _item_turns(item: Row) -> list[Message] | None:
    value = next((item[key] for key in _ITEM_TEXTS if item.get(key) is not None), None)
    return None if value is None else answer_turns(value, "answers")


def by_index(fields: Row, paired: bool) -> list[Row]:
    """A prompt, answers, and the number of the best one, counted from 0: a pair with each of the others."""
    items, best = fields["answers"], fields["best"]
    if items is None or best is None:
        raise Unconvertible(f"`{'answers' if items is None else 'best'}` is null")
    if not isinstance(items, list) or isinstance(best, bool) or not isinstance(best, int):
        raise WrongShape(
            f"`answers` must be a list and `best` a place in it, but they are {items!r:.40} and {best!r:.20}"
        )
    if not 0 <= best < len(items) or len(items) < 2:
        raise Unconvertible(f"`best` is {best}, but there are {len(items)} answers")
    turns = [_item_turns(item) if isinstance(item, dict) else answer_turns(item, "answers") for item in items]
    if None in turns:
        raise Unconvertible(f"answer {turns.index(None)} has no text")
    context = prompt_turns(fields)
    return [pair(context, turns[best] or [], other or [], ("answers", "answers"))
            for number, other in enumerate(turns) if number != best]  # fmt: skip


def _answer(completion: Any) -> list[Message]:
    if isinstance(completion, str):
        return [assistant(completion)]
    if isinstance(completion, (list, dict)):
        return answer_turns(completion, "completions")
    raise WrongShape(f"`completions` must hold texts or lists of messages, but holds {completion!r:.60}")


def _binarized(prompt: list[Message], turns: list[Any], scores: list[float | None]) -> Row:
    best, worst = best_and_worst(scores)
    row = pair(prompt, turns[best], turns[worst], ("completions", "completions"))
    return {**row, "score_chosen": scores[best], "score_rejected": scores[worst]}


def _ratings(side: str) -> tuple[str, ...]:
    return (f"score_{side}", f"{side}_rating", f"{side}-rating", f"rating_{side}", f"{side}_score",
            f"{side}_avg_rating")  # fmt: skip


_PROMPT = ("prompt", "instruction", "input")
_ALSO = (("system", "system_prompt"),)
_RATED = (*_ALSO, _ratings("chosen"), _ratings("rejected"))
_COMPLETIONS = ("completions", "responses", "generations", "candidates", "candidates_completions", "answers", "outputs",
                "replies", "all_generated_responses")  # fmt: skip
_SCORES = ("scores", "ratings", "rewards", "ranks", "rankings", "all_rm_scores", "rank")

ULTRAFEEDBACK = (
    Shape((("prompt",), ("chosen",), ("rejected",)), ultrafeedback_pair, (("messages",),)),
    Shape((("instruction",), ("completions",)), ultrafeedback_scored),
)
ARGILLA = (
    Shape((("chosen", "chosen_response"), ("rejected", "rejected_response")), argilla_pair, (_PROMPT, *_RATED)),
    Shape((_PROMPT, ("completions", "generations"), ("scores", "ratings")), scored, _ALSO, many=True),
)
_RANKED_PROMPT = (*_PROMPT, "question", "query", "context", "messages", "conversation", "contents", "post", "history")
_RANKED = ("answers", "completions", "responses", "candidates", "outputs", "replies", "generations", "summaries")
_BEST = ("best", "choice", "chosen_index", "preferred_index", "best_index", "best_answer_index")
SCORES = (
    Shape((_RANKED_PROMPT, _COMPLETIONS, _SCORES), scored, _ALSO, many=True, named=True),
    Shape((_RANKED_PROMPT, _RANKED, _BEST), by_index, CONTEXT, many=True),
    Shape((_RANKED_PROMPT, _RANKED), ranked, CONTEXT, many=True),
)
