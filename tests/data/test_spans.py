"""Every chat template of the installed TRL, times conversations and selections: exactly the right words are trained on.

The words of a conversation are unique, so the words in the trained text tell which parts are in the loss.
Tokens are compared where a template writes each turn alike whatever follows: there the turns are cut out one by one.
"""

from pathlib import Path

import pytest
import trl

from tests.conftest import user
from tests.preflight.toys import build_toy
from trl_plus.data.spans import TRAIN_ON, Selection, SpanFault, side_mask, think_blocks
from trl_plus.data.templates import fitted, needs_of
from trl_plus.upstream.tokens import common_prefix, tokenize

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(path.name for path in FOLDER.glob("*.jinja"))
WITHOUT_BOS = "{%- if bos_token is not defined -%}{%- set bos_token = '' -%}{%- endif -%}"
TOOL = {"type": "function", "function": {"name": "lampword", "description": "d", "parameters": {"type": "object",
        "properties": {"state": {"type": "string", "description": "s"}}, "required": ["state"]}}}  # fmt: skip
WORDS = (  # noqa: SIM905
    "systemword askword firstword moreword lastword firstthought lastthought lampword stateword resultword"
).split()
THOUGHTS, CALLED = {"firstthought", "lastthought"}, {"lampword", "stateword"}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


CALL = [{"type": "function", "id": "abcdefghi", "function": {"name": "lampword", "arguments": {"state": "stateword"}}}]
RESULT = {"role": "tool", "content": "resultword", "name": "lampword", "tool_call_id": "abcdefghi"}
IN_TEXT = '<tool_call>{"name": "lampword", "arguments": {"state": "stateword"}}</tool_call>'
ASK, MORE = [user("askword")], user("moreword")
# kind -> (prompt, completion)
KINDS = {
    "turns": (ASK, [says("firstword"), MORE, says("lastword")]),
    "system": ([{"role": "system", "content": "systemword"}, *ASK], [says("firstword"), MORE, says("lastword")]),
    "space": (ASK, [says(" firstword \n"), MORE, says("\nlastword ")]),
    "think": (ASK, [says("<think>\nfirstthought\n</think>\n\nfirstword"), MORE,
                    says("<think>\nlastthought\n</think>\n\nlastword")]),
    "reasoning": (ASK, [says("firstword", reasoning_content="firstthought"), MORE,
                        says("lastword", reasoning_content="lastthought")]),
    "thinking": (ASK, [says("firstword", thinking="firstthought"), MORE, says("lastword", thinking="lastthought")]),
    "never closed": (ASK, [says("firstword"), MORE, says("<think>\nlastthought")]),
    "never opened": (ASK, [says("firstword"), MORE, says("lastthought</think>lastword")]),
    "call": (ASK, [says("", tool_calls=CALL), RESULT, says("lastword")]),
    "text and call": (ASK, [says("firstword", tool_calls=CALL), RESULT, says("lastword")]),
    "thought and call": (ASK, [says("firstword", reasoning_content="firstthought", tool_calls=CALL), RESULT,
                               says("lastword", reasoning_content="lastthought")]),
    "last call": (ASK, [says("firstword"), MORE, says("lastword", tool_calls=CALL)]),
    "only call": (ASK, [says("", tool_calls=CALL)]),
    "call in text": (ASK, [says(f"firstword {IN_TEXT}"), user("<tool_response>resultword</tool_response>"),
                           says("lastword")]),
}  # fmt: skip
FEW = [Selection("last", ("think",)), Selection("all", ("tool_calls",)), Selection("all", ("think",)),
       Selection("final_answer")]  # fmt: skip
EVERY = [Selection(on, mask) for on in TRAIN_ON for mask in ((), ("think",), ("tool_calls",), ("think", "tool_calls"))]


def expected(messages, selection, written):
    """The words that are trained on, of those that the template writes."""
    found = set()
    for number, message in enumerate(messages):
        here = {word for word in WORDS if word in str(message)}
        if message["role"] != "assistant":
            found |= here if selection.train_on == "completion" else set()
        elif number == len(messages) - 1 or selection.keeps_turns:
            out = THOUGHTS if "think" in selection.mask or selection.train_on == "final_answer" else set()
            found |= here - out - (CALLED if "tool_calls" in selection.mask else set())
    return {word for word in found if word in written}


def trained(toy, prompt, completion, selection, tools):
    """The text of the completion, and that of its trained tokens."""
    if not selection.keeps_turns:
        prompt, completion = prompt + completion[:-1], completion[-1:]
    opened = tokenize(toy, prompt, add_generation_prompt=True, tools=tools)
    ids = tokenize(toy, prompt + completion, tools=tools)
    begin = common_prefix(opened, ids)
    row = {"prompt": prompt, "completion": completion, "prompt_ids": ids[:begin], "completion_ids": ids[begin:]}
    kept = side_mask(row | {"tools": tools}, "completion", toy, selection)
    assert len(kept) == len(ids) - begin
    return toy.decode(ids[begin:]), toy.decode([token for token, keep in zip(ids[begin:], kept, strict=True) if keep])


def by_prefixes(toy, prompt, completion):
    """The text of every turn of the assistant as the template writes it last; None if one is written otherwise here."""
    messages = prompt + completion
    whole, found = toy.apply_chat_template(messages, tokenize=False), ""
    for number in range(len(prompt), len(messages)):
        if messages[number]["role"] == "assistant":
            opened = toy.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True)
            alone = toy.apply_chat_template(messages[: number + 1], tokenize=False)
            if not (alone.startswith(opened) and whole.startswith(alone)):
                return None
            found += alone[len(opened) :]
    return found


@pytest.fixture(scope="module")
def toy():
    return build_toy()


def look(toy, name, selections):
    toy.chat_template = WITHOUT_BOS + (FOLDER / name).read_text(encoding="utf-8")
    needs, refused = needs_of(toy), set()
    for kind, (prompt, completion) in KINDS.items():
        tools = [TOOL] if "tool_calls" in str(completion) else None
        prompt, completion = fitted(prompt, needs), fitted(completion, needs)
        try:
            tokenize(toy, prompt + completion, tools=tools)
        except Exception:
            continue  # refused by the template, D410
        for selection in selections:
            try:
                written, text = trained(toy, prompt, completion, selection, tools)
            except SpanFault as fault:
                assert "Fix: " in str(fault)  # noqa: PT017
                refused.add(kind)
                continue
            if selection == Selection("all", ("tool_calls",)) and kind in ("turns", "system", "space"):
                exact = by_prefixes(toy, prompt, completion)
                assert exact is None or text == exact, (kind, text, exact)
            wanted, found = expected(completion, selection, written), {word for word in WORDS if word in text}
            if selection.train_on == "completion" and "resultword" in text:
                found.discard("lampword")  # some templates name the tool in front of its result
                wanted.discard("lampword")
            if name.startswith("gptoss") and kind == "last call":
                found.discard("lastword")  # the template writes text in front of a call as a thought
                wanted.discard("lastword")
            assert found == wanted, (kind, selection, written, text)
            for header in ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "[INST]"):
                assert selection.train_on == "completion" or header not in text, (kind, selection, text)
    return refused


# Kinds that some templates cannot be asked for, with tool calls that they do not write or write among others' words
MAY_BE_REFUSED = {"call", "text and call", "thought and call", "last call", "only call"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_right_words_are_trained_on(toy, name):
    assert look(toy, name, FEW) <= MAY_BE_REFUSED


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_right_words_are_trained_on_under_every_selection(toy, name):
    assert look(toy, name, EVERY) <= MAY_BE_REFUSED


def test_qwen_keeps_what_it_strips_out_of_the_loss(toy):
    """The template strips the thought of an earlier turn: what is left of that turn is trained on, token by token."""
    toy.chat_template = (FOLDER / "qwen3.jinja").read_text(encoding="utf-8")
    _, text = trained(toy, *KINDS["think"], Selection("all"), None)
    assert text == "firstword<|im_end|>\n<think>\nlastthought\n</think>\n\nlastword<|im_end|>\n"
    _, text = trained(toy, *KINDS["text and call"], Selection("all", ("think", "tool_calls")), [TOOL])
    assert text == "firstword<|im_end|>\n\n\nlastword<|im_end|>\n"


@pytest.mark.parametrize(
    "text, blocks",
    [
        ("no block", []),
        ("<think>a</think>b", ["<think>a</think>"]),
        ("\n<think>a</think>\n\nb", ["\n<think>a</think>"]),
        ("a</think>b", ["a</think>"]),
        ("<think>a", ["<think>a"]),
        ("say `<think>` and `</think>` here", []),
        ("b <think>a", []),
        ("<think>a</think>b\n<think>c</think>d", ["<think>a</think>", "<think>c</think>"]),
        ("The tags <think> and </think> enclose reasoning.", []),
        ("It ends with </think> in most models.", []),
        ("[THINK]a[/THINK]b", ["[THINK]a[/THINK]"]),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
         ["<|channel|>analysis<|message|>a<|end|>"]),
        ("an answer of phi<|end|>\n", []),
    ],
)  # fmt: skip
def test_think_blocks(text, blocks):
    assert [text[start:end] for start, end in think_blocks(text)] == blocks


def test_a_block_that_the_prompt_opens():
    text = "<|assistant|><think>\na</think>b"
    start = text.index("\na")
    assert think_blocks(text, start) == [(start, text.index("b", start))]
    assert think_blocks("<|assistant|><think>\na", start) == [(start, start + 2)]


def test_a_token_that_holds_the_end_of_a_block_is_not_trained_on(toy):
    """A tag of several tokens, the last of which holds the beginning of the answer, too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<", "think", ">", "</", ">x", "a", "b", "x", "[UNK]"]
    merges = [("<", "/"), (">", "x"), ("t", "h"), ("i", "n"), ("th", "in"), ("thin", "k")]
    letters = sorted(set("".join(pieces)) | {"/", "t", "h", "i", "n", "k"})
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys([*letters, *pieces, *("".join(m) for m in merges)]))}
    tok = Tokenizer(models.BPE(vocabulary, merges, unk_token="[UNK]"))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Sequence([]), decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, unk_token="[UNK]")
    text = "<think>a</think>xb"
    ids = fast(text)["input_ids"]
    row = {"prompt": "", "completion": text, "prompt_ids": [], "completion_ids": ids}
    kept = side_mask(row, "completion", fast, Selection("final_answer"))
    assert [fast.convert_ids_to_tokens(i) for i, keep in zip(ids, kept, strict=True) if keep] == ["b"]


def test_a_template_that_reads_its_turns_is_refused(toy):
    toy.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + (m.content | length | string) + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(SpanFault, match="Fix: use another template"):
        trained(toy, *KINDS["turns"], Selection("all"), None)


def test_a_tokenizer_without_offsets_is_refused(toy):
    class Slow:
        is_fast = False

    row = {"prompt": "a", "completion": "b", "prompt_ids": [1], "completion_ids": [2]}
    with pytest.raises(SpanFault, match="Fix: use a fast tokenizer"):
        side_mask(row, "completion", Slow(), Selection("final_answer"))
