"""D22x: thinking blocks, tool calls and results in the responses."""

import re
from typing import Any

from trl_plus.data.messages import message_text, parsed
from trl_plus.data.spans import CALLS, RESULTS, THINKING, think_blocks
from trl_plus.preflight.registry import INFO, WARNING, text_check
from trl_plus.preflight.rows import Row, excerpt

_UNEQUAL = 4  # times the length of the other side's thinking
_LONG = 400  # characters of thinking below which lengths are not compared
_OPENERS = tuple(opener for opener, _, _ in THINKING)
_TAG = re.compile(r"<[^<>]*>|\[/?THINK\]|◁/?think▷|to=self|analysis")


def _thoughts(row: Row) -> dict[str, list[str]]:
    """The thinking blocks of each response, tags included."""
    found = {}
    for side in row.responses:
        text = row.said(side)
        found[side] = [text[start:end].strip() for start, end in think_blocks(text)]
    return found


def _bare(block: str) -> str:
    return _TAG.sub("", block).strip()


@text_check(
    "D220",
    WARNING,
    "only one response thinks, or one thinks at four times the length of the other",
    "Give both sides a thinking block, remove it, or set `mask: [think]`: the pair otherwise teaches whether and how "
    "long to think.",
)
def unequal_thinking(row: Row) -> str | None:
    if not row.paired or never_closed(row) is not None:
        return None
    sizes = {side: sum(len(_bare(block)) for block in blocks) for side, blocks in _thoughts(row).items()}
    (short, least), (long, most) = sorted(sizes.items(), key=lambda one: one[1])
    if most == 0 or (least > 0 and (most < _LONG or most < _UNEQUAL * least)):
        return None
    return f"{long} thinks in {most:,} characters, {short} in {least:,}"


@text_check(
    "D221",
    WARNING,
    "a thinking block is never closed",
    "Remove these rows, or close the block: the response was cut off before its answer.",
)
def never_closed(row: Row) -> str | None:
    for side in row.responses:
        text = row.said(side).lstrip()
        if not text.startswith(_OPENERS):
            continue
        for opener, closer, _ in THINKING:
            if text.startswith(opener) and closer not in text:
                return f"{side}: ...{excerpt(text[-60:])}"
    return None


@text_check(
    "D222",
    INFO,
    "a thinking block is empty",
    "Leave it if the model is to answer without thinking; otherwise remove the block, or write the thoughts.",
)
def empty_thinking(row: Row) -> str | None:
    for side, blocks in _thoughts(row).items():
        if any(not _bare(block) for block in blocks):
            return side
    return None


@text_check(
    "D223",
    WARNING,
    "the sides differ in their thinking only",
    "Keep them if the thinking is to be learned; with `mask: [think]` or `train_on: final_answer` remove them, since "
    "the pair then compares two equal answers.",
)
def same_but_for_thinking(row: Row) -> str | None:
    if not row.paired:
        return None
    answers, whole = [], []
    for side in row.responses:
        text = row.said(side)
        blocks = think_blocks(text)
        whole.append(text.strip())
        answers.append(text[blocks[-1][1] if blocks else 0 :].strip())
    return excerpt(answers[0]) if answers[0] and answers[0] == answers[1] and whole[0] != whole[1] else None


def _written_calls(row: Row) -> list[tuple[str, str]]:
    """(side, what stands between the tags) of tool calls in the text of a response."""
    found = []
    for side, text in row.responses.items():
        if "<" not in text:
            continue
        for match in CALLS.finditer(text):
            inner = re.sub(r"\A<[^<>]*>|<[^<>]*>\Z", "", match.group()).strip()
            if not inner.startswith("<"):  # an XML dialect
                found.append((side, inner))
    return found


@text_check(
    "D224",
    WARNING,
    "a tool call in the text of a response is not valid JSON",
    "Correct the text, or remove these rows: the model learns to write calls that cannot be read.",
)
def broken_call(row: Row) -> str | None:
    for side, inner in _written_calls(row):
        if inner[:1] in "{[" and isinstance(parsed(inner), str):
            return f"{side}: {excerpt(inner)}"
    return None


@text_check(
    "D225",
    WARNING,
    "a tool call names a tool that is not in `tools`",
    "Add the tool to `tools`, or remove these rows: the model learns to call what it was not given.",
)
def unknown_tool(row: Row) -> str | None:
    tools = parsed(row.raw.get("tools"))
    known = {_name(parsed(tool)) for tool in (tools if isinstance(tools, list) else [tools])} - {None}
    if not known:
        return None
    for side in row.responses:
        calls: list[Any] = [parsed(inner) for where, inner in _written_calls(row) if where == side]
        if row.conversational:
            calls += row.last_message(side).get("tool_calls") or []
        for call in calls:
            name = _name(call)
            if name is not None and name not in known:
                return f"{side}: {name}"
    return None


def _name(tool: Any) -> str | None:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


@text_check(
    "D226",
    WARNING,
    "the result of a tool stands in the text of a response",
    "Give it a message of the role `tool`, or set `mask: [tool_results]`: the model learns to invent results.",
)
def result_in_response(row: Row) -> str | None:
    for side in row.responses:
        text = message_text(row.last_message(side)) if row.conversational else row.responses[side]
        match = RESULTS.search(text)
        if match:
            return f"{side}: {excerpt(match.group())}"
    return None
