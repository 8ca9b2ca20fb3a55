"""One recipe, from validated values to a trained, evaluated and saved model."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from trl_plus.comparison.prompts import Prompt, held_out_prompts
from trl_plus.comparison.samples import generate, generations_table, prompt_text
from trl_plus.data.digests import held_out_digest
from trl_plus.data.loading import Data, load
from trl_plus.errors import RecipeError
from trl_plus.launch.decision import is_main_process
from trl_plus.launch.request import Asked, check_started
from trl_plus.recipes.recipe import Recipe, write_resolved
from trl_plus.runs.checkpoint_files import find, step_of
from trl_plus.runs.journal import COMMAND, Journal
from trl_plus.runs.lock import claimed
from trl_plus.runs.metrics import Report, Sample
from trl_plus.runs.previous import holds_run, refuse_moved, set_aside
from trl_plus.runs.resume_point import find_checkpoint, resumed_folder
from trl_plus.runs.same_recipe import check_same_run, with_presets_of_run
from trl_plus.runs.trackers import end_trackers, go_on_with_tensorboard, told_to_trackers
from trl_plus.setup.objects import RunObjects, build
from trl_plus.setup.sizes import size_notes
from trl_plus.setup.trainer import build_trainer, check_data, load_processor, refuse_settings
from trl_plus.training.first_look import keep_preflight, look
from trl_plus.training.held_out_table import held_out_table
from trl_plus.ui.devices import devices
from trl_plus.ui.versions import versions

Say = Callable[[Any], None]


def run(
    recipe: Recipe,
    resume: str | None,
    say: Say,
    asked: Asked | None = None,
    force: bool = False,
    preflight: bool = False,
) -> Report:
    """Train a recipe. The folder `output_dir` then holds the adapter or model with its tokenizer,
    recipe.resolved.yaml, metrics.json, metrics.jsonl, journal.jsonl and, of a fresh run, preflight.json.

    Args:
        resume: a checkpoint folder, "newest" for the last one in `output_dir`, or None to start afresh.
        say: prints a sentence or a table; called on the main process only.
        asked: the processes and engine that the run must have.
        force: resume also where the changed recipe makes it another run.
        preflight: look at a sample of the rows first. A resumed run does not: it began with these rows.

    Raises:
        DataFound: preflight found errors in the sample.
        RecipeError, DataError: the run is refused, before the first step.
        KeyboardInterrupt: SIGTERM or Ctrl-C; Stopped, a subclass, if a checkpoint or the trained model was saved.
    """
    if not is_main_process():
        say = _nothing
    if resume is not None:
        resumed_folder(resume, recipe["output_dir"])  # before the claim makes it
    folder = Path(recipe["output_dir"]).expanduser()
    with claimed(folder, say) if is_main_process() else nullcontext():
        return _run(recipe, resume, say, asked, force, preflight)


def _run(recipe: Recipe, resume: str | None, say: Say, asked: Asked | None, force: bool, preflight: bool) -> Report:
    """The run from the reading of its data on."""
    checkpoint = None
    if resume is not None:
        checkpoint = find_checkpoint(resume, recipe["output_dir"], recipe["max_steps"], say)
        if checkpoint is not None:
            recipe, before = with_presets_of_run(recipe, checkpoint), recipe
            for note in recipe.notes[len(before.notes) :]:
                say(note)
    objects = build(recipe, engine=True)
    refuse_settings(objects)
    if checkpoint is not None:
        check_same_run(objects.recipe, checkpoint, force, say)
    data, processor, looked = _checked(objects, checkpoint, preflight, say)
    folder = Path(objects.args.output_dir)
    journal = Journal(folder, is_main_process(), say)
    report = Report(recipe.method.name, recipe["model_name_or_path"], objects.data.label)
    with journal.kept():
        if is_main_process():
            fresh = checkpoint is None
            journal.begin(fresh, fresh and holds_run(folder), **_circumstances(objects, recipe, checkpoint))
            _announce(objects, data, recipe, checkpoint, journal.say)
        with told_to_trackers(objects.args, folder, journal.began()):
            return _train(objects, data, processor, report, journal, asked, checkpoint, looked, force)


def _train(
    objects: RunObjects,
    data: Data,
    processor: Any,
    report: Report,
    journal: Journal,
    asked: Asked | None,
    checkpoint: str | None,
    looked: Any,
    force: bool,
) -> Report:
    """The run from the loading of the weights on."""
    from trl_plus.training.stopping import StopOnSignal

    folder, recipe, say = Path(objects.args.output_dir), objects.recipe, journal.say
    objects.args.eval_on_start = data.eval is not None and checkpoint is None
    with StopOnSignal(str(folder), say) as stop:
        trainer = _trainer(objects, data, processor, report, stop, journal)
        check_started(asked, trainer.accelerator)
        if is_main_process():
            _take_over(folder, recipe, checkpoint, looked, journal)
        prompts = _sample_prompts(objects, data, trainer)
        if checkpoint is not None:
            if is_main_process():
                go_on_with_tensorboard(trainer.callback_handler.callbacks, checkpoint)
            report.recall(folder)
            if force or Path(checkpoint).resolve().parent != folder.resolve():
                report.forget_after()
        elif prompts:
            report.generations = _samples(prompts, _answers(trainer, processor, prompts))

        _fit(trainer, recipe, report, checkpoint, say)
        if is_main_process():
            report.save(folder)
        stop.done(_left(objects, trainer, "its evaluation" if data.eval is not None else None))
        _evaluate(trainer, processor, prompts, report, recipe, say)
        end_trackers(trainer)
        if is_main_process():
            report.save(folder)
            say(f"Saved to {folder}.")
        stop.done(_left(objects, trainer, "its upload to the hub" if objects.args.push_to_hub else None))
        _finish(trainer, objects)
    return report


def _fit(trainer: Any, recipe: Recipe, report: Report, checkpoint: str | None, say: Say) -> None:
    """Train and save the model. Of a run that was resumed at its end, the metrics of its training stay."""
    from trl_plus.training.early_stopping import how_it_ended, step_of_weights

    metrics = dict(trainer.train(resume_from_checkpoint=checkpoint).metrics)
    _check_steps(trainer, recipe)
    went_on, step = step_of(Path(checkpoint or "")) != trainer.state.global_step, step_of_weights(trainer)
    if report.train is None or went_on:
        report.train = metrics
    if went_on or report.step != step:
        report.forget_after()
    report.step = step
    for sentence in how_it_ended(trainer):
        say(sentence)
    trainer.save_model()


def _left(objects: RunObjects, trainer: Any, missing: str | None) -> str:
    """What an interrupted run says once its model is saved."""
    folder = Path(objects.args.output_dir)
    done = f"Interrupted after training: the model is saved in {folder}"
    if missing is None:
        return f"{done}."
    newest = find(folder).newest
    if newest is not None and step_of(newest) == trainer.state.global_step:
        return f"{done}, but {missing} is missing: the same command with --resume makes up for it."
    upload = "hub" in missing
    cure = f"`hf upload {objects.args.hub_model_id or 'NAME'} {folder}`" if upload else f"`trl-plus evaluate {folder}`"
    return f"{done}, but {missing} is missing: {cure} makes up for it."


def _circumstances(objects: RunObjects, recipe: Recipe, checkpoint: str | None) -> dict[str, Any]:
    """What the journal keeps of how a run was started."""
    return {
        "command": os.environ.get(COMMAND),
        "folder": os.getcwd(),
        "resumed_from": checkpoint,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": versions(),
        "devices": devices(),
        "notes": list(recipe.notes),  # those that were said before the run
    }


def _checked(objects: RunObjects, checkpoint: str | None, preflight: bool, say: Say) -> tuple[Data, Any, Any]:
    """The rows, the tokenizer and what preflight found, after all that can be refused before weights are loaded."""
    data = load(objects.data)
    processor = load_processor(objects)
    check_data(objects, data, processor)
    if checkpoint is None:
        refuse_moved(objects.recipe, Path(objects.args.output_dir))
    looked = look(objects, processor, say) if preflight and checkpoint is None else None
    return data, processor, looked


def _trainer(objects: RunObjects, data: Data, processor: Any, report: Report, stop: Any, journal: Journal) -> Any:
    """The trainer with our callbacks; the report learns how many rows are held out."""
    from trl_plus.setup.card import card_of
    from trl_plus.trainers.watch import LearningWatch
    from trl_plus.training.callbacks import AlreadyFinished, use_short_progress
    from trl_plus.training.early_stopping import best_model_callbacks

    callbacks = [*_records(report, journal, Path(objects.args.output_dir)), *best_model_callbacks(objects.options)]
    callbacks += [AlreadyFinished(journal.say), LearningWatch(journal.warn), stop]
    trainer = build_trainer(objects, data, processor, callbacks)
    trainer.card = card_of(objects)
    use_short_progress(trainer)
    if trainer.eval_dataset is not None:
        report.held_out_digest = held_out_digest(data.eval)
        report.held_out_rows = len(trainer.eval_dataset) if hasattr(trainer.eval_dataset, "__len__") else None
    return trainer


def _records(report: Report, journal: Journal, folder: Path) -> list[Any]:
    """The callbacks that write down what happens."""
    from trl_plus.training.callbacks import FirstEvaluation, JournalSteps, MetricsFile

    def keep_before(metrics: dict[str, float]) -> None:
        report.before = metrics
        report.save(folder)

    return [MetricsFile(folder / "metrics.jsonl"), JournalSteps(journal), FirstEvaluation(keep_before)]


def _check_steps(trainer: Any, recipe: Recipe) -> None:
    if trainer.state.global_step == 0:
        raise RecipeError(f"{recipe.label}: no step was made: check num_train_epochs, max_steps and the batch size.")


def _nothing(text: Any) -> None:
    """Says nothing."""


def _take_over(folder: Path, recipe: Recipe, checkpoint: str | None, looked: Any, journal: Journal) -> None:
    """The folder becomes this run's. Not before all that can refuse it: an earlier run there must stay resumable."""
    earlier = set_aside(folder, full=not recipe["use_peft"]) if checkpoint is None else None
    journal.take_over()
    write_resolved(recipe, folder)
    if checkpoint is None:
        keep_preflight(looked, folder)
    if earlier is not None:
        journal.say(f"Moved the earlier run in {folder} to {earlier}.")


def _announce(objects: RunObjects, data: Data, recipe: Recipe, checkpoint: str | None, say: Say) -> None:
    args = objects.args
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    for note in (*objects.recipe.notes[len(recipe.notes) :], *data.notes, *size_notes(objects, data, batch)):
        say(note)
    if checkpoint is not None:
        say(f"Resuming from {checkpoint}.")


def _sample_prompts(objects: RunObjects, data: Data, trainer: Any) -> list[Prompt]:
    """The held-out prompts to answer, on the main process; none where one process cannot generate alone."""
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if data.eval is None or sharded or not is_main_process() or not objects.options.report_generations:
        return []
    return held_out_prompts(data.eval, objects.options.report_generations)


def _samples(prompts: list[Prompt], answers: list[str]) -> list[Sample]:
    return [Sample(prompt_text(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _answers(trainer: Any, processor: Any, prompts: list[Prompt]) -> list[str]:
    return generate(trainer.accelerator.unwrap_model(trainer.model), processor, prompts)


def _evaluate(trainer: Any, processor: Any, prompts: list[Prompt], report: Report, recipe: Recipe, say: Say) -> None:
    """Held-out metrics and answers after training, and both tables. Those that are known are not made again."""
    if trainer.eval_dataset is None:
        return
    texts = [prompt_text(prompt) for prompt in prompts]
    known = _known(report, texts)
    after = (report.after or {}) if known else dict(trainer.evaluate())
    report.after = after
    if known:
        say("Its held-out figures are those of metrics.json.")
        trainer.state.log_history.append({**after, "step": trainer.state.global_step})  # for the card
    if is_main_process():
        say(held_out_table(report.before, after, report.held_out_rows, recipe.method.reference))
    if prompts:
        if not known:
            report.add_answers(texts, _answers(trainer, processor, prompts))
        say(generations_table(report.generations))


def _known(report: Report, texts: list[str]) -> bool:
    """Whether the figures and answers after training are there already: the same on all processes."""
    from accelerate.utils import broadcast_object_list

    answered = [sample.prompt for sample in report.generations if sample.after is not None]
    return bool(broadcast_object_list([report.after is not None and answered == texts])[0])


def _finish(trainer: Any, objects: RunObjects) -> None:
    trainer.create_model_card()  # with the metrics after training
    if objects.args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # a process group must not go while another rank still works
    if hasattr(trainer, "end"):  # transformers 5.18 and later: ends trackers and the process group
        trainer.end()
