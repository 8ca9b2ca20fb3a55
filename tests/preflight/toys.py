"""Tokenizers and chat templates with one trait each, as model folders, and a preflight that uses them."""

from pathlib import Path
from typing import Any

from tests.conftest import build_tokenizer
from tests.preflight.corpus import Form, write
from tests.preflight.looks import EVERYTHING
from trl_plus.preflight.findings import Result
from trl_plus.preflight.run import Extent, preflight
from trl_plus.preflight.source import Source, open_run

BOS, END, UNKNOWN = "<|bos|>", "<|im_end|>", "<unk>"
_TURN = "'<|im_start|>' + m['role'] + '\n' + (m['content'] or '')"
_OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + c.function.arguments | tojson }}{% endfor %}"


def template(turn: str = _TURN, before: str = "", inside: str = "", close: str = "<|im_end|>\n", opening: str = _OPEN):
    """A ChatML template: `before` stands at its beginning, `inside` at the end of each turn's text."""
    written = f"{{{{ {turn} }}}}{inside}{{{{ {close!r} }}}}"
    return f"{before}{{% for m in messages %}}{written}{{% endfor %}}{opening}"


WITHOUT_THOUGHTS = "'<|im_start|>' + m['role'] + '\n' + (m['content'] or '').split('</think>')[-1]"
WITHOUT_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
REFUSING_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
THINKING_OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"


def build_toy(
    chat_template: str | None = None,
    bos: bool = False,
    unknown: bool = False,
    pad: str = "<|endoftext|>",
    end: str = END,
) -> Any:
    """A tokenizer.

    Args:
        bos: it puts `BOS` before every text.
        unknown: characters beyond ASCII become `UNKNOWN`.
    """
    tokenizer = build_tokenizer()
    if unknown:
        tokenizer = _with_unknown(tokenizer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.add_special_tokens({"bos_token": BOS})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
        )
    tokenizer.pad_token, tokenizer.eos_token = pad, end
    tokenizer.chat_template = chat_template or template(inside=CALLS)
    return tokenizer


def _with_unknown(like: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = [chr(code) for code in (10, *range(32, 127))]
    specials = [UNKNOWN, *like.all_special_tokens, "<|im_start|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*specials, *alphabet]))}
    tok = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tok.add_special_tokens(specials[1:])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=END, pad_token="<|endoftext|>", unk_token=UNKNOWN)


def save_toy(folder: Path, tokenizer: Any, ends: list[str] | None = None) -> str:
    """The tokenizer with a model's configuration beside it; `ends` go into the generation config."""
    from transformers import GenerationConfig, GPTNeoXConfig

    tokenizer.save_pretrained(folder)
    GPTNeoXConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    if ends is not None:
        GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(ends)).save_pretrained(folder)
    return str(folder)


def open_toy(model: str, data: str, method: str, keep_template: bool = False, **values: Any) -> Source:
    """The rows of a file for a toy. Text is for models without a chat template (D413), so text rows take it away."""
    from trl_plus.recipes.recipe import recipe_from
    from trl_plus.setup.objects import build
    from trl_plus.setup.trainer import load_processor

    given = {"method": method, "model_name_or_path": model, "output_dir": f"{model}-out", "dataset_name": data,
             "max_length": 8192, "use_cpu": True, "bf16": False, **values}  # fmt: skip
    objects = build(recipe_from({name: value for name, value in given.items() if value is not None}, "test"))
    source = open_run(objects, load_processor(objects))
    if not source.target.kind.conversational and not keep_template:
        source.target.processor.chat_template = None
    return source


def look_with(
    model: str, rows: list[dict[str, Any]], form: Form, path: Path, extent: Extent = EVERYTHING, **values: Any
) -> Result:
    """A preflight of rows, written to `path` first, with the tokenizer and the settings of a run."""
    return preflight(open_toy(model, str(write(rows, path)), form.method, **values), extent)
