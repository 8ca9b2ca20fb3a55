"""Published learning rates and betas, with their sources: data that runs are compared with. Imports no torch.

Each row was read at its source. A rate is a peak rate of Adam on full weights or, if `lora`, on a LoRA adapter.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Published learning rates of one model.

    Attributes:
        method: "DPO", "SimPO", "ORPO", "CPO" or "KTO"; DPO stands for every loss type of its trainer.
        size: parameters of the model, in billions.
        kind: "SFT" (a base model after supervised fine-tuning), "base", "instruct" or "reasoning".
        low, high: the lowest and the highest rate; equal for a single one.
        model: the model's name, as messages print it.
        source: a bundled recipe of recipes/published, or repository and file.
    """

    method: str
    size: float
    kind: str
    low: float
    high: float
    model: str
    source: str
    lora: bool = False

    @property
    def label(self) -> str:
        """The model's name and its kind, as messages print them."""
        return self.model if self.kind in self.model else f"{self.model}, {self.kind}"


_BOOK = "natolambert/rlhf-book, code/direct_alignment/configs"
RATES = (
    Rate("DPO", 32, "reasoning", 7e-8, 9e-8, "OLMo 3 32B Think", "olmo3_32b_think"),
    Rate("DPO", 7, "reasoning", 8e-8, 8e-8, "OLMo 3 7B Think", "olmo3_7b_think"),
    Rate("DPO", 70, "SFT", 2e-7, 2e-7, "Tulu 3 70B", "tulu3_70b"),
    Rate("DPO", 9, "instruct", 3e-7, 7e-7, "SimPO's DPO baselines of 7B to 9B", "princeton-nlp/SimPO, README.md"),
    Rate("DPO", 8, "SFT", 5e-7, 5e-7, "Tulu 3 8B", "tulu3_8b"),
    Rate("DPO", 7, "SFT", 5e-7, 5e-7, "Zephyr 7B", "zephyr_7b"),
    Rate("DPO", 13, "SFT", 8e-7, 8e-7, "OLMo 2 13B", "olmo2_13b"),
    Rate("DPO", 7, "SFT", 1e-6, 1e-6, "OLMo 2 7B", "olmo2_7b"),
    Rate("DPO", 32, "instruct", 1e-6, 1e-6, "OLMo 3 32B Instruct", "olmo3_32b_instruct"),
    Rate("DPO", 7, "instruct", 1e-6, 1e-6, "OLMo 3 7B Instruct", "olmo3_7b_instruct"),
    Rate("DPO", 3, "reasoning", 1e-6, 1e-6, "SmolLM3 3B", "smollm3_3b"),
    Rate("DPO", 1.7, "SFT", 1e-6, 1e-6, "SmolLM2 1.7B", "smollm2_1700m"),
    Rate("DPO", 0.36, "SFT", 1e-6, 1e-6, "SmolLM2 360M", "smollm2_360m"),
    Rate("DPO", 1.5, "SFT", 5e-6, 5e-6, "OLMo 2 1B", f"{_BOOK}/dpo.yaml"),
    Rate("DPO", 7, "SFT", 5e-6, 5e-6, "Zephyr 7B QLoRA", "zephyr_7b_qlora", lora=True),
    Rate("SimPO", 7, "SFT", 3e-7, 3e-7, "Mistral-7B base", "simpo_mistral_7b_base"),
    Rate("SimPO", 7, "instruct", 5e-7, 5e-7, "Mistral-7B instruct", "simpo_mistral_7b_instruct"),
    Rate("SimPO", 8, "SFT", 6e-7, 6e-7, "Llama-3-8B base", "simpo_llama3_8b_base"),
    Rate("SimPO", 1.5, "SFT", 8e-7, 8e-7, "OLMo 2 1B", f"{_BOOK}/simpo.yaml"),
    Rate("SimPO", 9, "instruct", 8e-7, 8e-7, "Gemma-2-9B instruct", "simpo_gemma2_9b"),
    Rate("SimPO", 8, "instruct", 1e-6, 1e-6, "Llama-3-8B instruct", "simpo_llama3_8b_instruct"),
    Rate("SimPO", 8, "instruct", 1e-6, 1e-6, "Llama-3-8B instruct v0.2", "simpo_llama3_8b_instruct_v2"),
    Rate("ORPO", 1.5, "SFT", 1e-6, 1e-6, "OLMo 2 1B", f"{_BOOK}/orpo.yaml"),
    Rate("ORPO", 1.3, "base", 5e-6, 5e-6, "OPT 1.3B", "xfactlab/orpo, scripts/run_orpo.sh"),
    Rate("ORPO", 7, "base", 5e-6, 5e-6, "Mistral-7B base", "orpo_mistral_7b"),
    Rate("ORPO", 7, "base", 5e-6, 5e-6, "Mistral-7B base, 7k pairs", "orpo_mistral_7b_capybara"),
    Rate("ORPO", 141, "base", 5e-6, 5e-6, "Zephyr 141B-A35B",
         "huggingface/alignment-handbook, recipes/zephyr-141b-A35b/orpo/config_full.yaml"),
    Rate("CPO", 8, "instruct", 1e-6, 1e-6, "Llama-3-8B instruct", "cpo_llama3_8b_instruct"),
    Rate("CPO", 13, "SFT", 1e-4, 1e-4, "ALMA-13B-R LoRA", "fe1ixxu/ALMA, runs/cpo_ft.sh", lora=True),
    Rate("KTO", 7, "SFT", 5e-7, 5e-6, "TRL's documentation", "huggingface/trl, docs/source/kto_trainer.md"),
    Rate("KTO", 1.5, "SFT", 5e-6, 5e-6, "OLMo 2 1B", f"{_BOOK}/kto.yaml"),
    Rate("KTO", 8, "SFT", 5e-6, 5e-6, "HALOs, Llama-3-8B", "kto_llama3_8b"),
)  # fmt: skip


@dataclass(frozen=True)
class Beta:
    """Published values of `beta` for one loss. Losses of one value of `beta` may differ in scale by a factor of 1000.

    Attributes:
        loss: a loss type of TRL's DPOTrainer, or "SimPO", "ORPO", "CPO" or "KTO".
        low, high: the lowest and the highest published value; equal for a single one.
        source: who published them.
    """

    loss: str
    low: float
    high: float
    source: str


BETAS = (
    Beta("sigmoid", 0.01, 0.5, "Zephyr 7B and SmolLM2"),
    Beta("sigmoid_norm", 2.0, 5.0, "the RLHF book and Tulu 3, OLMo 2 and OLMo 3"),
    Beta("ipo", 0.01, 0.9, "alignment-handbook's scan; HALOs 0.1"),
    Beta("hinge", 0.05, 0.05, "the RSO paper"),
    Beta("robust", 0.1, 0.1, "the robust DPO paper"),
    Beta("exo_pair", 0.1, 0.1, "the EXO paper"),
    Beta("nca_pair", 0.01, 0.01, "the NCA paper"),
    Beta("bco_pair", 0.01, 0.01, "the BCO paper"),
    Beta("sppo_hard", 0.001, 0.001, "the SPPO paper"),
    Beta("aot", 0.01, 0.01, "the AOT paper"),
    Beta("aot_unpaired", 0.01, 0.01, "the AOT paper"),
    Beta("discopop", 0.05, 0.05, "the DiscoPOP paper"),
    Beta("apo_zero", 0.05, 0.1, "SmolLM3 3B and the APO paper"),
    Beta("apo_down", 0.1, 0.1, "the APO paper"),
    Beta("SimPO", 2.0, 10.0, "the SimPO authors"),
    Beta("ORPO", 0.05, 0.1, "the ORPO authors"),
    Beta("CPO", 0.1, 0.1, "the CPO authors"),
    Beta("KTO", 0.1, 0.1, "HALOs"),
)
