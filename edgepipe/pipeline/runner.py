"""Runs a pipeline: a step runs only if something that determines its result has changed since it was cached.

The flow is `run` below: for each step compute the cache key, then take the cached result or run the stage. `prepare`
comes before it and reads only what the run depends on.
"""

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgepipe.core import cost, interrupts, module_sources, references
from edgepipe.core.artifact import Artifact, json_digest, wrap_disk_full_errors
from edgepipe.core.cache import Cache, DamagedEntryError, StoredArtifact
from edgepipe.core.errors import InputError
from edgepipe.core.file_memo import MEMO_FILE, FileMemo, active_memo
from edgepipe.core.metric import Finding
from edgepipe.core.module_sources import SourceScan
from edgepipe.core.outcome import EpochRecord, Outcome
from edgepipe.core.progress import EpochRecorder, Progress
from edgepipe.models.startup import load_tensorflow
from edgepipe.pipeline.quality_gate import find_quality_problems, unjudged_notes
from edgepipe.pipeline.run_inputs import describe_definition
from edgepipe.pipeline.run_record import RunDefinition
from edgepipe.pipeline.schema import Pipeline, Step
from edgepipe.stages import registry
from edgepipe.stages.context import StageContext


@dataclass(frozen=True)
class StepResult:
    """The result of a step, and whether it came from the cache."""

    step: Step
    stored_artifact: StoredArtifact
    from_cache: bool
    notes: tuple[str, ...] = ()  # of this run only, such as a damaged cache entry
    findings: tuple[Finding, ...] = ()  # likewise, such as quality at chance


@dataclass
class Run:
    """A pipeline being run, and its results so far, in order."""

    pipeline: Pipeline
    cache: Cache
    progress: Progress
    started: datetime
    data_identity: dict[str, Any] | None = field(init=False)
    definition: RunDefinition = field(init=False)
    step_results: list[StepResult] = field(default_factory=list)
    shown_notes: set[str] = field(default_factory=set)
    _loaded_splits: dict[frozenset[Any], Any] = field(default_factory=dict)
    _task: Any = None
    _file_memo: FileMemo = field(init=False)
    _source_scan: SourceScan = field(default_factory=SourceScan)

    def __post_init__(self) -> None:
        self._file_memo = FileMemo(self.cache.root / MEMO_FILE)

    @contextmanager
    def file_look_up(self) -> Iterator[None]:
        """While the body computes keys, files that have not changed are not read again."""
        with self._file_memo, self._source_scan.active():
            yield

    def forget_sources(self) -> None:
        """Look up modules anew: time has passed in which they may have been edited."""
        self._source_scan = SourceScan()

    @property
    def earlier_artifacts(self) -> dict[str, Artifact]:
        """The artifacts of the steps so far, by step name."""
        return {step_result.step.name: step_result.stored_artifact.artifact for step_result in self.step_results}


def prepare(pipeline: Pipeline, cache: Cache, progress: Progress, command: tuple[str, ...] = ()) -> Run:
    """A run of `pipeline` that has not begun: the digests of what it reads are known.

    Args:
        pipeline: to run.
        cache: of results, and of the digests of files.
        progress: informed as stages run.
        command: the command line, for the report; empty for a run from Python.

    Raises:
        InputError: a file is missing.
    """
    pipeline_run = Run(pipeline, cache, progress, datetime.now(UTC))
    with pipeline_run.file_look_up():
        pipeline_run.data_identity = _data_identity(pipeline)
        pipeline_run.definition = describe_definition(pipeline, pipeline_run.data_identity, command)
    return pipeline_run


def run(pipeline_run: Run) -> None:
    """Run all steps of a prepared run; their results are then in it.

    Raises:
        EdgepipeError: bad input, a full disk, a missing tool. Finished steps stay in the cache, and the next run
            continues from there.
    """
    with pipeline_run.cache.shared_lock():
        previous_key = ""
        for number, step in enumerate(pipeline_run.pipeline.steps, 1):
            interrupts.check()
            with pipeline_run.file_look_up():
                previous_key = _cache_key(pipeline_run, step, previous_key)
            pipeline_run.step_results.append(_run_step(pipeline_run, step, previous_key, number))
    _judge_quality(pipeline_run)


def _judge_quality(pipeline_run: Run) -> None:
    """Add what is wrong with the quality of the last model to the result of the last step."""
    results = [(result.step, result.stored_artifact.entry.outcome) for result in pipeline_run.step_results]
    findings, notes = tuple(find_quality_problems(results)), unjudged_notes(results)
    if pipeline_run.pipeline.allow_chance:
        notes = (*notes, *(f"accepted by `allow_chance`: {finding}" for finding in findings))
        findings = ()
    last_result = pipeline_run.step_results[-1]
    pipeline_run.step_results[-1] = replace(
        last_result, notes=(*last_result.notes, *notes), findings=(*last_result.findings, *findings)
    )


def _run_step(pipeline_run: Run, step: Step, key: str, number: int) -> StepResult:
    step_count = len(pipeline_run.pipeline.steps)
    if step.stage.always_runs:
        pipeline_run.cache.discard(key)
    cached_artifact, notes = _find_cached(pipeline_run, key)
    if cached_artifact is not None:
        pipeline_run.progress.stage(step.name, number, step_count, "cached")
        return StepResult(step, cached_artifact, from_cache=True)
    pipeline_run.progress.stage(step.name, number, step_count, "running")
    stored_artifact = _execute_step(pipeline_run, step, key)
    pipeline_run.forget_sources()
    pipeline_run.progress.stage(step.name, number, step_count, f"done in {stored_artifact.entry.cost.wall:.1f} s")
    return StepResult(step, stored_artifact, from_cache=False, notes=notes)


def _find_cached(pipeline_run: Run, key: str) -> tuple[StoredArtifact | None, tuple[str, ...]]:
    try:
        return pipeline_run.cache.find(key), ()
    except DamagedEntryError as damage_error:
        note = f"{damage_error}; it was removed and the stage runs again"
        pipeline_run.progress.note(note)
        pipeline_run.cache.discard(key)
        return None, (note,)


def _execute_step(pipeline_run: Run, step: Step, key: str) -> StoredArtifact:
    input_artifact = pipeline_run.step_results[-1].stored_artifact.artifact if pipeline_run.step_results else None
    _check_kind(step, input_artifact)
    if step.stage.uses_tensorflow:
        load_tensorflow()
    with pipeline_run.cache.workspace() as folder:
        with _refuse_exit(), _user_classes(pipeline_run, step):
            recorder = EpochRecorder(pipeline_run.progress)
            context = _build_context(pipeline_run, step, input_artifact, folder, recorder)
            notes = _data_notes(pipeline_run, context)
            with cost.measure_cost() as meter, wrap_disk_full_errors(f"stage '{step.name}'"), _float32_policy(step):
                output_artifact, outcome = step.stage.run(context)
        learning_curve = tuple(EpochRecord(epoch=epoch, values=values) for epoch, values in recorder.epochs)
        outcome = outcome.model_copy(update={"notes": (*notes, *outcome.notes), "learning_curve": learning_curve})
        if not output_artifact.path.is_relative_to(folder):
            output_artifact = _copy_into(output_artifact, folder)
        interrupts.check()
        return pipeline_run.cache.store(folder, key, step.name, output_artifact, outcome, meter.cost)


@contextmanager
def _user_classes(pipeline_run: Run, step: Step) -> Iterator[None]:
    """Make the user's own layer classes known to Keras while the stage runs."""
    source, base_folder = pipeline_run.pipeline.source, pipeline_run.pipeline.base_folder
    if "keras" not in step.stage.tools or not (source.custom_objects or source.function):
        yield
        return
    from edgepipe.models import custom_objects

    named_classes = custom_objects.load(source.custom_objects, base_folder) if source.custom_objects else {}
    function_classes = custom_objects.load_module_classes(source.function, base_folder) if source.function else {}
    with custom_objects.scope({**function_classes, **named_classes}):
        yield


@contextmanager
def _float32_policy(step: Step) -> Iterator[None]:
    """While the stage runs, layers are built in float32, whatever policy the user's modules set when imported."""
    if "keras" not in step.stage.tools or not step.stage.uses_tensorflow:
        yield
        return
    from edgepipe.models.float32_rebuild import float32_by_default

    with float32_by_default():
        yield


@contextmanager
def _refuse_exit() -> Iterator[None]:
    """Turn an exit() in the user's own code into an error."""
    try:
        yield
    except SystemExit as exit_error:
        raise InputError(f"your code called exit({exit_error.code}); let it raise an error instead") from exit_error


def _data_notes(pipeline_run: Run, context: StageContext) -> list[str]:
    """Notes on the data, for the first stage that uses it.

    Raises:
        InputError: labels that no classifier can be trained on, such as those of one class only.
    """
    if context.splits is None:
        return []
    from edgepipe.data.splits import check_labels

    task = pipeline_run.pipeline.task
    notes = list(context.splits.notes)
    if task is not None and task.measure_family == "one" and task.decode is None:
        for split, split_data in context.splits.data_by_split.items():
            notes += check_labels(split_data.y, context.splits.class_count, f"the {split} split")
    new_notes = [note for note in notes if note not in pipeline_run.shown_notes]
    pipeline_run.shown_notes.update(new_notes)
    return new_notes


def _check_kind(step: Step, artifact: Artifact | None) -> None:
    if artifact is not None and artifact.kind not in step.stage.accepts:
        raise InputError(
            f"stage '{step.name}' takes {', '.join(step.stage.accepts)}; the model before it is {artifact.kind}"
        )


def _copy_into(artifact: Artifact, folder: Path) -> Artifact:
    # A stage may return its input, as `validate` does; each cache entry has a copy, so that none depends on another.
    target_path = folder / artifact.path.name
    (shutil.copytree if artifact.path.is_dir() else shutil.copyfile)(artifact.path, target_path)
    return Artifact(artifact.kind, target_path, artifact.digest)


def _build_context(
    pipeline_run: Run, step: Step, artifact: Artifact | None, folder: Path, progress: Progress
) -> StageContext:
    pipeline = pipeline_run.pipeline
    return StageContext(
        stage_name=step.name,
        input_artifact=artifact,
        output_folder=folder,
        seed=_step_seed(pipeline, step),
        base_folder=pipeline.base_folder,
        progress=progress,
        pipeline=step.pipeline,
        splits=_load_splits(pipeline_run, step),
        task_if_any=_load_task(pipeline_run),
        allow_code=pipeline.source.allow_code,
        earlier_artifacts=pipeline_run.earlier_artifacts,
        earlier_outcomes=_earlier_outcomes(pipeline_run),
        cache=pipeline_run.cache,
    )


def _earlier_outcomes(pipeline_run: Run) -> dict[str, Outcome]:
    """What the steps so far reported, and what is wrong with the quality of their models, if anything."""
    results = [(result.step, result.stored_artifact.entry.outcome) for result in pipeline_run.step_results]
    findings = [] if pipeline_run.pipeline.allow_chance else find_quality_problems(results)
    quality_outcomes = {"quality": Outcome(findings=tuple(findings))} if findings else {}
    return {**{step.name: outcome for step, outcome in results}, **quality_outcomes}


def _step_seed(pipeline: Pipeline, step: Step) -> int:
    """A seed for each step, so that a stage draws the same numbers whatever ran before it in this process."""
    return int(json_digest([pipeline.seed, step.name])[:8], 16) % 2**31


def _load_splits(pipeline_run: Run, step: Step) -> Any:
    pipeline, split_names = pipeline_run.pipeline, step.stage.splits
    if pipeline.data is None or not split_names:
        return None
    if split_names not in pipeline_run._loaded_splits:
        from edgepipe.data.dataset_loading import load

        pipeline_run._loaded_splits[split_names] = load(pipeline.data, pipeline.base_folder, pipeline.seed, split_names)
    return pipeline_run._loaded_splits[split_names]


def _load_task(pipeline_run: Run) -> Any:
    if pipeline_run._task is None and pipeline_run.pipeline.task is not None:
        from edgepipe.tasks.quality import build_task

        pipeline_run._task = build_task(pipeline_run.pipeline.task, pipeline_run.pipeline.base_folder)
    return pipeline_run._task


def _data_identity(pipeline: Pipeline) -> dict[str, Any] | None:
    if pipeline.data is None:
        return None
    from edgepipe.data.dataset_identity import compute_identity

    return compute_identity(pipeline.data, pipeline.base_folder, active_memo())


def _cache_key(pipeline_run: Run, step: Step, previous_key: str) -> str:
    """The digest of everything that determines the result of `step`."""
    pipeline, stage = pipeline_run.pipeline, step.stage
    uses_data = bool(stage.splits)
    return json_digest(
        {
            "stage": step.name,
            "options": stage.model_dump(mode="json"),
            "source": registry.code_identity(step.source, type(stage)),
            "before": previous_key,
            "input": pipeline_run.step_results[-1].stored_artifact.artifact.digest
            if pipeline_run.step_results
            else None,
            "data": pipeline_run.data_identity if uses_data else None,
            "task": _task_identity(pipeline) if uses_data else None,
            "seed": _step_seed(pipeline, step),
            "split_seed": pipeline.seed if uses_data else None,
            "tools": {package: references.installed_version(package) for package in ("edgepipe", *stage.tools)},
            "python": platform.python_version(),
            "machine": platform.machine(),
            "own": stage.key(step.pipeline),
        }
    )


def _task_identity(pipeline: Pipeline) -> dict[str, Any] | None:
    if pipeline.task is None:
        return None
    modules = sorted({reference.partition(":")[0] for reference in pipeline.task.code_references})
    return {
        "options": pipeline.task.model_dump(mode="json"),
        "quality": module_sources.source_digest("edgepipe.tasks.quality"),
        "code": {module: module_sources.source_digest(module, pipeline.base_folder) for module in modules},
    }
