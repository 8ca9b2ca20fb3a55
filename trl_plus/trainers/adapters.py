"""Adapters and quantized weights: what TRL and bitsandbytes do to them that training must undo."""

from typing import Any

from trl_plus.trainers.upstream import is_peft


def drop_reference_adapter(model: Any) -> None:
    """Deletes the copy of a pretrained adapter that TRL makes as a reference."""
    if is_peft(model) and "ref" in model.peft_config:
        model.delete_adapter("ref")


def keep_trainable(model: Any) -> None:
    """Stops bitsandbytes from repacking 4-bit weights on a CPU.

    With AVX512-bfloat16 a forward pass in evaluation mode repacks them for inference only, and the next training step
    fails (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
