"""The papers to cite, and how a card cites them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper. `arxiv` is its number there. A paper that is not there has a `url`."""

    key: str
    title: str
    authors: str
    year: int
    arxiv: str | None = None
    url: str | None = None

    @property
    def link(self) -> str:
        """The address of the paper."""
        return self.url or f"https://huggingface.co/papers/{self.arxiv}"

    @property
    def bibtex(self) -> str:
        """The BibTeX entry."""
        where = [("eprint", self.arxiv), ("archivePrefix", "arXiv")] if self.arxiv else [("url", self.url)]
        fields = [("title", f"{{{self.title}}}"), ("author", self.authors), ("year", self.year), *where]
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields)
        return f"@misc{{{self.key},\n{body}\n}}"


SIMPO = Paper(
    "meng2024simpo",
    "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    "Yu Meng and Mengzhou Xia and Danqi Chen",
    2024,
    "2405.14734",
)
CPO = Paper(
    "xu2024contrastive",
    "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
    "Haoran Xu and Amr Sharaf and Yunmo Chen and Weiting Tan and Lingfeng Shen and Benjamin Van Durme and "
    "Kenton Murray and Young Jin Kim",
    2024,
    "2401.08417",
)
ORPO = Paper(
    "hong2024orpo",
    "ORPO: Monolithic Preference Optimization without Reference Model",
    "Jiwoo Hong and Noah Lee and James Thorne",
    2024,
    "2403.07691",
)
KTO = Paper(
    "ethayarajh2024kto",
    "KTO: Model Alignment as Prospect Theoretic Optimization",
    "Kawin Ethayarajh and Winnie Xu and Niklas Muennighoff and Dan Jurafsky and Douwe Kiela",
    2024,
    "2402.01306",
)
DPO = Paper(
    "rafailov2023direct",
    "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    "Rafael Rafailov and Archit Sharma and Eric Mitchell and Christopher D. Manning and Stefano Ermon and Chelsea Finn",
    2023,
    "2305.18290",
)
CDPO = Paper(
    "mitchell2023note",
    "A note on DPO with noisy preferences & relationship to IPO",
    "Eric Mitchell",
    2023,
    url="https://ericmitchell.ai/cdpo.pdf",
)
IPO = Paper(
    "azar2023general",
    "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    "Mohammad Gheshlaghi Azar and Mark Rowland and Bilal Piot and Daniel Guo and Daniele Calandriello and "
    "Michal Valko and R{\\'e}mi Munos",
    2023,
    "2310.12036",
)
RSO = Paper(
    "liu2023statistical",
    "Statistical Rejection Sampling Improves Preference Optimization",
    "Tianqi Liu and Yao Zhao and Rishabh Joshi and Misha Khalman and Mohammad Saleh and Peter J. Liu and Jialu Liu",
    2023,
    "2309.06657",
)
ROBUST = Paper(
    "chowdhury2024provably",
    "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    "Sayak Ray Chowdhury and Anush Kini and Nagarajan Natarajan",
    2024,
    "2403.00409",
)
TULU3 = Paper(
    "lambert2024tulu3",
    "Tulu 3: Pushing Frontiers in Open Language Model Post-Training",
    "Nathan Lambert and others",
    2024,
    "2411.15124",
)
EXO = Paper(
    "ji2024towards",
    "Towards Efficient Exact Optimization of Language Model Alignment",
    "Haozhe Ji and Cheng Lu and Yilin Niu and Pei Ke and Hongning Wang and Jun Zhu and Jie Tang and Minlie Huang",
    2024,
    "2402.00856",
)
NCA = Paper(
    "chen2024noise",
    "Noise Contrastive Alignment of Language Models with Explicit Rewards",
    "Huayu Chen and Guande He and Lifan Yuan and Ganqu Cui and Hang Su and Jun Zhu",
    2024,
    "2402.05369",
)
BCO = Paper(
    "jung2024binary",
    "Binary Classifier Optimization for Large Language Model Alignment",
    "Seungjae Jung and Gunsoo Han and Daniel Wontae Nam and Kyoung-Woon On",
    2024,
    "2404.04656",
)
SPPO = Paper(
    "wu2024selfplay",
    "Self-Play Preference Optimization for Language Model Alignment",
    "Yue Wu and Zhiqing Sun and Huizhuo Yuan and Kaixuan Ji and Yiming Yang and Quanquan Gu",
    2024,
    "2405.00675",
)
DISCOPOP = Paper(
    "lu2024discovering",
    "Discovering Preference Optimization Algorithms with and for Large Language Models",
    "Chris Lu and Samuel Holt and Claudio Fanconi and Alex J. Chan and Jakob Foerster and Mihaela van der "
    "Schaar and Robert Tjarko Lange",
    2024,
    "2406.08414",
)
APO = Paper(
    "doosterlinck2024anchored",
    "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    "Karel D'Oosterlinck and Winnie Xu and Chris Develder and Thomas Demeester and Amanpreet Singh and Christopher "
    "Potts and Douwe Kiela and Shikib Mehri",
    2024,
    "2408.06266",
)
AOT = Paper(
    "melnyk2024distributional",
    "Distributional Preference Alignment of LLMs via Optimal Transport",
    "Igor Melnyk and Youssef Mroueh and Brian Belgodere and Mattia Rigotti and Apoorva Nitsure and Mikhail Yurochkin "
    "and Kristjan Greenewald and Jiri Navratil and Jerret Ross",
    2024,
    "2406.05882",
)
ODPO = Paper(
    "amini2024direct",
    "Direct Preference Optimization with an Offset",
    "Afra Amini and Tim Vieira and Ryan Cotterell",
    2024,
    "2402.10571",
)

TRL = """@software{vonwerra2020trl,
  title = {{TRL: Transformers Reinforcement Learning}},
  author = {von Werra, Leandro and others},
  url = {https://github.com/huggingface/trl},
  year = {2020}
}"""
