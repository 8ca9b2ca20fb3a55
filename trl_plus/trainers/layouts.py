"""Which row layout a run uses: the fastest that is proved right at its first batch, or the one that was asked for."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from trl_plus.layout_proof import reason_against
from trl_plus.packing import Planner, RowLayout
from trl_plus.trainers import upstream
from trl_plus.trainers.adapters import needs_plain_rows

logger = logging.getLogger("trl_plus")
FASTEST = "packed"


class RowLayouts:
    """Mixed in before a trainer: `install_layouts` lays out the rows of policy and reference.

    The first batch of each model decides. `layout: auto` goes on with plain rows where the layout is not proved right,
    and says why; a layout that was asked for by name and cannot work is a ValueError.
    """

    row_layouts: tuple[RowLayout, ...] = ()

    def install_layouts(self) -> None:
        """On models that carry their fused LM heads, once."""
        wanted = getattr(self.args, "layout", "auto")
        if wanted == "rows":
            return
        reason = self._reason_of_run()
        models = [upstream.base_model(model) for model in (self.model, self.ref_model) if model is not None]
        for model in models:
            reason = reason or upstream.name_eager_attention(model)
        if reason is not None:
            self._fall_back(wanted, reason)
            return
        share = not self._drops()
        if not share and self.accelerator.is_main_process:
            logger.warning(
                "Dropout is on: chosen and rejected draw it apart, so each computes the prompt. "
                "`disable_dropout: true` computes it once."
            )
        planner = Planner()
        self.row_layouts = tuple(RowLayout(model, "rows", share, planner) for model in models)
        for row_layout in self.row_layouts:
            row_layout.before_batch = self._decide

    @contextmanager
    def without_layouts(self) -> Iterator[None]:
        """Rows as they are; the first batch that decides is still to come."""
        with ExitStack() as stack:
            for row_layout in self.row_layouts:
                stack.enter_context(row_layout.using("rows"))
                stack.callback(setattr, row_layout, "before_batch", row_layout.before_batch)
                row_layout.before_batch = None
            yield

    def _reason_of_run(self) -> str | None:
        """Why a setting of this run rules out every layout but `rows`."""
        if self.args.neftune_noise_alpha:
            return "the noise of neftune_noise_alpha depends on the padded length"
        if self.args.torch_compile:
            return "torch_compile would compile anew for every batch"
        return needs_plain_rows(self.model) if upstream.is_peft(self.model) else None

    def _drops(self) -> bool:
        """Whether the policy draws dropout; that of attention is a number in its configuration."""
        modules = self.model.modules()
        drawn = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in modules)
        return drawn or bool(getattr(upstream.base_model(self.model).config, "attention_dropout", 0.0))

    def _decide(self, row_layout: RowLayout, batch: dict[str, Any], labels: Tensor) -> None:
        """At the first batch of a model. Every process comes here at its first batch, and all take the same layout."""
        row_layout.before_batch = None
        wanted = getattr(self.args, "layout", "auto")
        layout = FASTEST if wanted == "auto" else wanted
        reason = reason_against(row_layout, layout, batch, labels, self._agree)
        if reason is None:
            row_layout.layout = layout
        else:
            self._fall_back(wanted, reason)

    def _agree(self, reason: str | None) -> str | None:
        """This process's reason, or that of the first process that has one. Every process has to call it."""
        if self.accelerator.num_processes == 1:
            return reason
        reasons = [found for found in gather_object([reason]) if found is not None]
        if not reasons:
            return None
        return reason if reason is not None else f"another process finds that {reasons[0]}"

    def _fall_back(self, wanted: str, reason: str) -> None:
        if wanted != "auto":
            raise ValueError(f"`layout: {wanted}` does not work here: {reason}. Set `layout: auto` or `layout: rows`.")
        if self.accelerator.is_main_process and reason not in self._said:
            self._said.add(reason)
            logger.warning("Rows are padded and prompts computed twice (`layout: rows`): %s.", reason)

    @property
    def _said(self) -> set[str]:
        return self.__dict__.setdefault("_said_of_layouts", set())
