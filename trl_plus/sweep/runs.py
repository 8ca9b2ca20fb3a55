"""One run of a sweep: trained, resumed or left as it is, and its held-out pairs scored."""

import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_plus.errors import DataError, DataFound, RecipeError, RunFault, first_line
from trl_plus.recipes.recipe import RESOLVED, Recipe, load_recipe
from trl_plus.runs import checkpoint_files
from trl_plus.runs.folder import SCORES
from trl_plus.runs.journal import COMMAND, FINISHED, JOURNAL
from trl_plus.runs.resume import NEWEST, changes
from trl_plus.runs.weights import fingerprint, identify, weights_in
from trl_plus.training.sharing import Shared, rows_key

Say = Callable[[Any], None]


@dataclass(frozen=True)
class Job:
    """A run to make.

    Attributes:
        argument, words: the recipe as `trl-plus train` takes it.
        until: stop after this optimizer step; None for the whole run.
    """

    argument: str
    words: list[str]
    until: int | None = None

    def recipe(self) -> Recipe:
        """The recipe, read again."""
        return load_recipe(self.argument, self.words)


def scores_path(folder: Path, until: int | None) -> Path:
    """The file of a run's scores, after its last step or at one where it stops."""
    return folder / SCORES if until is None else folder / SCORES.replace(".json", f"-{until}.json")


def is_done(folder: Path, until: int | None) -> bool:
    """True if a run has made its steps and its scores are those of its weights."""
    from trl_plus.evaluation.held_out_scores import read_scores

    kept = read_scores(scores_path(folder, until))
    if kept is None or until is not None:
        return kept is not None
    return is_finished(folder) and kept.weights_of.fingerprint == fingerprint(folder)


def is_finished(folder: Path) -> bool:
    """True if the journal of a run ends with its success, and its weights are there."""
    try:
        last = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()[-1]
        event = json.loads(last)
    except (OSError, ValueError, IndexError):
        return False
    return event.get("event") == "end" and event.get("outcome") == FINISHED and weights_in(folder) is not None


def refuse_other_run(recipe: Recipe, folder: Path) -> None:
    """Refuse a folder that holds a run of another recipe.

    Raises:
        RecipeError: that is so.
    """
    from trl_plus.setup.objects import build

    if not (folder / RESOLVED).is_file():
        return
    refused = changes(load_recipe(str(folder / RESOLVED)), build(recipe).recipe, 1, 1)[1]
    if refused:
        raise RecipeError(
            f"{folder} holds a run of another recipe ({'; '.join(refused)}): name another folder with --out, or move "
            "it away."
        )


def make(job: Job, shared: Shared, say: Say) -> str | None:
    """Train a run as far as it is to go and score it; None, or why it failed in one sentence.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C.
    """
    from trl_plus.evaluation.models import free
    from trl_plus.setup.machine_errors import explained

    recipe = job.recipe()
    folder = Path(recipe["output_dir"]).expanduser()
    try:
        if is_done(folder, job.until):
            return None
        with explained(recipe):
            train(job, recipe, shared, say)
            score(recipe, job.until, shared)
    except (RecipeError, DataError, DataFound, RunFault) as error:
        return str(error)
    except Exception as error:  # a fault of this run must not take the others with it
        traceback.print_exc(file=sys.stderr)
        return f"{type(error).__name__}: {first_line(error)}"
    finally:
        free()
    return None


def train(job: Job, recipe: Recipe, shared: Shared, say: Say) -> None:
    """Train a run, from its newest checkpoint if there is one."""
    from transformers import set_seed

    from trl_plus.training.callbacks import Paused
    from trl_plus.training.run import run

    folder = Path(recipe["output_dir"]).expanduser()
    newest = checkpoint_files.find(folder).newest if folder.is_dir() else None
    reached = -1 if newest is None else checkpoint_files.step_of(newest)
    if is_finished(folder) or (job.until is not None and reached >= job.until):
        return
    set_seed(recipe["seed"])  # whatever ran before in this process
    os.environ[COMMAND] = shlex.join(["trl-plus", "train", job.argument, *job.words])
    try:
        run(recipe, None if newest is None else NEWEST, say, preflight=True, shared=shared, until=job.until)
    except Paused:
        pass
    finally:
        os.environ.pop(COMMAND, None)


def score(recipe: Recipe, until: int | None, shared: Shared) -> None:
    """Score the held-out pairs under the weights of a run, and write them into its folder."""
    from trl_plus.evaluation.held_out_scores import pair_scores, write_scores
    from trl_plus.evaluation.measures import BASE, TUNED
    from trl_plus.evaluation.run import score_models
    from trl_plus.runs.weights import open_run
    from trl_plus.setup.objects import build

    folder = Path(recipe["output_dir"]).expanduser()
    place = folder if until is None else folder / f"checkpoint-{until}"
    weights = open_run(str(place))[1]
    objects = build(recipe)
    held_out = held_out_of(objects, shared)
    bases = shared.once(rows_key(objects.recipe, objects.data), "base scores", dict)
    scores = score_models(objects, weights, held_out, lambda *done: None, bases.get(BASE))
    bases[BASE] = scores[BASE]
    write_scores(pair_scores(held_out, scores[TUNED], identify(weights)), scores_path(folder, until))


def held_out_of(objects: Any, shared: Shared) -> Any:
    """The held-out rows of a recipe, made once for all recipes with the same rows.

    Raises:
        DataError: nothing is held out, or there are no pairs to compare.
    """
    from trl_plus.evaluation.rows import held_out_rows
    from trl_plus.setup.trainer import load_processor

    found = shared.once(
        rows_key(objects.recipe, objects.data),
        "held out",
        lambda: held_out_rows(objects, load_processor(objects), None, None),
    )
    if not len(found.pairs):
        raise DataError(
            f"No held-out prompt of {objects.data.label} has both a desirable and an undesirable row, so there are no "
            "pairs to compare runs on: name held-out rows that have, with eval_dataset_name=NAME."
        )
    return found
