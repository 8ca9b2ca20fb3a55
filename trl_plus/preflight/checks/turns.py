"""D2xx: prompt, responses and turns as text."""

import re

from trl_plus.preflight.registry import ERROR, INFO, WARNING, text_check
from trl_plus.preflight.rows import Row, excerpt, message_text

# how text begins and ends a turn where it went through a template already
_TEMPLATED = re.compile(
    r"(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>)?\s*(?:"
    r"<\|im_start\|>\s*(system|user|assistant)\b|<\|start_header_id\|>\s*\w+\s*<\|end_header_id\|>"
    r"|<start_of_turn>\s*(user|model)\b|<\|(system|user|assistant|end|turn|start_of_role)\|>"
    r"|\[/?INST\]|<</?SYS>>|<\|(START|END)_OF_TURN_TOKEN\|>|<｜(User|Assistant)｜>)"
)
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>",
         "<end_of_turn>", "<eos>", "<｜end▁of▁sentence｜>")  # fmt: skip
# such a mark at the beginning of a line, or an end of sequence at the end of one, outside of code
_RAN_ON = re.compile(
    r"^<\|(im_start|im_end|eot_id|start_header_id|user|assistant|system)\|>|^<start_of_turn>"
    r"|\S(</s>|<\|im_end\|>|<\|eot_id\|>|<\|endoftext\|>|<end_of_turn>)\s*$",
    re.MULTILINE,
)
# how a prompt of another format opens the answer: `### Response:`, `Assistant:`
_OPENING = re.compile(
    r"(?:^|\n)[ \t]*(?:#{2,3}\s*(?:Response|Assistant|Answer|Output)|(?:GPT4 Correct )?Assistant|ASSISTANT|Bot|Chatbot"
    r"|AI)\s*:\s*\Z"
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<s>.*?</s>", re.DOTALL)
_WHOLE = 24  # characters of a prompt from which a response does not begin with it by chance
_HH = re.compile(r"\n\n(Human|Assistant): ?")


def templated(text: str) -> bool:
    """True if a text begins with the mark of a chat template."""
    return bool(_TEMPLATED.match(text.lstrip()[:96]))


@text_check("D201", ERROR, "the prompt is blank", "Remove these rows, or write the prompt: nothing is asked for here.")
def blank_prompt(row: Row) -> str | None:
    if row.implicit and row.chosen == row.rejected:  # identical sides, which another check reports
        return None
    asked = (
        [message_text(turn) for turn in row.turns if turn["role"] != "system"] if row.conversational else [row.prompt]
    )
    if any(text.strip() for text in asked) or _has_media(row):
        return None
    return "there is no prompt: the sides have no beginning in common" if row.implicit else "the prompt is blank"


@text_check(
    "D202",
    ERROR,
    "a wanted response is blank",
    "Remove these rows: they teach the model to say nothing.",
)
def blank_wanted(row: Row) -> str | None:
    side = "chosen" if row.paired else "completion"
    wanted = row.paired or row.label
    return f"{side} is blank" if wanted and _is_blank(row, side) else None


@text_check(
    "D203",
    WARNING,
    "an unwanted response is blank",
    "Remove these rows: a response of one token weighs heavily in length-normalised losses and teaches little.",
)
def blank_unwanted(row: Row) -> str | None:
    side = "rejected" if row.paired else "completion"
    unwanted = row.paired or not row.label
    return f"{side} is blank" if unwanted and _is_blank(row, side) else None


@text_check(
    "D204",
    ERROR,
    "chosen and rejected are the same response",
    "Remove these rows: a pair of equals holds no preference, and its gradient is noise.",
)
def identical_sides(row: Row) -> str | None:
    if not row.paired or row.chosen.strip() != row.rejected.strip() or _calls(row):
        return None
    if row.conversational and row.context["chosen"] != row.context["rejected"]:
        return None  # the same last words after different histories
    if row.said("chosen").strip() != row.said("rejected").strip():
        return None  # D223
    return excerpt(row.chosen)


@text_check(
    "D205",
    WARNING,
    "one side is the beginning of the other",
    "Look at them: usually one side was cut off while it was generated.",
    rare=0.01,
)
def prefix_side(row: Row) -> str | None:
    if not row.paired:
        return None
    chosen, rejected = row.chosen.strip(), row.rejected.strip()
    if not chosen or not rejected or chosen == rejected:
        return None
    short, long = sorted((chosen, rejected), key=len)
    if not long.startswith(short) or _ends_a_sentence(short):
        return None
    return f"{'chosen' if short is chosen else 'rejected'}: ...{excerpt(short[-60:])}"


@text_check(
    "D206",
    WARNING,
    "turns are out of order",
    "Let user and assistant alternate, with a system message only at the beginning.",
)
def turn_order(row: Row) -> str | None:
    for side, context in row.context.items():
        before = None
        for number, role in enumerate([*(turn["role"] for turn in context), "assistant"]):
            if not _may_follow(role, before, number):
                return f"{side}: {role} after {before or 'nothing'} (message {number})"
            before = role
    return None


@text_check(
    "D208",
    WARNING,
    "the sides differ before the last turn",
    "Only the last assistant turn is trained on; if the earlier turns should be, set `train_on: all`.",
)
def different_histories(row: Row) -> str | None:
    if not row.paired or not row.conversational or row.context["chosen"] == row.context["rejected"]:
        return None
    pairs = zip(row.context["chosen"], row.context["rejected"], strict=False)
    turn = next((number for number, (a, b) in enumerate(pairs) if a != b), None)
    return "one side has more turns" if turn is None else f"first in message {turn}"


@text_check(
    "D209",
    WARNING,
    "the prompt that the sides share ends inside a word or a turn",
    "Add a column `prompt`, or name the format (`converter: hh`): TRL splits where the texts begin to differ.",
)
def bad_implicit_split(row: Row) -> str | None:
    if not row.implicit or row.chosen == row.rejected:
        return None
    turns = list(_HH.finditer(row.prompt))
    if turns:  # dialogues in one text: the prompt must end where the assistant begins
        rest = row.prompt[turns[-1].end() :]
        bad = turns[-1].group(1) != "Assistant" or rest.strip()
    else:
        bad = any(row.prompt[-1:].isalnum() and side[:1].isalnum() for side in row.responses.values())
    return f"...{row.prompt[-60:]!r} | {row.chosen[:30]!r} / {row.rejected[:30]!r}" if bad else None


@text_check(
    "D210",
    ERROR,
    "the text of a message went through a chat template already",
    "Give the plain text of each turn: the template is applied by the trainer, and would be applied twice.",
)
def already_templated(row: Row) -> str | None:
    if not row.conversational:
        return None  # text is trained on as it stands, so a template's marks belong there
    for where, text in row.texts:
        if templated(text):
            return f"{where}: {excerpt(text)}"
        if text.rstrip().endswith(_ENDS):
            return f"{where}: ...{excerpt(text.rstrip()[-60:])}"
    return None


@text_check(
    "D211",
    WARNING,
    "the responses begin with the whole prompt again",
    "Remove the prompt from the responses: the model is trained on prompt and response one after the other.",
)
def prompt_repeated(row: Row) -> str | None:
    prompt = row.turns[-1:] and message_text(row.turns[-1]) if row.conversational else row.prompt
    prompt = (prompt or "").strip()
    if len(prompt) < _WHOLE or not all(text.lstrip().startswith(prompt) for text in row.responses.values()):
        return None
    return excerpt(next(iter(row.responses.values())))


@text_check(
    "D212",
    INFO,
    "a mark of a chat template stands inside a text",
    "Look at them, and cut the text there: a model that ran on past its turn wrote such marks.",
)
def ran_on(row: Row) -> str | None:
    if not row.conversational or already_templated(row) is not None:
        return None
    for where, text in row.texts:
        if _RAN_ON.search(text) and (match := _RAN_ON.search(_CODE.sub("", text))):
            return f"{where}: {excerpt(_CODE.sub('', text), match.start())}"
    return None


@text_check(
    "D214",
    WARNING,
    "the prompt ends as another prompt format opens the answer",
    "Remove `### Response:`, `Assistant:` and the like from the prompt, since the chat template opens the answer "
    "(`converter: hh` reads dialogues of Human: and Assistant:).",
)
def opens_the_answer(row: Row) -> str | None:
    if not row.turns or not (match := _OPENING.search(message_text(row.turns[-1]))):
        return None
    return f"...{excerpt(message_text(row.turns[-1])[max(0, match.start() - 60) :])}"


def _is_blank(row: Row, side: str) -> bool:
    return not row.responses[side].strip() and not _calls(row)


def _calls(row: Row) -> bool:
    """True if a response is a tool call, or blocks that are not text."""
    if not row.conversational:
        return False
    last = [row.last_message(side) for side in row.responses]
    return any(message.get("tool_calls") or _has_blocks(message) for message in last)


def _has_blocks(message: dict) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(block, dict) and block.get("type") not in (None, "text") for block in content
    )


def _has_media(row: Row) -> bool:
    return row.images or any(map(_has_blocks, row.turns))


def _ends_a_sentence(text: str) -> bool:
    return text.rstrip("\"'*)]}”’」").endswith((".", "!", "?", "。", "！", "？", ":", ";", "…", "```"))


def _may_follow(role: str, before: str | None, number: int) -> bool:
    if role in ("system", "developer"):
        return number == 0 or (number == 1 and before in ("system", "developer"))
    if role == "user":
        return before in (None, "system", "developer", "assistant")
    if role == "assistant":
        return before in ("user", "tool", "function", "ipython")
    return True  # tools: after a call or another tool; unknown roles are another check's
