"""Which row layout a run will use, as far as that can be known without its weights."""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trl_plus.errors import RecipeError
from trl_plus.estimate.model import stand_in_for_flash
from trl_plus.forward.attention import Unsupported, carry, register
from trl_plus.forward.attention.interface import name_eager_attention
from trl_plus.forward.layouts import make_plan
from trl_plus.forward.packing import known_reason
from trl_plus.setup.objects import RunObjects
from trl_plus.trainers.layouts import FASTEST, drops, reason_of_run
from trl_plus.upstream.models import base_model


def choose(objects: RunObjects, model: Any, fake: FakeTensorMode, cuda: bool, notes: list[str]) -> tuple[str, bool]:
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
            stand_in_for_flash(causal)
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
    """What the model's attention says to a small layout, or None; other faults are left to the step itself."""
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
