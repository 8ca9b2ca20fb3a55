"""A copy of a model as its reference, also where DeepSpeed ZeRO-3 has cut the weights across processes."""

import copy
from typing import Any

import torch

from trl_plus.upstream.models import build_again


def frozen_copy(model: Any) -> Any:
    """A copy of a model in evaluation mode, all of its parameters frozen. A ZeRO-3 model is copied shard by shard.

    Raises:
        ValueError: a ZeRO-3 model is not the one that its configuration describes.
    """
    partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    copied = _copy_of_shards(model) if partitioned else copy.deepcopy(model)
    return copied.eval().requires_grad_(False)


@torch.no_grad()
def _copy_of_shards(model: Any) -> Any:
    """A second model of the same configuration, cut in the same way, with this process's shards copied into it."""
    with torch.random.fork_rng(devices=[]):
        copied = build_again(model)
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(copied, kind)()), dict(getattr(model, kind)())
        odd = sorted(ours.keys() ^ theirs.keys())
        odd += [name for name in ours.keys() & theirs.keys() if not _alike(ours[name], theirs[name])]
        if odd:
            raise ValueError(
                "Under DeepSpeed ZeRO-3 the reference is built from the model's configuration, and this model was "
                f"changed since ({odd[0]} differs): pass `ref_model`, give the model as a path, or use FSDP2."
            )
        for name, tensor in ours.items():
            _shard(tensor).copy_(_shard(theirs[name]))
    return copied


def _shard(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that this process holds."""
    return getattr(tensor, "ds_tensor", tensor).data


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    shapes = [getattr(tensor, "ds_shape", tensor.shape) for tensor in (a, b)]
    return shapes[0] == shapes[1] and _shard(a).shape == _shard(b).shape and _shard(a).dtype == _shard(b).dtype
