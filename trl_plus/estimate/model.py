"""The model of a recipe with shapes and without data: architecture, precision, quantisation, adapter, row layout."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from trl_plus.errors import RecipeError
from trl_plus.forward.attention import Unsupported, carry, register
from trl_plus.forward.attention.interface import name_eager_attention
from trl_plus.forward.layouts import make_plan
from trl_plus.forward.packing import known_reason
from trl_plus.setup.objects import RunObjects
from trl_plus.trainers.layouts import FASTEST, drops, reason_of_run
from trl_plus.upstream.models import base_model

# bitsandbytes: elements per quantisation constant, and constants per nested constant
_BLOCK_4_BIT, _BLOCK_NESTED = 64, 256
FLASH_STAND_IN = "trl_plus_without_data"  # a name with "flash" in it would be looked up as a kernel


def read_config(objects: RunObjects) -> Any:
    """The model's configuration: a small file, no weights.

    Raises:
        RecipeError: it cannot be read.
    """
    from transformers import AutoConfig

    name = objects.model.model_name_or_path
    try:
        return AutoConfig.from_pretrained(
            name, revision=objects.model.model_revision, trust_remote_code=objects.args.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"The configuration of {name} could not be read, so nothing is known of its size: connect to the hub, or "
            "name a folder that holds its config.json with `model_name_or_path=FOLDER`."
        ) from error


def weights_dtype(objects: RunObjects, config: Any) -> torch.dtype:
    """The dtype in which TRL loads the weights: the recipe's `dtype`, float32 if it is not given."""
    asked = objects.args.model_init_kwargs["dtype"]
    if asked == "auto":
        return getattr(config.get_text_config(), "dtype", None) or torch.float32
    return getattr(torch, asked or "float32")


def build_model(objects: RunObjects, config: Any, dtype: torch.dtype) -> nn.Module:
    """The model in training mode as the trainer prepares it, on torch's `meta` device: shapes only.

    Raises:
        RecipeError: the architecture is not known, or the adapter does not fit it.
    """
    try:
        with torch.device("meta"):
            model = _from_config(objects, config, dtype)
            if objects.model.load_in_4bit or objects.model.load_in_8bit:
                _quantize(model, objects.model, dtype)
            if objects.model.use_peft:
                model = _with_adapter(model, objects)
    except (ValueError, KeyError, ImportError) as error:
        raise RecipeError(f"{objects.recipe.label}: {error}") from error
    if objects.args.disable_dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    if objects.args.gradient_checkpointing:
        with warnings.catch_warnings(action="ignore"):
            model.gradient_checkpointing_enable(objects.args.gradient_checkpointing_kwargs or {"use_reentrant": False})
            if objects.model.use_peft:
                model.enable_input_require_grads()
    return model.train()


def _from_config(objects: RunObjects, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    attention = objects.args.model_init_kwargs["attn_implementation"]
    if attention is not None and "flash" in attention:
        attention = _flash_stand_in()
    named = (config.architectures or [""])[0]
    auto = AutoModelForImageTextToText if named.endswith("ForConditionalGeneration") else AutoModelForCausalLM
    return auto.from_config(
        config, dtype=dtype, attn_implementation=attention, trust_remote_code=objects.args.trust_remote_code
    )


def make_fake(model: nn.Module) -> None:
    """Replace `meta` tensors by fake ones, which claim to lie in memory. Call it under `FakeTensorMode`.

    Kernels choose by the device (attention does), and nothing chooses well for `meta`.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            if id(tensor) not in made:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            if isinstance(module, nn.ParameterDict):
                module[name] = made[id(tensor)]
            else:
                setattr(module, name, made[id(tensor)])
        for name, tensor in list(module.named_buffers(recurse=False)):
            made.setdefault(id(tensor), torch.empty(tensor.shape, dtype=tensor.dtype))
            setattr(module, name, made[id(tensor)])


# -- adapters ---------------------------------------------------------------------------------------------------------


def _with_adapter(model: Any, objects: RunObjects) -> Any:
    """TRL's adapter: float32, or bfloat16 on a quantised model."""
    from peft import get_peft_model
    from trl import get_peft_config

    with warnings.catch_warnings(action="ignore"):
        wrapped = get_peft_model(model, get_peft_config(objects.model))
    if objects.model.load_in_4bit or objects.model.load_in_8bit:
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)
    return wrapped


# -- quantisation -----------------------------------------------------------------------------------------------------


def quantized_bytes(elements: int, rows: int, bits: int, nested: bool) -> tuple[int, int]:
    """Bytes of a quantised matrix: packed weights, and constants.

    4 bit: a float32 constant per 64 weights; nested: a byte per 64 weights, and a float32 per 256 of those. 8 bit: a
    float32 constant per row (bitsandbytes).
    """
    if bits == 8:
        return elements, 4 * rows
    blocks = math.ceil(elements / _BLOCK_4_BIT)
    constants = blocks + 4 * math.ceil(blocks / _BLOCK_NESTED) if nested else 4 * blocks
    return math.ceil(elements / 2), constants


class _DequantizedProduct(torch.autograd.Function):
    """x @ W.T with W made whole for the product and again in the backward pass; W is not trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size) -> Tensor:
        ctx.shape = shape
        return nn.functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ grad.new_empty(ctx.shape), None


class QuantizedLinear(nn.Linear):
    """Stands for a linear layer of bitsandbytes, whose kernels need real data."""

    def __init__(self, linear: nn.Linear, bits: int, nested: bool, compute_dtype: torch.dtype) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        packed, constants = quantized_bytes(linear.weight.numel(), linear.out_features, bits, nested)
        self.full_shape, self.compute_dtype, self.bias = linear.weight.shape, compute_dtype, linear.bias
        self.weight = nn.Parameter(torch.empty(packed, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("constants", torch.empty(constants, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        out = _DequantizedProduct.apply(x.to(self.compute_dtype), self.full_shape)
        return (out if self.bias is None else out + self.bias).to(x.dtype)


def _quantize(model: Any, wanted: Any, compute_dtype: torch.dtype) -> None:
    """Linear layers other than the output layer, as transformers does; embeddings and norms keep the dtype."""
    head = model.get_output_embeddings()
    bits = 4 if wanted.load_in_4bit else 8
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head and not isinstance(child, QuantizedLinear):
                setattr(parent, name, QuantizedLinear(child, bits, bool(wanted.use_bnb_nested_quant), compute_dtype))
    for parameter in model.parameters():
        parameter.requires_grad_(False)


# -- flash attention --------------------------------------------------------------------------------------------------


class _FlashAttention(torch.autograd.Function):
    """Keeps what flash attention keeps: its inputs, its output, and one float32 per query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _flash_stand_in() -> str:
    """Register an attention that allocates as flash attention does, without its package; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kwargs: Any) -> Any:
        plan = getattr(mask, "plan", None)
        if plan is not None and len(plan.source) == 1:  # shared keys come once for each branch (attention/cuda.py)
            keys = torch.zeros(sum(branch.length + branch.shared for branch in plan.branches), dtype=torch.long)
            key, value = key[:, :, keys], value[:, :, keys]
        return _FlashAttention.apply(query, key, value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(FLASH_STAND_IN, attend)
    AttentionMaskInterface.register(FLASH_STAND_IN, lambda *args, **kwargs: None)
    return FLASH_STAND_IN


# -- the row layout, as far as it can be known without weights ----------------------------------------------------


def choose_layout(
    objects: RunObjects, model: Any, fake: FakeTensorMode, cuda: bool, notes: list[str]
) -> tuple[str, bool]:
    """The layout, and whether common beginnings are kept once. The model's attention is made ready for it.

    `auto` is taken to be proved right unless a setting, the model's configuration or its attention rules it out.

    Raises:
        RecipeError: a layout that was asked for by name is ruled out.
    """
    wanted = objects.args.layout
    if wanted == "rows":
        return "rows", True
    causal = base_model(model)
    reason = reason_of_run(model, objects.args) or name_eager_attention(causal) or known_reason(causal)
    if reason is None:
        register()
        reason = _refusal(model, fake)
    if reason is None:
        if cuda:
            causal.set_attn_implementation(_flash_stand_in())
        share = not drops(model)
        if not share:
            notes.append(
                "Dropout is on: chosen and rejected draw it apart, so each computes the prompt. "
                "`disable_dropout: true` computes it once."
            )
        return FASTEST if wanted == "auto" else wanted, share
    if wanted != "auto":
        raise RecipeError(f"`layout: {wanted}` does not work here: {reason}. Set `layout: auto` or `layout: rows`.")
    notes.append(f"Rows are padded and prompts computed twice (`layout: rows`): {reason}.")
    return "rows", True


def _refusal(model: Any, fake: FakeTensorMode) -> str | None:
    """The reason why the model's attention refuses a small layout, or None; other errors are left to the step."""
    plan = make_plan(torch.tensor([12, 12]), torch.tensor([9]), 12)
    with fake, torch.no_grad():
        ids = torch.zeros(plan.source.shape, dtype=torch.long)
        try:
            base_model(model).base_model(input_ids=ids, attention_mask=carry(plan), position_ids=ids, use_cache=False)
        except Unsupported as error:
            return f"the model's attention {error}"
        except Exception:
            return None
    return None
