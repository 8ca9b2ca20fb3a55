"""Rows that are clean although they look as if something were wrong: a finding here is a false alarm."""

import pytest

from tests.conftest import WORDS, user
from tests.preflight.corpus import FORMS, clean_samples, rendered
from tests.preflight.looks import counts, look
from tests.preflight.toys import build_toy, look_with, save_toy

CHAT, TEXT, KTO = FORMS["chat"], FORMS["text"], FORMS["kto-chat"]


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


TEXTS = {
    "a template in code": "Llama 2 takes:\n```\n<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\nHello [/INST] Hi </s>\n```",
    "ChatML explained": "Each turn begins with `<|im_start|>user` and ends with `<|im_end|>` in ChatML.",
    "struck out": "The price was <s>20</s> 15 dollars, <b>today only</b>.",
    "card that fails Luhn": "The form showed 4111 1111 1111 1112 as an example.",
    "isbn": "See ISBN 978-3-16-148410-0 or 0-306-40615-2.",
    "years": "Between 1914-1918 and 1939-1945; open 2010-2024, born 01-02-1990.",
    "versions": "torch==2.6.0, CUDA 12.4.1, kernel 5.15.0-1051-aws, v1.16.0-rc.2",
    "addresses": "ping 10.0.0.1, 192.168.100.254 and 127.0.0.1:8080, subnet 255.255.255.0",
    "chemistry": "CAS 7732-18-5 is water; 50-00-0 is formaldehyde. 123-45-6 is no social security number.",
    "numbers": "3.14159265358979323846, 1234567890123456, 1 000 000 000, 2**64 = 18446744073709551616",
    "coordinates": "48.858222, 2.2945; +48° 51' 29.6\", 100-200-300 m",
    "hash": "commit 9fceb02d0ae598e95dc970b74767f19372d61af8, uuid 123e4567-e89b-12d3-a456-426614174000",
    "handles": "Ask @jane on the forum, or use `a@b` as matrix product; foo@bar without a domain; user@localhost.",
    "example addresses": "Write to someone@example.com or test@example.org, or jane@test.com.",
    "decorator": "```python\n@property\ndef x(self): return self._x\n@app.get('/x')\n```",
    "French": "L’été dernier, où êtes-vous allés ? « Ça va ! » À bientôt, cœur, naïve, Noël, Ÿ, 5 °C, 10 €.",
    "German": "Füße, Größe, Äpfel, Öl, Übung, „Anführung“, ‚einfach‘, §§ 1–3",
    "Portuguese": "São Paulo, NÃO, AÇÃO, Ã, Â, MAÇÃ; “AMANHÔ, ‘IRMÒ, PÃES, Ângela, VOCÊ, coração",
    "Romanian": "Înțeles, ÎNTÂI, SFÂNT, câine, „mâine”, România",
    "Vietnamese": "NGÂN HÀNG, ÂM NHẠC, SÃN, Đã, Hãy",
    "Chinese": "你好，世界。这是一个测试！《红楼梦》１２３－４５－６７８９",
    "Japanese": "こんにちは。テスト・ケース「引用」ｶﾅ　全角",
    "Arabic": "مرحبا بالعالم، كيف حالك؟ \u200fنعم\u200e",
    "Hebrew": "שלום עולם \u200f(כן)\u200e",
    "Persian": "می\u200cخواهم بروم",  # the non-joiner belongs to the spelling
    "Hindi": "क्\u200dष नमस्ते दुनिया",
    "Thai": "สวัสดีชาวโลก",
    "emoji": "👩‍👩‍👧‍👦 ❤️ 🏳️‍🌈 🇩🇪 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ ☺︎",
    "soft hyphens": "Donau\u00addampf\u00adschiff, a\u00a0b, thin\u2009space, line\u2028break",
    "mathematics": "∀x∈ℝ: x² ≥ 0 ∧ ∑ᵢ aᵢ ≤ ∞ ⇒ ‖v‖₂ = √(v·v), α→β, 𝔸",
    "windows lines": "First line.\r\nSecond line.\r\n\tIndented.",
    "box drawing": "├── src\n│   └── main.py\n└── README.md",
    "secret-like": "sk-learn, sk-short, AKIA is a prefix, hf_hub, gh_pages, eyJ is base64 for {\", Bearer <token>",
    "key names": "export OPENAI_API_KEY=sk-...; password: ******; -----BEGIN CERTIFICATE-----",
    "roles in prose": "User: hello\nAssistant: hi\nHuman: and then?",
    "headings": "### Instruction:\nSay hi.\n\n### Response:\nHi.",
    "think in prose": "The tags <think> and </think> enclose reasoning.",
}  # fmt: skip


@pytest.mark.parametrize("form", [CHAT, TEXT, KTO], ids=lambda form: form.name)
def test_texts_that_only_look_wrong(form, tmp_path):
    samples = clean_samples(form, 4 * len(TEXTS))
    for number, text in enumerate(TEXTS.values()):
        samples[4 * number].turns[-1]["content"] = f"{text} ({number})"
        samples[4 * number + 2].responses[form.sides[number % len(form.sides)]] = f"{text} ({number})"
    result = look(rendered(samples, form), form, tmp_path / "rows.jsonl")
    assert [(f.code, [example.detail for example in f.examples]) for f in result.findings] == []


SHORT = [("Yes", "No"), ("No.", "Yes."), ("4", "5"), ("Paris", "Lyon"), ("A", "B"), ("True", "False"), ("¡Sí!", "No…")]


@pytest.mark.parametrize("form", [CHAT, TEXT], ids=lambda form: form.name)
def test_short_prompts_and_answers(form, tmp_path):
    samples = clean_samples(form, 42)
    for number, sample in enumerate(samples):
        sample.turns = [user(f"{number}?")]
        sample.responses = dict(zip(form.sides, SHORT[number % len(SHORT)], strict=True))
    assert counts(look(rendered(samples, form), form, tmp_path / "rows.jsonl")) == {}


# pairs of responses that are no defect: they differ, though little; or one finished where the other goes on
PAIRS = {
    "in case": ("it is paris.", "It is Paris."),
    "in the last word": ("The capital is Paris.", "The capital is Lyon."),
    "in the middle": ("First boil the water, then add salt.", "First boil the water, then add sugar and salt."),
    "in punctuation": ("Well, I agree.", "Well I agree!"),
    "finished": ("The answer is 4.", "The answer is 4. Two and two are four, as everyone knows."),
    "numbers": ("12", "21"),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("form", [CHAT, TEXT], ids=lambda form: form.name)
def test_pairs_that_differ_little(form, name, tmp_path):
    samples = clean_samples(form, 60)
    for row in (3, 30):
        samples[row].responses = dict(zip(form.sides, PAIRS[name], strict=True))
        samples[row + 1].responses = dict(zip(form.sides, reversed(PAIRS[name]), strict=True))
    assert counts(look(rendered(samples, form), form, tmp_path / "rows.jsonl")) == {}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool(text):
    return {"role": "tool", "content": text}


def tool_rows(rows):
    """Agents' rows: system, user, calls (also two at once), results, an answer or one more call as the response."""
    samples = clean_samples(CHAT, rows)
    for number, sample in enumerate(samples):
        question = sample.turns[-1]
        first = assistant("", tool_calls=[call("look_up", word=f"w{number}"), call("read_clock", zone=f"z{number}")])
        sample.turns = [{"role": "system", "content": "Use the tools."}, question, first, tool("one"), tool("two")]
        if number % 2:
            sample.turns += [assistant(None, tool_calls=[call("look_up", word="again")]), tool("three")]
    return rendered(samples, CHAT)


@pytest.mark.parametrize("with_model", [False, True])
def test_tool_calls_and_their_results(with_model, tmp_path):
    rows, path = tool_rows(40), tmp_path / "rows.jsonl"
    if with_model:
        result = look_with(save_toy(tmp_path / "toy", build_toy()), rows, CHAT, path)
    else:
        result = look(rows, CHAT, path)
    assert counts(result) == {}


def test_responses_that_are_tool_calls_only(tmp_path):
    rows = tool_rows(40)
    for number, row in enumerate(rows):
        for side in CHAT.sides:
            row[side] = [assistant("", tool_calls=[call("look_up", word=f"{side} {number}")])]
    assert counts(look(rows, CHAT, tmp_path / "rows.jsonl")) == {}
    result = look_with(save_toy(tmp_path / "toy", build_toy()), rows, CHAT, tmp_path / "rows.jsonl")
    assert counts(result) == {}


def test_prompts_that_differ_in_a_tool_call_only(tmp_path):
    """The same question and the same words in answer, after different calls: neither duplicates nor contradictions."""
    rows = clean_samples(CHAT, 20)
    said = ({"chosen": "Done.", "rejected": "I cannot."}, {"chosen": "I cannot.", "rejected": "Done."})
    for number, sample in enumerate(rows):
        opened = assistant("", tool_calls=[call("open_file", path=f"{'/'.join(WORDS[number % 20 :])}.txt")])
        sample.turns = [user("Do what the file says."), opened, tool("see above")]
        sample.responses = said[number % 2]
    assert counts(look(rendered(rows, CHAT), CHAT, tmp_path / "rows.jsonl")) == {}


def test_responses_that_differ_in_a_tool_call_only(tmp_path):
    rows = rendered(clean_samples(CHAT, 40), CHAT)
    for number, row in enumerate(rows):
        row["prompt"] = [user("Open the right file.")]
        for side in CHAT.sides:
            row[side] = [assistant("", tool_calls=[call("open_file", path=f"{side}/{number}.txt")])]
    assert counts(look(rows, CHAT, tmp_path / "rows.jsonl")) == {"D704": 0}


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_datasets_of_a_few_rows(form, rows, tmp_path):
    found = counts(look(rendered(clean_samples(form, rows), form), form, tmp_path / "rows.jsonl"))
    assert set(found) <= ({"D702"} if form.name.startswith("kto") else set())  # two of three labels are out of balance


def test_one_prompt_for_all_rows(tmp_path):
    samples = clean_samples(CHAT, 60)
    for sample in samples:
        sample.turns = samples[0].turns
    assert counts(look(rendered(samples, CHAT), CHAT, tmp_path / "rows.jsonl")) == {"D704": 0}


def test_dialogues_in_one_text(tmp_path):
    """The shape of hh-rlhf: whole dialogues as text, split where the last answer begins."""
    samples = clean_samples(CHAT, 40)
    rows = []
    for sample in samples:
        asked = sample.turns[-1]["content"]
        before = f"\n\nHuman: {asked}\n\nAssistant: Tell me more.\n\nHuman: That is all.\n\nAssistant: "
        rows.append({side: before + text for side, text in sample.responses.items()})
    assert counts(look(rows, FORMS["text-implicit"], tmp_path / "rows.jsonl")) == {}


def test_one_question_about_different_images(tmp_path):
    rows = rendered(clean_samples(CHAT, 40), CHAT)
    for number, row in enumerate(rows):
        row |= {"images": [f"{number}.png"], "prompt": [user("What is shown here?")]}
        row["chosen"], row["rejected"] = [assistant("A bridge.")], [assistant("A harbour.")]
    assert counts(look(rows, CHAT, tmp_path / "rows.jsonl")) == {}
