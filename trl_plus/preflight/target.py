"""The purpose of the rows: the method's configuration and the tokenizer, as far as the checks ask for them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trl_plus.data.token_ids import Vocabulary
from trl_plus.preflight.findings import Example
from trl_plus.preflight.rows import SOURCE, SOURCE_ROW, Kind


@dataclass(frozen=True)
class Target:
    """The method, model and settings that a dataset will be trained with.

    Attributes:
        kind: what the rows are.
        method: its name, "simpo" for example.
        paired_method: the method compares pairs; False: it takes single labelled completions.
        args: the method's training configuration; None without a recipe.
        processor: tokenizer or processor; None without a model.
        stop_ids: token ids that generation stops on: the generation config's and the tokenizer's end of sequence.
        trainer: name of the trainer class.
        vocabulary: the tokens that the model knows; None without a model.
        plain_text: text without the turns of a chat template is meant.
        balance: the run weighs its rows by `data.balance`.
        sources: the datasets of a mixture, in the order of its entries.
    """

    kind: Kind
    method: str
    paired_method: bool
    args: Any = None
    processor: Any = None
    stop_ids: frozenset[int] = frozenset()
    trainer: str = ""
    vocabulary: Vocabulary | None = None
    sources: tuple[str, ...] = ()
    plain_text: bool = False
    balance: bool = False

    def example(self, raw: dict[str, Any], detail: str) -> Example:
        """A row to show; one of a mixture with the name of its dataset, within which rows are numbered."""
        source = f"{self.sources[raw[SOURCE]]}: " if SOURCE in raw else ""
        return Example(raw[SOURCE_ROW], source + detail)

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def template_kwargs(self) -> dict[str, Any] | None:
        """The arguments of the chat template for every row."""
        return getattr(self.args, "chat_template_kwargs", None)

    def arguments(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the chat template for one row, beside its messages."""
        from trl_plus.data.templates import template_arguments, with_arguments

        return template_arguments(with_arguments(raw, self.template_kwargs))

    @property
    def max_length(self) -> int | None:
        return getattr(self.args, "max_length", None)

    @property
    def overlong(self) -> str:
        return getattr(self.args, "overlong", "truncate")

    @property
    def keeps_start(self) -> bool:
        return getattr(self.args, "truncation_mode", "keep_start") == "keep_start"

    @cached_property
    def sides(self) -> tuple[str, ...]:
        """The sides as they are tokenized: a method on single completions splits pairs in two."""
        return self.kind.sides if self.paired_method else ("completion",)

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """The tokenizer's special tokens by id, those without a role of their own included."""
        tokenizer = self.tokenizer
        named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        added = getattr(tokenizer, "added_tokens_decoder", {})
        return named | {token: str(entry) for token, entry in added.items() if entry.special}

    @cached_property
    def generation_prompt(self) -> list[int]:
        """The token ids that open the assistant's turn, as the template writes them; [] where that is not plain."""
        from trl_plus.data.templates import tokenize_messages
        from trl_plus.upstream.tokens import common_prefix

        turn = [{"role": "user", "content": "a"}]
        try:
            without = tokenize_messages(self.processor, turn, add_generation_prompt=False)
            whole = tokenize_messages(self.processor, turn, add_generation_prompt=True)
        except Exception:  # a template may raise anything; the rows themselves will show it
            return []
        return whole[len(without) :] if common_prefix(without, whole) == len(without) else []


def stop_ids(tokenizer: Any, model: str, revision: str | None = None) -> frozenset[int]:
    """Token ids that end a generation after training.

    transformers puts the tokenizer's end of sequence into the generation config when training begins, next to what
    stands there already.
    """
    from transformers import AutoConfig, GenerationConfig

    found = {tokenizer.eos_token_id}
    try:
        config = GenerationConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError):
        try:
            config = AutoConfig.from_pretrained(model, revision=revision).get_text_config()
        except (OSError, ValueError):
            config = None
    ends = getattr(config, "eos_token_id", None)
    found.update(ends if isinstance(ends, list) else [ends])
    return frozenset(token for token in found if token is not None)
