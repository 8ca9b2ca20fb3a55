"""Where an evaluation goes: the terminal, or JSON on standard output."""

from trl_plus.evaluation.run import Evaluation
from trl_plus.reporting.console import say


def show_evaluation(evaluation: Evaluation, as_json: bool) -> None:
    """Print an evaluation, as tables or as JSON and nothing else."""
    if as_json:
        from trl_plus.reporting.evaluation_json import json_text

        print(json_text(evaluation))
        return
    from trl_plus.reporting.evaluation_table import evaluation_report

    for part in evaluation_report(evaluation):
        say(part)
