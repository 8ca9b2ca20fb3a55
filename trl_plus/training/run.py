"""A training run: from a validated recipe to a trained, evaluated and saved model."""

import os
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from trl_plus.comparison.prompts import (
    Prompt,
    generate,
    generations_table,
    held_out_prompts,
    prompt_text,
    with_run_arguments,
)
from trl_plus.data.digests import held_out_digest
from trl_plus.data.loading import Data, load
from trl_plus.data.refusals import unchecked
from trl_plus.errors import DataFound, RecipeError
from trl_plus.evaluation.intervals import held_out_table
from trl_plus.launch.request import LaunchRequest, check_started, is_main_process
from trl_plus.recipes.recipe import Recipe, write_resolved
from trl_plus.runs.checkpoint_files import find, step_of
from trl_plus.runs.folder import LOG, PREFLIGHT, claimed, holds_run, refuse_moved, set_aside
from trl_plus.runs.journal import COMMAND, Journal, Report, Sample
from trl_plus.runs.resume import check_same_run, find_checkpoint, resumed_folder, with_presets_of_run
from trl_plus.runs.weights import changed_base, fingerprint
from trl_plus.setup.objects import RunObjects, build
from trl_plus.setup.plan import effective_batch, size_notes
from trl_plus.setup.trainer import build_trainer, card_of, check_data, load_processor, refuse_settings
from trl_plus.training.sharing import Shared, rows_key
from trl_plus.ui.environment import devices, versions

Say = Callable[[Any], None]


def run(
    recipe: Recipe,
    resume: str | None,
    say: Say,
    request: LaunchRequest | None = None,
    force: bool = False,
    preflight: bool = False,
    shared: Shared | None = None,
    until: int | None = None,
) -> Report:
    """Train a recipe. The folder `output_dir` then holds the adapter or model with its tokenizer,
    recipe.resolved.yaml, metrics.json, metrics.jsonl, journal.jsonl and, of a fresh run, preflight.json.

    Args:
        resume: a checkpoint folder, "newest" for the last one in `output_dir`, or None to start afresh.
        say: prints a sentence or a table; called on the main process only.
        request: the processes and engine that the run must have.
        force: resume also if the changed recipe makes it another run.
        preflight: look at a sample of the rows first. A resumed run does not: it began with these rows.
        shared: takes rows from runs before it in this process, and keeps them for those after it.
        until: stop after this optimizer step with a checkpoint, as a signal would; Stopped is raised.

    Raises:
        DataFound: preflight found errors in the sample.
        RecipeError, DataError: the run is refused, before the first step.
        KeyboardInterrupt: SIGTERM or Ctrl-C; Stopped, a subclass, if a checkpoint or the trained model was saved.
    """
    if not is_main_process():
        say = _print_nothing
    if resume is not None:
        resumed_folder(resume, recipe["output_dir"])  # before the lock makes it
    folder = Path(recipe["output_dir"]).expanduser()
    with claimed(folder, say) if is_main_process() else nullcontext():
        return Run(recipe, resume, say, request, force, preflight, shared, until).execute()


def _print_nothing(text: Any) -> None:
    pass


class Run:
    """One training run. `execute` names its parts in their order.

    Attributes:
        given: the recipe as it was given; of a resumed run with the presets that it began with.
        recipe: the same with what this machine decided; known once the run is accepted.
        checkpoint: the folder that the run resumes from; None for a fresh run.
        objects: configurations, data request and options.
        made: tokenized rows by dataset, shared with the runs before and after.
        looked: the preflight of a sample of the rows; None if there was none.
        journal: what is printed also goes to journal.jsonl.
        report: the content of metrics.json.
        prompts: held-out prompts that are answered before and after training; empty on all but the main process.
    """

    objects: RunObjects
    recipe: Recipe
    data: Data
    processor: Any
    made: dict[str, Any]
    looked: Any
    folder: Path
    journal: Journal
    report: Report
    trainer: Any
    prompts: list[Prompt]

    def __init__(
        self,
        given: Recipe,
        resume: str | None,
        say: Say,
        request: LaunchRequest | None,
        force: bool,
        preflight: bool,
        shared: Shared | None = None,
        until: int | None = None,
    ) -> None:
        self.say, self.request, self.force, self.preflight = say, request, force, preflight
        self.shared, self.until = shared or Shared(), until
        self.main, self.checkpoint = is_main_process(), None
        if resume is not None:
            self.checkpoint = find_checkpoint(resume, given["output_dir"], given["max_steps"], say)
            given, before = with_presets_of_run(given, self.checkpoint), given
            for note in given.notes[len(before.notes) :]:
                say(note)
        self.given = given

    def execute(self) -> Report:
        """Run everything; returns the content of metrics.json."""
        self.accept()
        # the libraries are loaded by now
        from trl_plus.training.callbacks import StopOnSignal, end_trackers, told_to_trackers

        with self.journal.kept():
            self.announce()
            with (
                told_to_trackers(self.objects.args, self.folder, self.journal.began()),
                StopOnSignal(str(self.folder), self.say, self.until) as stop,
            ):
                self.load_model(stop)
                self.take_folder()
                self.prepare_report()
                self.train()
                self.save_report()
                stop.done(self.interrupted("its evaluation" if self.data.eval is not None else None))
                self.evaluate()
                end_trackers(self.trainer)
                self.save_report()
                if self.main:
                    self.say(f"Saved to {self.folder}.")
                stop.done(self.interrupted("its upload to the hub" if self.objects.args.push_to_hub else None))
                self.finish()
        return self.report

    # -- before the weights are loaded --------------------------------------------------------------------------------

    def accept(self) -> None:
        """Read data and tokenizer, and refuse what can be refused before weights are loaded."""
        self.objects = build(self.given, engine=True)
        self.recipe, self.folder = self.objects.recipe, Path(self.objects.args.output_dir)
        refuse_settings(self.objects)
        if self.checkpoint is not None:
            check_same_run(self.recipe, self.checkpoint, self.force, self.say)
        key = rows_key(self.recipe, self.objects.data)
        self.data = self.shared.once(key, "data", lambda: load(self.objects.data))
        self.made = self.shared.once(key, "tokenized", dict)
        self.processor = load_processor(self.objects)
        check_data(self.objects, self.data, self.processor)
        self.looked = None
        if self.checkpoint is None:
            refuse_moved(self.recipe, self.folder)
            if self.preflight:
                self.looked = self.shared.once(key, "look", lambda: look(self.objects, self.processor, self.say))
        self.journal = Journal(self.folder, self.main, self.say)
        self.say = self.journal.say
        self.report = Report(self.recipe.method.name, self.recipe["model_name_or_path"], self.objects.data.label)

    def announce(self) -> None:
        """Begin the journal and print the notes on the recipe, the data and the size of the run."""
        if not self.main:
            return
        fresh, args = self.checkpoint is None, self.objects.args
        self.journal.begin(
            fresh,
            hold=fresh and holds_run(self.folder),
            command=os.environ.get(COMMAND),
            folder=os.getcwd(),
            resumed_from=self.checkpoint,
            processes=int(os.environ.get("WORLD_SIZE", "1")),
            versions=versions(),
            devices=devices(),
            notes=list(self.given.notes),  # they are printed already
        )
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        new = list(self.recipe.notes[len(self.given.notes) :])
        if args.world_size > 1:
            new.append(effective_batch(args, args.world_size))
        for note in (*new, *self.data.notes, *size_notes(self.objects, self.data, batch)):
            self.say(note)
        if self.checkpoint is not None:
            self.say(f"Resuming from {self.checkpoint}.")

    # -- before the first step ----------------------------------------------------------------------------------------

    def load_model(self, stop: Any) -> None:
        """Load the model into its trainer, with our callbacks; `stop` is the last of them."""
        from trl_plus.trainers.rows import sharing
        from trl_plus.trainers.watch import LearningWatch
        from trl_plus.training.callbacks import (
            AlreadyFinished,
            FirstEvaluation,
            JournalSteps,
            LogLastStep,
            MetricsFile,
            best_model_callbacks,
            use_short_progress,
        )

        self.objects.args.eval_on_start = self.data.eval is not None and self.checkpoint is None
        callbacks = [
            MetricsFile(self.folder / LOG),
            JournalSteps(self.journal),
            FirstEvaluation(self.keep_before),
            *best_model_callbacks(self.objects.options),
            LogLastStep(),
            AlreadyFinished(self.say),
            LearningWatch(self.journal.warn),
            stop,
        ]
        with unchecked() if self.looked is None else nullcontext(), sharing(self.made):
            self.trainer = build_trainer(self.objects, self.data, self.processor, callbacks)
        self.trainer.card = card_of(self.objects)
        use_short_progress(self.trainer)
        self.report.model_fingerprint = fingerprint(Path(self.objects.model.model_name_or_path))
        held_out = self.trainer.eval_dataset
        if held_out is not None:
            self.report.held_out_digest = held_out_digest(self.data.eval)
            self.report.held_out_rows = len(held_out) if hasattr(held_out, "__len__") else None
        check_started(self.request, self.trainer.accelerator)

    def take_folder(self) -> None:
        """Make the folder this run's. All that can refuse the run comes first: an earlier one must stay resumable."""
        if not self.main:
            return
        fresh = self.checkpoint is None
        earlier = set_aside(self.folder, full=not self.recipe["use_peft"]) if fresh else None
        self.journal.take_over()
        write_resolved(self.recipe, self.folder)
        if fresh:
            keep_preflight(self.looked, self.folder)
        if earlier is not None:
            self.say(f"Moved the earlier run in {self.folder} to {earlier}.")

    def prepare_report(self) -> None:
        """Take over what a resumed run has measured, or answer the held-out prompts for the first time."""
        from trl_plus.training.callbacks import go_on_with_tensorboard

        self.prompts = self.sample_prompts()
        if self.checkpoint is None:
            answers = self.answers() if self.prompts else []
            texts = map(prompt_text, self.prompts)
            self.report.generations = [Sample(*both) for both in zip(texts, answers, strict=True)]
            return
        if self.main:
            go_on_with_tensorboard(self.trainer.callback_handler.callbacks, self.checkpoint)
            changed = changed_base(Path(self.checkpoint), self.objects.model.model_name_or_path)
            if changed is not None:
                self.journal.warn(changed)
        self.report.recall(self.folder)
        if self.force or Path(self.checkpoint).resolve().parent != self.folder.resolve():
            self.report.forget_after()

    def sample_prompts(self) -> list[Prompt]:
        """The held-out prompts to answer, on the main process; none if one process cannot generate alone."""
        sharded = self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled
        count = self.objects.options.report_generations
        if self.data.eval is None or sharded or not self.main or not count:
            return []
        prompts = held_out_prompts(self.data.eval, count)
        return with_run_arguments(prompts, self.objects.args.chat_template_kwargs)

    def answers(self) -> list[str]:
        """The model's answers to the prompts."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return generate(model, self.processor, self.prompts)

    def keep_before(self, metrics: dict[str, float]) -> None:
        """Keep the held-out metrics before the first step."""
        self.report.before = metrics
        self.report.save(self.folder)

    # -- training and after -------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train and save the model. The training metrics of a run that was resumed at its end stay."""
        from trl_plus.training.callbacks import how_it_ended, step_of_weights

        trainer, report = self.trainer, self.report
        metrics = dict(trainer.train(resume_from_checkpoint=self.checkpoint).metrics)
        last = trainer.state.global_step
        if last == 0:
            raise RecipeError(
                f"{self.recipe.label}: no step was made: check num_train_epochs, max_steps and the batch size."
            )
        went_on, step = step_of(Path(self.checkpoint or "")) != last, step_of_weights(trainer)
        if report.train is None or went_on:
            report.train = metrics
        if went_on or report.step != step:
            report.forget_after()
        report.step = step
        for sentence in how_it_ended(trainer):
            self.say(sentence)
        trainer.save_model()

    def save_report(self) -> None:
        """Write metrics.json."""
        if self.main:
            self.report.save(self.folder)

    def interrupted(self, missing: str | None) -> str:
        """The message of a run that is interrupted once its model is saved; `missing` is the part it lacks then."""
        done = f"Interrupted after training: the model is saved in {self.folder}"
        if missing is None:
            return f"{done}."
        newest = find(self.folder).newest
        if newest is not None and step_of(newest) == self.trainer.state.global_step:
            return f"{done}, but {missing} is missing: the same command with --resume makes up for it."
        upload = ["hf", "upload", self.objects.args.hub_model_id or "NAME"]
        command = shlex.join([*(upload if "hub" in missing else ["trl-plus", "evaluate"]), str(self.folder)])
        return f"{done}, but {missing} is missing: `{command}` makes up for it."

    def evaluate(self) -> None:
        """Measure held-out metrics and answers after training, and print both tables. Known ones are not measured."""
        trainer, report = self.trainer, self.report
        if trainer.eval_dataset is None:
            return
        known = self.is_measured()
        after = (report.after or {}) if known else dict(trainer.evaluate())
        report.after = after
        if known:
            self.say("Its held-out figures are those of metrics.json.")
            trainer.state.log_history.append({**after, "step": trainer.state.global_step})  # for the card
        if self.main:
            self.say(held_out_table(report.before, after, report.held_out_rows, self.recipe.method.reference))
        if self.prompts:
            if not known:
                report.add_answers([prompt_text(prompt) for prompt in self.prompts], self.answers())
            self.say(generations_table(report.generations))

    def is_measured(self) -> bool:
        """True if figures and answers after training are known: the same on all processes."""
        from accelerate.utils import broadcast_object_list

        answered = [sample.prompt for sample in self.report.generations if sample.after is not None]
        known = self.report.after is not None and answered == [prompt_text(prompt) for prompt in self.prompts]
        return bool(broadcast_object_list([known])[0])

    def finish(self) -> None:
        """Write the model card with the metrics after training, upload, and end the process group."""
        trainer = self.trainer
        trainer.create_model_card()
        if self.objects.args.push_to_hub:
            trainer.push_to_hub()
        trainer.accelerator.wait_for_everyone()  # a process group must not go while another rank still works
        if hasattr(trainer, "end"):  # transformers 5.18 and later: ends trackers and the process group
            trainer.end()


# -- the look at a sample of the rows before the model is loaded ----------------------------------------------------


ROWS = 200
NAMED = 3  # warnings that `train` names


def look(objects: RunObjects, processor: Any, say: Callable[[Any], None]) -> Any:
    """Run preflight on a sample of the rows, return its result, and print the number of warnings.

    Raises:
        DataFound: there are errors. Warnings stop nothing.
    """
    from trl_plus.preflight.findings import Severity
    from trl_plus.preflight.run import Extent, preflight
    from trl_plus.preflight.source import open_run

    result = preflight(open_run(objects, processor), Extent(rows=ROWS, near=False, previews=0))
    errors = [finding for finding in result.findings if finding.severity is Severity.ERROR]
    looked = ", ".join(f"{split.checked} {split.name}" for split in result.splits)
    command = objects.recipe.command("preflight")
    if errors:
        kinds = f"{len(errors)} kind{'s' if len(errors) > 1 else ''} of errors"
        raise DataFound(
            "\n".join(
                [
                    f"preflight found {kinds} in the data ({looked} rows looked at):",
                    *(f"- {found.code} {found.split}: {found.sentence}{_rows(found)} {found.cure}" for found in errors),
                    f"See all of it with `{command}`, or train all the same with --no-preflight.",
                ]
            )
        )
    warnings = sorted((found for found in result.findings if found.severity is Severity.WARNING), key=_weight)
    plain = next((found for found in warnings if found.code == "D413" and found.split == "train"), None)
    if plain is not None:
        say(f"Preflight: D413 {plain.sentence}{_rows(plain)} {plain.cure}")
    if warnings:
        codes = len({found.code for found in warnings})
        kinds = f"{codes} warning{'s' if codes > 1 else ''}"
        say(f"Preflight: no errors and {kinds} in {looked} rows: {_named(warnings)}. `{command}` shows them.")
    else:
        say(f"Preflight: no errors and no warnings in {looked} rows.")
    return result


def keep_preflight(result: Any | None, folder: Path) -> None:
    """Write what preflight found into the folder of its run; None if it was left out."""
    from trl_plus.preflight.as_json import json_text

    if result is None:
        return
    path = folder / PREFLIGHT
    part = path.with_name(f"{PREFLIGHT}.part")
    part.write_text(json_text(result) + "\n", encoding="utf-8")
    part.replace(path)


def _weight(found: Any) -> tuple[bool, bool, float]:
    """The order of warnings: training rows first, then what is true of the whole split, then by the share of rows."""
    return found.split != "train", found.count > 0, -found.share


def _named(warnings: list[Any]) -> str:
    """The first codes, each once, with their splits and title."""
    splits: dict[tuple[str, str], list[str]] = {}
    for found in warnings:
        splits.setdefault((found.code, found.title), []).append(found.split)
    named = [f"{code} {', '.join(where)}: {title}" for (code, title), where in splits.items()]
    return "; ".join(named[:NAMED]) + (f"; and {len(named) - NAMED} more" if len(named) > NAMED else "")


def _rows(found: Any) -> str:
    rows = ", ".join(str(example.row) for example in found.examples)
    more = ", ..." if found.count > len(found.examples) else ""
    return f" Row{'s' if found.count > 1 else ''} {rows}{more}." if rows else ""
