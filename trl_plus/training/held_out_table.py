"""The table of held-out figures before and after training."""

from collections.abc import Mapping

from rich.table import Table

from trl_plus.evaluation.intervals import wilson_interval

ACCURACY, MARGIN, LOSS = "eval_rewards/accuracies", "eval_rewards/margins", "eval_loss"


def held_out_table(
    before: Mapping[str, float] | None, after: Mapping[str, float], rows: int | None, has_reference: bool
) -> Table:
    """Held-out reward accuracy with its interval, mean margin and loss.

    Args:
        before: metrics before training; None if they are not known (a resumed run).
        rows: number of held-out rows; None if they cannot be counted, and then there is no interval.
        has_reference: rewards are log-ratios to a reference, all 0 before training.
    """
    table = Table(title="Held-out rows" if rows is None else f"Held-out rows: {rows}", title_justify="left")
    table.add_column("metric")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    names = {"reward accuracy [95% interval]": ACCURACY, "mean reward margin": MARGIN, "loss": LOSS}
    for title, metric in names.items():
        if metric in after:
            table.add_row(title, _cell(before, metric, rows), _cell(after, metric, rows))
    if has_reference and before is not None and before.get(MARGIN, 0) == 0:
        ties = ", so all pairs are ties" if ACCURACY in after else ""
        table.caption = f"Before training the policy is its own reference: all rewards are 0{ties}."
        table.caption_justify = "left"
    return table


def all_ties(metrics: Mapping[str, float]) -> bool:
    """True if no pair is won and the mean margin is 0: all rewards are alike, and their accuracy is no figure."""
    return metrics.get(ACCURACY) == 0 and metrics.get(MARGIN) == 0


def _cell(metrics: Mapping[str, float] | None, metric: str, rows: int | None) -> str:
    if metrics is None or metric not in metrics:
        return "-"
    value = metrics[metric]
    if metric != ACCURACY:
        return f"{value:.4f}"
    if all_ties(metrics):
        return "all ties"
    if rows is None:
        return f"{value:.3f}"
    if rows == 1:
        return f"{value:.3f} (one row is no figure)"
    low, high = wilson_interval(value, rows)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
