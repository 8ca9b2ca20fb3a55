"""What libraries print per batch, kept from the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_maps() -> Iterator[None]:
    """Without the progress bars of the datasets library and the warnings of TRL's tokenization: they come per batch."""
    import logging

    import datasets

    shown = datasets.is_progress_bar_enabled()
    loggers = {name: logging.getLogger(name) for name in ("trl", "trl_plus", "transformers")}
    levels = {name: logger.level for name, logger in loggers.items()}
    datasets.disable_progress_bars()
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
