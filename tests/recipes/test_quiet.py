"""Output of libraries that a user can do nothing about."""

import logging
import sys

from trl_plus.upstream.libraries import quiet_libraries


def test_deepspeed_logs_to_stderr_and_not_about_a_missing_gpu(capsys):
    """`--json` promises one object on stdout, and importing DeepSpeed logs to stdout."""
    logger = logging.getLogger("DeepSpeed")
    before = logger.handlers[:], logger.filters[:], logger.propagate
    logger.handlers, logger.propagate = [logging.StreamHandler(sys.stdout)], False
    try:
        quiet_libraries()
        logger.warning("Setting accelerator to CPU. If you have GPU ...")
        logger.warning("The disk is slow.")
    finally:
        logger.handlers, logger.filters, logger.propagate = before
    out, err = capsys.readouterr()
    assert (out, err) == ("", "The disk is slow.\n")
