"""Silence of the libraries a run loads: what they print that its user can do nothing about."""

import logging
import os
import sys
import warnings


def quiet_libraries() -> None:
    """Call before transformers and TRL are imported. Errors stay visible, and so do warnings of trl_plus."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # nothing is reported: `datasets` counts every load of a local file at a server, the hub client tells its versions
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # on every import without the package `kernels`, which is only an optional speed-up
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_deepspeed)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    # `merge` unties them where an adapter needs it
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning)
    # transformers asks for pinned memory by default, also where there is no accelerator to copy it to
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true", category=UserWarning)


def _deepspeed(record: logging.LogRecord) -> bool:
    """Move DeepSpeed's log from stdout, which holds results, to stderr; drop its line about a machine without a GPU."""
    for handler in logging.getLogger(record.name).handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    return not record.getMessage().startswith("Setting accelerator to CPU")
