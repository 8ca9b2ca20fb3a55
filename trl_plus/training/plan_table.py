"""How a dry run is shown."""

from rich.table import Table
from rich.text import Text

from trl_plus.recipes.yaml_text import inline
from trl_plus.setup.dry_run import Plan
from trl_plus.ui.console import say


def show_plan(plan: Plan) -> None:
    """Print the values with their origins, the size of the run, and what was not checked."""
    recipe, args = plan.objects.recipe, plan.objects.args
    table = Table("key", "value", "origin", title=f"method: {recipe.method.name} ({recipe.method.summary})")
    table.title_justify = "left"
    for name, value in recipe.values.items():
        table.add_row(name, Text(inline(value)), recipe.origin(name))
    say(table)
    say(
        f"Effective batch size: {plan.effective_batch} = {args.per_device_train_batch_size} per device * "
        f"{args.gradient_accumulation_steps} accumulation steps * {plan.processes} processes."
    )
    if plan.engine is not None:
        say(f"Processes: {plan.processes}, engine: {plan.engine}.")
    if plan.data is not None:
        held_out = "none" if plan.data.eval is None else f"{len(plan.data.eval)} rows"
        say(f"Data: {plan.data.format}; {len(plan.data.train)} rows to train on, held out: {held_out}.")
        for note in (*plan.data.notes, *plan.size_notes):
            say(note)
    if plan.steps is not None:
        say(f"Optimizer steps: {plan.steps}.")
    for note in recipe.notes[plan.notes_shown :]:
        say(note)
    for sentence in plan.unchecked:
        say(f"Not checked: {sentence}.")
    say("The recipe is valid.")
