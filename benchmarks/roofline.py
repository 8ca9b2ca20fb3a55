"""What a step should take on one H100, ours and TRL's: an estimate from FLOPs and assumed rates, not a measurement.

    python benchmarks/roofline.py

DPO with gradient checkpointing, pairs of equal length. A step is matrix products, attention, the LM head and the
optimizer, each at an assumed rate and one after the other, plus the host's time to lay out a micro-batch. Launches are
not counted, so a step that is bound by them (a small model, a small micro-batch) gains less than this says.
"""

from dataclasses import dataclass

# hidden size, intermediate size, layers, heads, key heads; FLOPs per second that matrix products of this width reach
SHAPES = {
    "0.5B": ((896, 4864, 24, 14, 2), 400e12),
    "1.5B": ((1536, 8960, 28, 12, 2), 520e12),
    "7B": ((3584, 18944, 28, 28, 4), 620e12),
}
VOCAB = 151_936
FLASH, MASKED = 290e12, 200e12  # FLOPs per second of attention: flash kernels, and kernels that read a mask
BANDWIDTH = 3e12  # bytes per second
OPTIMIZER_BYTES = 20  # read and written per trained parameter by AdamW on bfloat16 weights
LORA = 0.01  # share of the parameters that LoRA trains
PLAN_SECONDS = 1e-3  # to lay out a micro-batch on the host


@dataclass(frozen=True)
class Work:
    """One micro-batch of pairs.

    Args:
        shape: a name of SHAPES.
        full: all weights are trained; LoRA if not.
        pairs, length: rows of the micro-batch, and tokens of a prompt with one completion.
        share: of the prompt in `length`.
        padding: share of the padded rows that is padding.
    """

    shape: str
    full: bool
    pairs: int
    length: int
    share: float
    padding: float = 0.0


def seconds(work: Work, tokens: float, scores: float, attention_rate: float, host: float = 0.0) -> float:
    """Seconds of a step that computes `tokens` tokens and `scores` query-key pairs, of all rows."""
    (hidden, inner, layers, heads, few), rate = SHAPES[work.shape]
    parameters = layers * (2 * hidden**2 + 2 * hidden**2 * few / heads + 3 * hidden * inner)
    # Forward, the same again for checkpointing, backward to the inputs (and to the weights that are trained), reference
    passes = 4 + work.full
    products = 2 * parameters * tokens * passes / rate
    attention = 4 * hidden * layers * scores * (3 + 2.5) / attention_rate
    completions = 2 * work.pairs * work.length * (1 - work.share)
    head = 2 * VOCAB * hidden * completions * passes / rate
    trained = (parameters + VOCAB * hidden) * (1 if work.full else LORA)
    return products + attention + head + OPTIMIZER_BYTES * trained / BANDWIDTH + host


def gains(work: Work) -> dict[str, float]:
    """How many times ours is faster than each other way to compute the same step."""
    prompt, whole = work.share * work.length, work.length
    rest = whole - prompt
    once = work.pairs * (whole + rest)
    twice = 2 * work.pairs * whole
    padded = twice / (1 - work.padding)
    causal = 2 * work.pairs * whole**2 / 2
    shared = work.pairs * (whole**2 / 2 + rest * prompt + rest**2 / 2)
    ours = seconds(work, once, shared, FLASH, PLAN_SECONDS)
    wide = 2 * work.pairs * (whole / (1 - work.padding)) ** 2  # a kernel with a mask skips nothing
    return {
        "TRL, no padding": seconds(work, twice, 2 * causal, MASKED) / ours,
        "TRL, padded": seconds(work, padded, wide, MASKED) / ours,
        "TRL with flash-attention, padded": seconds(work, padded, causal, FLASH) / ours,
        "packed flash-attention without sharing": seconds(work, twice, causal, FLASH) / ours,
    }


CASES = [
    ("7B LoRA 8x1024, prompt half", Work("7B", False, 8, 1024, 0.5, 0.3)),
    ("1.5B full 8x1024, prompt half", Work("1.5B", True, 8, 1024, 0.5, 0.3)),
    ("0.5B full 8x1024, prompt half", Work("0.5B", True, 8, 1024, 0.5, 0.3)),
    ("0.5B full 2x1024, prompt 0.3", Work("0.5B", True, 2, 1024, 0.3, 0.3)),
    ("7B LoRA 4x2048, prompt 0.8", Work("7B", False, 4, 2048, 0.8, 0.3)),
]


def main() -> None:
    columns = list(gains(CASES[0][1]))
    print("| estimate, 30% padding where padded | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, work in CASES:
        print(f"| {name} | " + " | ".join(f"{gain:.2f}" for gain in gains(work).values()) + " |")


if __name__ == "__main__":
    main()
