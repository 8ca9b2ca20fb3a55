"""Every fact about a method: trainer, losses, papers, presets, what to change when a run goes wrong. Imports no torch.

Three tables:

- `Loss`: one `loss_type`. What its reward reads, which function of `trl_plus.objectives` computes it, and its options.
- `Family`: one configuration and one trainer, and the losses that they know.
- `Method`: what `method: NAME` in a recipe means: a family with values that define it and values that it starts from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trl_plus import papers
from trl_plus.papers import Paper


@dataclass(frozen=True)
class Loss:
    """One loss, by the `loss_type` of its family.

    Attributes:
        title: its usual name.
        paper: None for plain likelihood.
        reward: what the reward of a completion reads: "sum" or "mean" of the log-probabilities of its tokens, or the
            configuration key that holds one of the two.
        objective: the function of `trl_plus.objectives`; None if TRL computes the loss, or for a token mean.
        options: parameter of the objective -> the configuration key that it takes its value from, beside `beta`.
        exact: the loss is a sum over rows or tokens, so that an optimizer step does not depend on how it is cut.
        margin: the loss can read a `margin` column.
    """

    title: str
    paper: Paper | None
    reward: str
    objective: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    exact: bool = True
    margin: bool = False


_SMOOTHED = {"label_smoothing": "label_smoothing"}
# Losses of TRL's DPOTrainer
_DPO = {
    "sigmoid": Loss("DPO", papers.DPO, "sum", "dpo", _SMOOTHED, margin=True),
    "robust": Loss("robust DPO", papers.ROBUST, "sum", "robust", _SMOOTHED),
    "ipo": Loss("IPO", papers.IPO, "ipo_reduction", "ipo", {"reduction": "ipo_reduction"}),
    "hinge": Loss("DPO with a hinge loss", papers.RSO, "sum", "hinge"),
    "sigmoid_norm": Loss("length-normalised DPO", papers.TULU3, "mean", "dpo_norm"),
    "apo_zero": Loss("APO-zero", papers.APO, "sum", "apo_zero"),
    "apo_down": Loss("APO-down", papers.APO, "sum", "apo_down"),
    "exo_pair": Loss("EXO-pref", papers.EXO, "sum", "exo_pair", _SMOOTHED),
    "nca_pair": Loss("NCA", papers.NCA, "sum", "nca_pair"),
    "bco_pair": Loss("BCO on pairs", papers.BCO, "sum", "bco_pair"),
    "sppo_hard": Loss("SPPO's loss", papers.SPPO, "sum", "sppo_hard"),
    "discopop": Loss("DiscoPOP", papers.DISCOPOP, "sum", "discopop", {"tau": "discopop_tau"}),
    "sft": Loss("likelihood of the chosen side (NLL)", None, "mean"),
    # These sort the rows of a micro-batch. TRL computes them
    "aot": Loss("AOT", papers.AOT, "sum", options=_SMOOTHED, exact=False),
    "aot_unpaired": Loss("AOT on unpaired sides", papers.AOT, "sum", options=_SMOOTHED, exact=False),
}


@dataclass(frozen=True)
class Family:
    """Methods that share a configuration and a trainer.

    Attributes:
        name: as messages and model tags have it.
        config: configuration class in `trl_plus`.
        trainer: trainer class in `trl_plus`.
        losses: what `loss_type` can be.
        if_both_fall: what to change when the chosen side loses likelihood together with the rejected one.
        paired: trained on pairs (chosen, rejected). False: on rows with a label; pairs are split in two.
        reference: the loss compares the policy with a frozen reference model.
    """

    name: str
    config: str
    trainer: str
    losses: Mapping[str, Loss]
    if_both_fall: str
    paired: bool = True
    reference: bool = True

    def named(self, loss_type: str | list[str]) -> list[Loss]:
        """The losses that a `loss_type` names. One that is not known stands under its own name."""
        names = [loss_type] if isinstance(loss_type, str) else loss_type
        return [self.losses.get(name) or Loss(name, None, "sum", exact=False) for name in names]

    def readers(self, option: str) -> list[str]:
        """The loss types that read a configuration key."""
        return [name for name, loss in self.losses.items() if option in loss.options.values()]


def _family(name: str, losses: Mapping[str, Loss], if_both_fall: str, **more: Any) -> Family:
    return Family(name, f"{name}Config", f"{name}Trainer", losses, if_both_fall, **more)


_SIMPO = Loss("SimPO", papers.SIMPO, "mean", "simpo", _SMOOTHED, margin=True)
_CPO = Loss("CPO", papers.CPO, "sum", "cpo", _SMOOTHED)
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family(
            "SimPO",
            {"sigmoid": _SIMPO, "hinge": replace(_SIMPO, options={})},
            "lower learning_rate, or add the likelihood of the chosen side (`sft_weight: 0.1`)",
            reference=False,
        ),
        _family(
            "ORPO",
            {"sigmoid": Loss("ORPO", papers.ORPO, "mean", "odds_ratio", {"odds": "odds"})},
            "lower learning_rate, or lower `beta`, the weight of the odds ratio",
            reference=False,
        ),
        _family(
            "CPO",
            {"sigmoid": _CPO, "hinge": replace(_CPO, options={}), "ipo": replace(_CPO, reward="mean", options={})},
            "lower learning_rate, or raise `cpo_alpha`",
            reference=False,
        ),
        _family(
            "KTO",
            {
                "kto": Loss("KTO", papers.KTO, "sum", "kto"),
                "apo_zero_unpaired": Loss(
                    "APO-zero on single labelled completions", papers.APO, "sum", "apo_zero_unpaired"
                ),
            },
            "lower learning_rate, or raise `desirable_weight`",
            paired=False,
        ),
        _family(
            "DPO",
            _DPO,
            "lower learning_rate, add the likelihood of the chosen side (`loss_type: [sigmoid, sft]` with "
            "`loss_weights: [1.0, 0.2]`), or use `loss_type: apo_zero`",
        ),
    )
}


@dataclass(frozen=True)
class Method:
    """The meaning of `method: NAME` in a recipe.

    Attributes:
        fixed: values that define the method; a recipe may repeat but not change them.
        preset: values the method starts from; a recipe may change them.
    """

    name: str
    summary: str
    family: Family
    fixed: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> str:
        return self.family.config

    @property
    def trainer(self) -> str:
        return self.family.trainer

    @property
    def paired(self) -> bool:
        return self.family.paired

    @property
    def reference(self) -> bool:
        return self.family.reference

    def reward_reads(self, args: Any = None) -> str:
        """Return "sum" if length alone can raise the reward of a completion, or "mean".

        Args:
            args: the training configuration; None for the values that the method starts from.
        """
        names = getattr(args, "loss_type", None) or self.fixed.get("loss_type") or next(iter(self.family.losses))
        rewards = {loss.reward for loss in self.family.named(names)}
        read = {how if how in ("sum", "mean") else getattr(args, how, "mean") for how in rewards}
        return "sum" if "sum" in read else "mean"


def _dpo(name: str, summary: str, loss_type: str, **preset: Any) -> Method:
    return Method(name, summary, FAMILIES["DPO"], {"loss_type": [loss_type]}, preset)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("simpo", "SimPO: length-normalised reward with a target margin", FAMILIES["SimPO"]),
        Method("orpo", "ORPO: likelihood of the chosen side and an odds-ratio term", FAMILIES["ORPO"]),
        Method("cpo", "CPO: preference term without a reference, and likelihood of the chosen side", FAMILIES["CPO"]),
        Method("kto", "KTO: single completions labelled desirable or not", FAMILIES["KTO"]),
        Method("dpo", "DPO and every other loss_type of TRL's DPOTrainer, and weighted mixes of them", FAMILIES["DPO"]),
        _dpo("cdpo", "DPO with label smoothing", "sigmoid", label_smoothing=0.1),
        _dpo("odpo", "DPO with an offset: a `margin` column says by how much each pair should differ", "sigmoid",
             margin_scale=1.0),
        _dpo("ipo", "IPO: squared distance to a finite margin", "ipo"),
        _dpo("hinge", "hinge loss on the DPO margin", "hinge"),
        _dpo("robust", "robust DPO: unbiased under flipped labels", "robust", label_smoothing=0.1),
        # TRL's default of 0.1 is that of a loss on sums over tokens; this is a mean (trl_plus/published.py)
        _dpo("dpo_norm", "DPO on length-normalised log-ratios", "sigmoid_norm", beta=5.0),
        _dpo("apo_zero", "APO-zero: the chosen side up, the rejected side down", "apo_zero"),
        _dpo("apo_down", "APO-down: both sides down, the rejected side more", "apo_down"),
        Method("apo_zero_unpaired", "APO-zero on single labelled completions", FAMILIES["KTO"],
               {"loss_type": "apo_zero_unpaired"}),
    )
}  # fmt: skip


def trained_with(family: Family, args: Any) -> list[Loss]:
    """The losses that a training configuration combines, under the names and papers of their variants, each once."""
    found: dict[str, Loss] = {}
    for loss in family.named(args.loss_type):
        if loss is _DPO["sigmoid"] and getattr(args, "margin_scale", False):
            loss = replace(loss, title="ODPO", paper=papers.ODPO)
        elif loss is _DPO["sigmoid"] and args.label_smoothing:
            loss = replace(loss, title="cDPO", paper=papers.CDPO)
        found.setdefault(loss.title, loss)
    return list(found.values())
