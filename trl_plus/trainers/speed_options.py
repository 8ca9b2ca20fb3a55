"""The keys of all methods that change how fast a step is made, and nothing about the step."""

from dataclasses import dataclass, field

LAYOUT_CHOICES = ("auto", "packed", "shared", "rows")


@dataclass
class SpeedOptions:
    """A mixin of configurations."""

    layout: str = field(
        default="auto",
        metadata={
            "help": "How the rows of a micro-batch are computed: 'packed' in one row without padding, each prompt "
            "once; 'shared' one padded row per pair, each prompt once; 'rows' as TRL does. 'auto' is 'packed' where "
            "the first batch proves it right, else 'rows', and says why.",
            "choices": list(LAYOUT_CHOICES),
        },
    )
    tokens_per_device: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a micro-batch, each prompt counted once. The rows of a step stay "
            "per_device_train_batch_size x gradient_accumulation_steps x processes; they are computed in micro-batches "
            "filled up to this number, so memory is flat whatever their lengths. A longer row is computed alone."
        },
    )

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "transformers' filter of losses that are not finite from the log, which waits for the device at "
            "every micro-batch. `nonfinite` looks at each step once and hides nothing."
        },
    )

    def _check_speed(self) -> None:
        if self.layout not in LAYOUT_CHOICES:
            raise ValueError(f"`layout` must be one of {', '.join(LAYOUT_CHOICES)}, got {self.layout!r}.")
        if self.tokens_per_device is not None and self.tokens_per_device < 1:
            raise ValueError(f"`tokens_per_device` must be positive, got {self.tokens_per_device}.")
