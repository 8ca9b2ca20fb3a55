"""Tiny random models of many families, and the layout that each gets.

python tests/families/family_models.py       # prints the table of docs/speed.md
"""

import torch
import transformers
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_plus.forward.attention.interface import name_eager_attention
from trl_plus.forward.layout_proof import reason_against
from trl_plus.forward.lm_head import CompletionHead
from trl_plus.forward.packing import RowLayout

VOCAB, WINDOW = 300, 9
BASE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEAD, FULL_HEADS, SLIDING = {"head_dim": 8}, {"num_key_value_heads": 4}, {"sliding_window": WINDOW}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED_EXPERT = EXPERTS | {"shared_expert_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
LATENT = FULL_HEADS | ROUTED | {
    "kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1,
}  # fmt: skip
OWN = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
GPT = OWN | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
STATES = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}

# family: (configuration class, settings, what is special about it)
FAMILIES = {
    "llama": ("LlamaConfig", BASE, ""),
    "qwen2": ("Qwen2Config", BASE, ""),
    "qwen3": ("Qwen3Config", BASE | HEAD, "norms of queries and keys"),
    "mistral": ("MistralConfig", BASE | SLIDING, "sliding window"),
    "ministral": ("MinistralConfig", BASE | SLIDING | HEAD, "sliding window"),
    "mixtral": ("MixtralConfig", BASE | SLIDING | {"num_local_experts": 4}, "experts, sliding window"),
    "qwen2_moe": ("Qwen2MoeConfig", BASE | SHARED_EXPERT, "experts"),
    "qwen3_moe": ("Qwen3MoeConfig", BASE | EXPERTS | HEAD, "experts"),
    "olmoe": ("OlmoeConfig", BASE | {"num_experts": 4, "num_experts_per_tok": 2}, "experts"),
    "granitemoe": ("GraniteMoeConfig", BASE | {"num_local_experts": 4}, "experts"),
    "phimoe": ("PhimoeConfig", BASE | {"num_local_experts": 4}, "experts"),
    "glm4_moe": ("Glm4MoeConfig", BASE | ROUTED | HEAD, "experts"),
    "gemma": ("GemmaConfig", BASE | HEAD, ""),
    "gemma2": ("Gemma2Config", BASE | HEAD | SLIDING, "sliding window, soft caps, eager attention"),
    "gemma3_text": ("Gemma3TextConfig", BASE | HEAD | SLIDING, "sliding window, two rotary bases"),
    "phi": ("PhiConfig", BASE, ""),
    "phi3": ("Phi3Config", BASE | SLIDING, "sliding window"),
    "olmo2": ("Olmo2Config", BASE, ""),
    "olmo3": ("Olmo3Config", BASE | SLIDING, "sliding window"),
    "granite": ("GraniteConfig", BASE, ""),
    "cohere": ("CohereConfig", BASE, "parallel attention and MLP"),
    "cohere2": ("Cohere2Config", BASE | SLIDING, "sliding window, layers without positions"),
    "smollm3": ("SmolLM3Config", BASE, "layers without positions"),
    "glm4": ("Glm4Config", BASE | HEAD, ""),
    "exaone4": ("Exaone4Config", BASE | SLIDING, "sliding window"),
    "starcoder2": ("Starcoder2Config", BASE | SLIDING, "sliding window"),
    "nemotron": ("NemotronConfig", BASE, ""),
    "stablelm": ("StableLmConfig", BASE, ""),
    "gpt_neox": ("GPTNeoXConfig", BASE, "parallel attention and MLP"),
    "gpt2": ("GPT2Config", GPT, "absolute positions"),
    "opt": ("OPTConfig", BASE | {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}, "absolute positions"),
    "modernbert_decoder": ("ModernBertDecoderConfig", BASE | {"local_attention": 16}, "a layer before the logits"),
    "deepseek_v3": ("DeepseekV3Config", BASE | LATENT, "latent attention (MLA), experts"),
    "gptj": ("GPTJConfig", GPT | {"rotary_dim": 4}, "attention of its own"),
    "falcon": ("FalconConfig", OWN | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, ""),
    "bloom": ("BloomConfig", OWN | {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "ALiBi"),
    "mpt": ("MptConfig", OWN | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}, "ALiBi"),
    "gpt_oss": ("GptOssConfig", BASE | HEAD | SLIDING | {"num_local_experts": 4}, "attention sinks"),
    "qwen3_next": ("Qwen3NextConfig", BASE | SHARED_EXPERT | HEAD | LINEAR, "linear attention"),
    "lfm2": ("Lfm2Config", BASE | {"full_attn_idxs": [1, 3]}, "convolutions"),
    "jamba": ("JambaConfig", BASE | {"num_experts": 2, "mamba_d_state": 4, "use_mamba_kernels": False}, "state space"),
    "mamba2": ("Mamba2Config", OWN | STATES, "state space"),
}  # fmt: skip
# Reasons that hold a figure or an error of the model's own
SHORT = {"log-probabilities of the first rows differ": "log-probabilities differ", "the model does not take it": ""}


def build(family: str) -> torch.nn.Module:
    """A random model whose weights are large enough for a wrong mask to show."""
    torch.manual_seed(0)
    name, settings, _ = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    add_fused_lm_head(model)
    CompletionHead(model)
    return model.eval()


def rows(pairs: int = 3) -> dict[str, torch.Tensor]:
    """Pairs of random tokens with prompts of 12 and more: longer than the window."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCAB, (12 + 5 * i,), generator=generator) for i in range(pairs)]
    ids, labels = [], []
    for side in range(2):
        for i, prompt in enumerate(prompts):
            completion = torch.randint(3, VOCAB, (6 + 3 * i + 4 * side,), generator=generator)
            ids.append(torch.cat([prompt, completion]))
            labels.append(torch.cat([torch.full_like(prompt, -100), completion]))
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(x) for x in ids], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def reason_of(model: torch.nn.Module, layout: str = "packed") -> str | None:
    """What `layout: auto` says of a model, or None where it takes the layout."""
    reason = name_eager_attention(model)
    if reason is not None:
        return reason
    batch = rows()
    labels = batch.pop("labels")
    return reason_against(RowLayout(model, "rows"), layout, batch, labels)


def layout_and_reason(reason: str | None) -> tuple[str, str]:
    """The layout of `layout: auto` and the reason for it, as the table of docs/speed.md has them."""
    shown = reason or "-"
    for long, short in SHORT.items():
        shown = (short or long) if shown.startswith(long) else shown
    return ("rows" if reason else "packed"), shown


def table(found: dict[str, tuple[str, str]]) -> list[str]:
    """Lines of the table of docs/speed.md, from the layout and reason of each family."""
    groups: dict[tuple[str, str], list[str]] = {}
    for family, verdict in found.items():
        groups.setdefault(verdict, []).append(family)
    return [f"| `{layout}` | {', '.join(names)} | {reason} |" for (layout, reason), names in groups.items()]


if __name__ == "__main__":
    print(f"transformers {transformers.__version__}")
    print("\n".join(table({family: layout_and_reason(reason_of(build(family))) for family in FAMILIES})))
