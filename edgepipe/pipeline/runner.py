"""Runs a pipeline: each step from the cache if nothing that decides it has changed, else anew.

The flow is `run` below: for each step its key, then the cached result or the context, then the next.
"""

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepipe.core import cost, references
from edgepipe.core.artifact import Artifact, json_digest, wrap_disk_full_errors
from edgepipe.core.cache import Cache, DamagedEntryError, StoredArtifact
from edgepipe.core.errors import InputError
from edgepipe.core.progress import Progress
from edgepipe.data.splits import check_labels
from edgepipe.models.startup import load_tensorflow
from edgepipe.pipeline.schema import SOURCE_NAME, Pipeline, Step
from edgepipe.stages import registry
from edgepipe.stages.context import StageContext


@dataclass(frozen=True)
class StepResult:
    """A step that is done: what it made, and whether the cache had it."""

    step: Step
    stored: StoredArtifact
    cached: bool
    notes: tuple[str, ...] = ()  # of this run only, such as a damaged cache entry


@dataclass
class Run:
    """A pipeline being run: its results so far, in order."""

    pipeline: Pipeline
    cache: Cache
    progress: Progress
    results: list[StepResult] = field(default_factory=list)
    said: set[str] = field(default_factory=set)
    _loaded: dict[frozenset[Any], Any] = field(default_factory=dict)
    _task: Any = None

    @property
    def earlier(self) -> dict[str, Artifact]:
        """The artifacts made so far, by the name of their step."""
        return {result.step.name: result.stored.artifact for result in self.results}


def run(pipeline: Pipeline, cache: Cache, progress: Progress) -> Run:
    """Run all steps of `pipeline` and give their results.

    Raises:
        EdgepipeError: bad input, a full disk, a tool that is missing. What was done until then stays in the cache,
            and the next run goes on from there.
    """
    state = Run(pipeline, cache, progress)
    with cache.shared_lock():
        data = _data_identity(pipeline, cache)
        before = ""
        for number, step in enumerate(pipeline.steps, 1):
            before = _key(state, step, before, data)
            state.results.append(_step(state, step, before, number))
    return state


def _step(state: Run, step: Step, key: str, number: int) -> StepResult:
    of = len(state.pipeline.steps)
    found, notes = _cached(state, key)
    if found is not None:
        state.progress.stage(step.name, number, of, "cached")
        return StepResult(step, found, cached=True)
    state.progress.stage(step.name, number, of, "running")
    stored = _work(state, step, key)
    state.progress.stage(step.name, number, of, f"done in {stored.entry.cost.wall:.1f} s")
    return StepResult(step, stored, cached=False, notes=notes)


def _cached(state: Run, key: str) -> tuple[StoredArtifact | None, tuple[str, ...]]:
    try:
        return state.cache.find(key), ()
    except DamagedEntryError as damage:
        note = f"{damage}; it was removed and the stage runs again"
        state.progress.note(note)
        state.cache.discard(key)
        return None, (note,)


def _work(state: Run, step: Step, key: str) -> StoredArtifact:
    artifact = state.results[-1].stored.artifact if state.results else None
    _check_kind(step, artifact)
    if "tensorflow" in step.stage.tools:
        load_tensorflow()
    with state.cache.workspace() as folder:
        with _no_exit(), _own_classes(state, step):
            context = _context(state, step, artifact, folder)
            notes = _data_notes(state, context)
            with cost.measure_cost() as meter, wrap_disk_full_errors(f"stage '{step.name}'"):
                made, outcome = step.stage.run(context)
        outcome = outcome.model_copy(update={"notes": (*notes, *outcome.notes)})
        if not made.path.is_relative_to(folder):
            made = _adopted(made, folder)
        return state.cache.store(folder, key, step.name, made, outcome, meter.cost)


@contextmanager
def _own_classes(state: Run, step: Step) -> Iterator[None]:
    """The user's own layer classes, known to whatever the stage loads."""
    source, base = state.pipeline.source, state.pipeline.base_folder
    if "keras" not in step.stage.tools or not (source.custom_objects or source.function):
        yield
        return
    from edgepipe.models import custom_objects

    objects = custom_objects.load(source.custom_objects, base) if source.custom_objects else {}
    of_function = custom_objects.load_module_classes(source.function, base) if source.function else {}
    with custom_objects.scope({**of_function, **objects}):
        yield


@contextmanager
def _no_exit() -> Iterator[None]:
    """Keep the user's own code from ending the process with an exit code of its own."""
    try:
        yield
    except SystemExit as end:
        raise InputError(
            f"code that the pipeline names called exit({end.code}); let it raise an error instead"
        ) from end


def _data_notes(state: Run, context: StageContext) -> list[str]:
    """What is worth knowing of the data, said once, by the first stage that is given it.

    Raises:
        InputError: labels that no classifier can be trained on, such as those of one class only.
    """
    if context.splits is None:
        return []
    task = state.pipeline.task
    found = list(context.splits.notes)
    if task is not None and task.family == "one" and task.decode is None:
        for split, part in context.splits.data_by_split.items():
            found += check_labels(part.y, context.splits.class_count, f"the {split} split")
    fresh = [note for note in found if note not in state.said]
    state.said.update(fresh)
    return fresh


def _check_kind(step: Step, artifact: Artifact | None) -> None:
    if artifact is not None and artifact.kind not in step.stage.accepts:
        raise InputError(
            f"stage '{step.name}' takes {', '.join(step.stage.accepts)}; the model before it is {artifact.kind}"
        )


def _adopted(made: Artifact, folder: Path) -> Artifact:
    # A stage that only looks hands its input on; the entry keeps a copy, so that it stands by itself.
    target = folder / made.path.name
    (shutil.copytree if made.path.is_dir() else shutil.copyfile)(made.path, target)
    return Artifact(made.kind, target, made.digest)


def _context(state: Run, step: Step, artifact: Artifact | None, folder: Path) -> StageContext:
    pipeline = state.pipeline
    return StageContext(
        stage_name=step.name, input_artifact=artifact, output_folder=folder, seed=_seed(pipeline, step),
        base_folder=pipeline.base_folder, progress=state.progress, pipeline=step.pipeline, splits=_splits(state, step),
        task_if_any=_goal(state), allow_code=pipeline.source.allow_code, earlier_artifacts=state.earlier,
        cache=state.cache,
    )  # fmt: skip


def _seed(pipeline: Pipeline, step: Step) -> int:
    """A seed of the step's own, so that a stage draws the same numbers whatever ran before it in this process."""
    return int(json_digest([pipeline.seed, step.name])[:8], 16) % 2**31


def _splits(state: Run, step: Step) -> Any:
    spec, wanted = state.pipeline.data, step.stage.splits
    if spec is None or not wanted or not _uses_data(state, step):
        return None
    if wanted not in state._loaded:
        from edgepipe.data.dataset_loading import load

        state._loaded[wanted] = load(spec, state.pipeline.base_folder, state.pipeline.seed, wanted)
    return state._loaded[wanted]


def _uses_data(state: Run, step: Step) -> bool:
    return step.name != SOURCE_NAME or state.pipeline.source.function is not None


def _goal(state: Run) -> Any:
    if state._task is None and state.pipeline.task is not None:
        from edgepipe.tasks.quality import build_task

        state._task = build_task(state.pipeline.task, state.pipeline.base_folder)
    return state._task


def _data_identity(pipeline: Pipeline, cache: Cache) -> dict[str, Any] | None:
    if pipeline.data is None:
        return None
    from edgepipe.data.dataset_identity import identity

    return identity(pipeline.data, pipeline.base_folder, cache.root / "digests.sqlite")


def _key(state: Run, step: Step, before: str, data: dict[str, Any] | None) -> str:
    """The digest of everything that decides what `step` makes."""
    pipeline, stage = state.pipeline, step.stage
    uses_data = bool(stage.splits) and _uses_data(state, step)
    return json_digest(
        {
            "stage": step.name,
            "options": stage.model_dump(mode="json"),
            "source": registry.code_identity(step.source, type(stage)),
            "before": before,
            "input": state.results[-1].stored.artifact.digest if state.results else None,
            "data": data if uses_data else None,
            "task": _task_identity(pipeline) if uses_data else None,
            "seed": _seed(pipeline, step),
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
        "quality": references.source_digest("edgepipe.tasks.quality"),
        "code": {module: references.source_digest(module, pipeline.base_folder) for module in modules},
    }
