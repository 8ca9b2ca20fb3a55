"""Tiny causal models whose logits are not a weight times the backbone's last states, or whose forward is unusual."""

import torch
import transformers
from torch import nn
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


class Odd(LlamaForCausalLM):
    """Calls `logits_of` on what its backbone returns."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        return CausalLMOutputWithPast(logits=self.logits_of(states))

    def logits_of(self, states):
        return self.lm_head(states)


class LearnedScale(Odd):
    """A trainable scale that is one when training begins: no log-probability shows it."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(()))

    def logits_of(self, states):
        return self.scale * self.lm_head(states)


class Capped(Odd):
    """A cap at 30 nats under a name of its own; the logits of a new model are too small for it to bite."""

    def logits_of(self, states):
        return 30 * torch.tanh(self.lm_head(states) / 30)


class RuledOut(Odd):
    """A cap, and a token that cannot come next: its logit is -inf."""

    def logits_of(self, states):
        return Capped.logits_of(self, states).index_fill(-1, torch.tensor([0]), float("-inf"))


class Transformed(Odd):
    """A dense layer between backbone and logits."""

    def __init__(self, config):
        super().__init__(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def logits_of(self, states):
        return self.lm_head(nn.functional.gelu(self.dense(states)))


class ScalingHead(nn.Linear):
    """A head with a trainable temperature, a subclass of Linear."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, states):
        return super().forward(states) / self.temperature


class OtherHead(Odd):
    def __init__(self, config):
        super().__init__(config)
        self.lm_head = ScalingHead(config.hidden_size, config.vocab_size, bias=True)


class PaddedVocabulary(Odd):
    """A head with more entries than the vocabulary, whose logits are cut."""

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size + 40, bias=False)

    def logits_of(self, states):
        return self.lm_head(states)[..., : self.config.vocab_size]


class TupleOutput(Odd):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        return (self.scaled(input_ids, attention_mask, **kwargs),)

    def scaled(self, input_ids, attention_mask, **kwargs):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        return 0.5 * self.lm_head(states)


class DictOutput(TupleOutput):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        return {"logits": self.scaled(input_ids, attention_mask, **kwargs)}


class WritesIntoIds(Odd):
    """Replaces a token in the caller's own tensor."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        input_ids[input_ids == 7] = 8
        return super().forward(input_ids, attention_mask, **kwargs)


class SequenceFirst(Odd):
    def logits_of(self, states):
        return self.lm_head(states).transpose(0, 1)


class NoPrefix(PreTrainedModel, GenerationMixin):
    """A class of remote code: `base_model` is the model itself, and its forward knows only what it needs."""

    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.trunk = LlamaModel(config)
        self.to_logits = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self):
        return self.to_logits

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        states = self.trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return CausalLMOutputWithPast(logits=self.to_logits(states))


OURS = (
    LearnedScale,
    Capped,
    RuledOut,
    Transformed,
    OtherHead,
    PaddedVocabulary,
    TupleOutput,
    DictOutput,
    WritesIntoIds,
    NoPrefix,
)
THEIRS = {
    "ModernBertDecoderConfig": {"local_attention": 16},
    "RecurrentGemmaConfig": {"lru_width": 32, "head_dim": 8, "num_hidden_layers": 3},
    "Llama4TextConfig": {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 64},
    "BertConfig": {"is_decoder": True},
}


def build(kind, vocabulary, scale=3.0, **settings):
    """A random model of a class of this file or of a configuration of transformers, with weights that differ."""
    torch.manual_seed(0)
    if isinstance(kind, str):
        config = getattr(transformers, kind)(**SIZES | {"vocab_size": vocabulary} | THEIRS.get(kind, {}) | settings)
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        model = kind(LlamaConfig(**SIZES, vocab_size=vocabulary, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model
