"""TRL's configurations, imported after a check that the installed TRL and transformers fit.

The check of all seams imports the trainers. It is left to them (`check_fit`), unless a version was never tested.
"""

from functools import cache

from trl_plus.upstream.deferred import import_training_arguments
from trl_plus.upstream.signatures import check_seams, check_tested


@cache
def check_fit() -> None:
    """`check_seams`, once in a process."""
    check_seams()


if not check_tested():
    check_fit()
import_training_arguments()

from trl import DPOConfig as TRLDPOConfig  # noqa: E402
from trl import KTOConfig as TRLKTOConfig  # noqa: E402

__all__ = ["TRLDPOConfig", "TRLKTOConfig", "check_fit"]
