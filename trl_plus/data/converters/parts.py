"""Prompts and answers of any kind as messages: text, transcripts, single messages, lists of messages."""

from typing import Any

from trl_plus.data.converters.dialogues import transcript
from trl_plus.data.converters.rows import (
    Row,
    Unconvertible,
    WrongShape,
    assistant,
    from_value,
    message_keys,
    messages,
    optional_text,
    role_of,
    user,
)
from trl_plus.data.folding import history_turns, speakers
from trl_plus.data.messages import listed, parsed
from trl_plus.data.responses import Message

# Fields by the names that public datasets give them
PROMPT = ("prompt", "question", "instruction", "query", "input", "problem", "user_prompt", "post", "history",
          "user_input", "question_body", "task_description", "prompt_text")  # fmt: skip
ANSWER = ("response", "completion", "answer", "output")  # the wanted one, if only the other is named as such
CHOSEN = ("chosen", "chosen_response", "response_chosen", "preferred", "preferred_response", "response_j", "accepted",
          "positive", "pos", "win", "better", "better_response", "good", "winner_response")  # fmt: skip
REJECTED = ("rejected", "rejected_response", "response_rejected", "dispreferred", "non_preferred_response",
            "response_k", "negative", "neg", "lose", "worse", "worse_response", "bad", "loser_response")  # fmt: skip
TEXT_KEYS = ("full_text", "text", "answer", "response", "content", "value", "completion", "output", "message", "body")
OPENING = ("initial_reason_steps", "response_prefix", "partial_response")
CONTEXT = (("system", "system_prompt", "system_message"), ("history",),
           ("context", "passage", "document", "article", "background"), ("input",), OPENING, ("tools",))  # fmt: skip


def prompt_turns(fields: Row, name: str = "prompt") -> list[Message]:
    """The turns before the answer: the system message, earlier exchanges, a context, and the prompt itself."""
    turns = turns_of_prompt(fields.get(name), name)
    given = optional_text(fields, "input")
    context = optional_text(fields, "context")
    last = turns[-1]
    if given or context:
        if last["role"] != "user" or not isinstance(last["content"], str):
            raise Unconvertible(
                f"`{name}` does not end with a text of the user, so `context` and `input` have no place"
            )
        parts = ([f"{context}\n"] if context else []) + [last["content"]] + ([given] if given else [])
        turns = [*turns[:-1], {**last, "content": "\n".join(parts)}]
    earlier = history_turns(fields.get("history"))
    if earlier is None:
        raise WrongShape(f"`history` must hold [question, answer] texts or messages, but is {fields['history']!r:.60}")
    system = optional_text(fields, "system")
    own = turns[0]["role"] == "system"
    return [*turns[:own], *([] if own or not system else [_system(system)]), *earlier, *turns[own:]]


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def turns_of_prompt(value: Any, name: str) -> list[Message]:
    """A prompt of any kind as messages. A text that is a transcript of Human and Assistant is read as one."""
    if isinstance(value, dict) and message_keys(value) is None:
        value = _text_in(value, name)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    value = listed(value)
    if isinstance(value, str):
        if value.startswith("\n\nHuman:"):
            turns = transcript(value, name)
            if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
                turns = turns[:-1]
            return turns
        if not value.strip():
            raise Unconvertible(f"`{name}` is blank")
        return [user(value)]
    if value is None:
        raise Unconvertible(f"`{name}` is null")
    return conversation(value, name)


def conversation(value: Any, name: str) -> list[Message]:
    """A list of messages, or one, under any of the usual keys; or exchanges, as {user, assistant}. Roles get the names
    of chat templates."""
    value = [value] if isinstance(value, dict) else listed(value)
    first = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}
    if speakers(first) is not None:
        turns = history_turns(value, open_end=True)
        if turns is None:
            raise WrongShape(f"`{name}` must hold exchanges of two texts, but is {value!r:.60}")
        return turns
    if message_keys(first) not in (None, ("role", "content")):
        return from_value([_from_value(message) for message in value], name)
    return [{**message, "role": role_of(message)} for message in messages(value, name)]


def _from_value(message: Any) -> Any:
    """A message under the keys `from` and `value`."""
    keys = message_keys(message) if isinstance(message, dict) else None
    if keys is None:
        return message
    said = message[keys[1]]
    if keys[1] == "parts" and isinstance(said, list) and all(isinstance(part, dict) for part in said):
        said = "\n".join(str(part["text"]) for part in said if part.get("text") is not None)
    return {"from": message[keys[0]], "value": said, **{key: part for key, part in message.items() if key not in keys}}


def dialogues(fields: Row, sides: tuple[str, str], prompt: str = "prompt") -> Row:
    """Fields whose prompt and sides are lists of texts (or JSON text of such), one per turn, as conversations."""
    asked = _texts(fields.get(prompt))
    found = {name: _texts(fields.get(name)) for name in sides} if asked else {}
    if not asked or any(texts is None or len(texts) != len(asked) for texts in found.values()):
        return fields
    rest = {name: value for name, value in fields.items() if name != prompt}
    for side, texts in found.items():
        if None in (*asked, *(texts or ())):
            raise Unconvertible(f"a turn of `{side}` is null")
        rest[side] = [
            turn for said, text in zip(asked, texts or (), strict=True) for turn in (user(said), assistant(text))
        ]
    return rest


def _texts(value: Any) -> list[Any] | None:
    value = parsed(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    known = isinstance(value, list) and all(part is None or isinstance(part, str) for part in value)
    return value if known else None


def answer_turns(value: Any, name: str) -> list[Message]:
    """An answer of any kind as messages, the last of which is the response."""
    value = listed(value)
    if isinstance(value, str):
        return [assistant(value)]
    if value is None:
        raise Unconvertible(f"`{name}` is null")
    if isinstance(value, dict) and message_keys(value) is None:
        return [assistant(_text_in(value, name))]
    if isinstance(value, list) and value and isinstance(value[0], str):
        if len(value) > 1:
            raise WrongShape(f"`{name}` holds {len(value)} texts")
        return [assistant(value[0])]
    return conversation(value, name)


def _text_in(value: dict[str, Any], name: str) -> str:
    for key in TEXT_KEYS:
        if isinstance(value.get(key), str):
            return str(value[key])
    raise WrongShape(f"`{name}` is a mapping without any of the keys {', '.join(TEXT_KEYS)}: {value!r:.60}")


def opened(turns: list[Message], fields: Row) -> list[Message]:
    """An answer that goes on where the field `initial_reason_steps` stops, with these steps in front."""
    opening = optional_text(fields, OPENING[0])
    if not opening:
        return turns
    if len(turns) > 1 or not isinstance(turns[0]["content"], str):
        raise WrongShape(f"`{OPENING[0]}` does not stand beside a single text")
    return [{**turns[0], "content": opening + turns[0]["content"]}]


def whole(context: list[Message], answers: list[list[Message]]) -> list[Message]:
    """The context to put in front of answers: none if they are conversations that hold it themselves."""
    spoken = [turn for turn in context if turn["role"] != "system"]
    if spoken and all(len(turns) > 1 and _begins(turns, spoken[0]) for turns in answers):
        own = all(turns[0]["role"] == "system" for turns in answers)
        return [] if own else [turn for turn in context if turn["role"] == "system"]
    return context


def _begins(turns: list[Message], first: Message) -> bool:
    spoken = next((turn for turn in turns if turn["role"] != "system"), None)
    return spoken is not None and (spoken["role"], spoken["content"]) == (first["role"], first["content"])
