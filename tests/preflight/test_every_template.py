"""Every chat template of the installed TRL, times the kinds of turns: a part that it does not write is a finding."""

from pathlib import Path

import pytest
import trl

from tests.conftest import user
from tests.preflight.toys import build_toy
from trl_plus.data.forms import row_in_form
from trl_plus.preflight.examine import Batch, tokenized
from trl_plus.preflight.registry import TOKENS
from trl_plus.preflight.rows import ROW, SOURCE_ROW, kind_of
from trl_plus.preflight.target import Target

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(path.name for path in FOLDER.glob("*.jinja"))
WITHOUT_BOS = "{%- if bos_token is not defined -%}{%- set bos_token = '' -%}{%- endif -%}"
TOOL = {"type": "function", "function": {"name": "lampword", "description": "d", "parameters": {"type": "object",
        "properties": {"state": {"type": "string", "description": "s"}}, "required": ["state"]}}}  # fmt: skip


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(arguments):
    return [{"type": "function", "id": "abcdefghi", "function": {"name": "lampword", "arguments": arguments}}]


RESULT = {"role": "tool", "content": "resultword", "name": "lampword", "tool_call_id": "abcdefghi"}
ANSWERED = [user("askword"), assistant("", tool_calls=call({"state": "stateword"})), RESULT]
# kind -> (messages of the prompt, words of turns, words of calls and tools)
KINDS = {
    "text": ([user("askword"), assistant("sayword"), user("lastword")], ["askword", "sayword", "lastword"], []),
    "blocks": ([user([{"type": "text", "text": "askword"}, {"type": "text", "text": "moreword"}])],
               ["askword", "moreword"], []),
    "system": ([{"role": "system", "content": "systemword"}, user("askword")], ["systemword", "askword"], []),
    "calls": ([*ANSWERED, assistant("sayword"), user("lastword")], ["askword", "resultword", "sayword", "lastword"],
              ["lampword", "stateword"]),
    "text calls": ([user("askword"), assistant("", tool_calls=call('{"state": "stateword"}')), RESULT], ["askword",
                   "resultword"], ["lampword", "stateword"]),
    "traces": ([user("askword"), assistant("sayword", reasoning_content="traceword"), user("lastword")],
               ["askword", "sayword", "lastword"], []),
}  # fmt: skip


def row_of(kind, place):
    row = {"prompt": KINDS[kind][0], "chosen": [assistant("goodword")], "rejected": [assistant("badword")]}
    return {**row_in_form({**row, "tools": [TOOL] if KINDS[kind][2] else None}, {}), ROW: place, SOURCE_ROW: place}


@pytest.fixture(scope="module")
def toy():
    return build_toy()


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    from trl_plus import DPOConfig

    return DPOConfig(output_dir=str(tmp_path_factory.mktemp("run")), max_length=4096, bf16=False, use_cpu=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_not_written_is_found(toy, args, name):
    toy.chat_template = WITHOUT_BOS + (FOLDER / name).read_text(encoding="utf-8")
    rows = [row_of(kind, place) for place, kind in enumerate(KINDS)]
    target = Target(kind_of(rows[0]), "dpo", True, args, toy, frozenset({toy.eos_token_id}), "DPOTrainer")
    tokens = tokenized(Batch("train", rows), target)
    found = {code: TOKENS[code].function(tokens, target) for code in ("D408", "D414", "D415")}
    for place, kind in enumerate(KINDS):
        if place in tokens.failed:
            continue  # refused in words, D410
        (at,) = [i for i, index in enumerate(tokens.index) if index == place]
        shown = target.tokenizer.decode(tokens.prompt[at])
        _, turns, calls = KINDS[kind]
        lost_turn = any(word not in shown for word in turns)
        lost_call = any(word not in shown for word in calls)
        assert bool(found["D408"].mask[at] or found["D414"].mask[at]) == lost_turn, (kind, shown)
        assert bool(found["D415"].mask[at]) == lost_call, (kind, shown)
        assert "'type': 'text'" not in shown, kind
