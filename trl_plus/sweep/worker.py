"""One run of a sweep in a process of its own: `python -m trl_plus.sweep.worker JOB`, for `--jobs`."""

import json
import sys

from trl_plus.launch.processes import INTERRUPTED, end_with_parent
from trl_plus.sweep.runs import Job, make
from trl_plus.training.sharing import Shared
from trl_plus.ui.console import say
from trl_plus.upstream.libraries import quiet_libraries

FAILED = "sweep: this run failed: "  # before the sentence, on the last line


def main() -> int:
    """Make the run that the argument names, a JSON object with the fields of `Job`."""
    end_with_parent()
    quiet_libraries()
    try:
        problem = make(Job(**json.loads(sys.argv[1])), Shared(), say)
    except KeyboardInterrupt:
        return INTERRUPTED
    if problem is None:
        return 0
    print(FAILED + " ".join(problem.split()), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
