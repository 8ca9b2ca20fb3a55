"""The methods a recipe can name, and what each one stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """What `method: NAME` means.

    Attributes:
        config: configuration class in `trl_plus`.
        trainer: trainer class in `trl_plus`.
        fixed: values that define the method; a recipe may repeat but not change them.
        preset: values the method starts from; a recipe may change them.
        paired: trained on pairs (chosen, rejected). False: on rows with a label; pairs are split in two.
        reference: the loss compares the policy with a frozen reference model.
    """

    name: str
    summary: str
    config: str
    trainer: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)
    paired: bool = True
    reference: bool = True


def _dpo_preset(name: str, summary: str, loss_type: str, **preset: Any) -> Method:
    return Method(name, summary, "DPOConfig", "DPOTrainer", fixed={"loss_type": [loss_type]}, preset=preset)


_ALL = (
    Method("simpo", "SimPO: length-normalised reward with a target margin", "SimPOConfig", "SimPOTrainer",
           reference=False),
    Method("orpo", "ORPO: likelihood of the chosen side and an odds-ratio term", "ORPOConfig", "ORPOTrainer",
           reference=False),
    Method("cpo", "CPO: preference term without a reference, and likelihood of the chosen side", "CPOConfig",
           "CPOTrainer", reference=False),
    Method("kto", "KTO: single completions labelled desirable or not", "KTOConfig", "KTOTrainer",
           paired=False),
    Method("dpo", "DPO and every other loss_type of TRL's DPOTrainer, and weighted mixes of them", "DPOConfig",
           "DPOTrainer"),
    _dpo_preset("cdpo", "DPO with label smoothing", "sigmoid", label_smoothing=0.1),
    _dpo_preset("ipo", "IPO: squared distance to a finite margin", "ipo"),
    _dpo_preset("hinge", "hinge loss on the DPO margin", "hinge"),
    _dpo_preset("robust", "robust DPO: unbiased under flipped labels", "robust", label_smoothing=0.1),
    # TRL's default of 0.1 is that of a loss on sums over tokens; this is a mean (trl_plus/published.py)
    _dpo_preset("dpo_norm", "DPO on length-normalised log-ratios", "sigmoid_norm", beta=5.0),
    _dpo_preset("apo_zero", "APO-zero: the chosen side up, the rejected side down", "apo_zero"),
    _dpo_preset("apo_down", "APO-down: both sides down, the rejected side more", "apo_down"),
    Method("apo_zero_unpaired", "APO-zero on single labelled completions", "KTOConfig", "KTOTrainer",
           fixed={"loss_type": "apo_zero_unpaired"}, paired=False),
)  # fmt: skip

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
