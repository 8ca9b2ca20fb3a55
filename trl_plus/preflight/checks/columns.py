"""D112, D114, D213: columns that hold the prompt and are not used, a prompt that stands there twice, and tool calls."""

from trl_plus.data.messages import arguments_fault
from trl_plus.data.refusals import repeats_prompt
from trl_plus.data.unused import PROMPT_PARTS, unused
from trl_plus.preflight.registry import ERROR, WARNING, text_check
from trl_plus.preflight.rows import Row, excerpt, message_text


@text_check(
    "D112",
    ERROR,
    "a column that belongs to the prompt is not used",
    "Set `converter: text`, which puts `system`, `history`, `context`, the question and `initial_reason_steps` into "
    "the messages, or write the text into the prompt. If it is not part of the prompt, write `columns: {NAME: null}`.",
)
def unused_prompt(row: Row) -> str | None:
    if not any(name in row.raw for name in PROMPT_PARTS):
        return None
    said = [message_text(row.last_message(side)) for side in row.responses] if row.conversational else []
    names = unused(row.raw, PROMPT_PARTS, [row.prompt, *row.responses.values(), *said])
    if not names:
        return None
    return f"{', '.join(f'`{name}`' for name in names)}: {excerpt(str(row.raw[names[0]]))}"


@text_check(
    "D213",
    WARNING,
    "the arguments of a tool call are text that is not a JSON object",
    "Correct the text, or keep it if the model is to learn from it: most templates write it as a JSON string.",
)
def arguments_as_text(row: Row) -> str | None:
    if not row.conversational:
        return None
    for side, context in row.context.items():
        turns = [*context, row.last_message(side)]
        fault = arguments_fault(turns, side) if any(turn.get("tool_calls") for turn in turns) else None
        if fault is not None:
            return fault
    return None


@text_check(
    "D114",
    ERROR,
    "the sides begin with the messages of `prompt` again",
    "Write `columns: {prompt: null}`, since the sides hold the prompt themselves: the question would be asked twice.",
)
def prompt_twice(row: Row) -> str | None:
    if not row.conversational or not repeats_prompt(row.raw, row.responses):
        return None
    asked = [turn for turn in row.raw["prompt"] if turn["role"] != "system"]
    return f"prompt: {excerpt(message_text(asked[-1]))}"
