"""What a run reads besides its pipeline: model files, data, the user's own modules, device profiles, by digest."""

import contextlib
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgepipe.core import module_sources, references
from edgepipe.core.errors import ConfigError, InputError, Problem
from edgepipe.core.file_memo import active_memo
from edgepipe.data.data_spec import FunctionSpec, SpokenDigitsSpec, source_path
from edgepipe.pipeline.run_record import InputRole, RunDefinition, RunInput
from edgepipe.pipeline.schema import SOURCE_NAME, Pipeline, Step

_ROLE_BY_KEY: dict[str, InputRole] = {"device": "device", "devices": "device"}
_KEYS_ELSEWHERE = ("source", "host")  # sources are listed module by module; the host is not an input
DIGEST_LENGTH = 64  # of SHA-256 in hexadecimal digits


def describe_definition(
    pipeline: Pipeline, data_identity: Mapping[str, Any] | None, command: tuple[str, ...]
) -> RunDefinition:
    """What a report stores of the start of a run.

    Args:
        pipeline: that is run.
        data_identity: of its data, as `dataset_identity` computes it; None without data.
        command: the command line; empty for a run from Python.
    """
    return RunDefinition(
        pipeline=dict(pipeline.content),
        text=pipeline.text,
        settings=pipeline.settings,
        folder=str(pipeline.base_folder),
        command=command,
        inputs=collect_inputs(pipeline, data_identity),
    )


def collect_inputs(pipeline: Pipeline, data_identity: Mapping[str, Any] | None) -> tuple[RunInput, ...]:
    """Everything that a run of `pipeline` reads and that belongs to the user, sorted, each once.

    Raises:
        InputError: something is missing.
    """
    inputs = [*_data_inputs(pipeline, data_identity), *_module_inputs(pipeline)]
    inputs += [stage_input for step in pipeline.steps for stage_input in _step_inputs(step)]
    return tuple(sorted(set(inputs), key=lambda run_input: (run_input.role, run_input.name, run_input.digest)))


def _data_inputs(pipeline: Pipeline, identity: Mapping[str, Any] | None) -> Iterator[RunInput]:
    if identity is None or pipeline.data is None:
        return
    for name, digest in identity["files"].items():
        yield RunInput(role="data", name=_source_name(pipeline) if name == "source" else name, digest=digest)
    if identity["noise"] is not None:
        yield RunInput(role="data", name="augment.noise", digest=identity["noise"])


def _source_name(pipeline: Pipeline) -> str:
    """The file or folder that the data is read from, as the pipeline names it if it is beside it."""
    assert pipeline.data is not None
    assert not isinstance(pipeline.data, (FunctionSpec, SpokenDigitsSpec)), "these name their files, or have none"
    path = source_path(pipeline.data, pipeline.base_folder)
    is_inside = path.is_relative_to(pipeline.base_folder)
    return (path.relative_to(pipeline.base_folder) if is_inside else path).as_posix()


def _module_inputs(pipeline: Pipeline) -> Iterator[RunInput]:
    """The files of the user's own modules that the pipeline or its stages name, and of what these import."""
    named_modules = [reference.partition(":")[0] for reference in _references(pipeline.content)]
    declared_modules = [module for step in pipeline.steps for module in step.stage.modules]
    for module in dict.fromkeys([*named_modules, *declared_modules]):
        with contextlib.suppress(InputError):  # a text that only looks like a reference: real ones have been checked
            closure = module_sources.import_closure(module, pipeline.base_folder)
            for name, path in closure.items():
                if not _is_installed(path):
                    yield RunInput(role="module", name=f"{name} ({path.name})", digest=active_memo().digest_of(path))


def _is_installed(path: Path) -> bool:
    """Whether a module belongs to edgepipe, Python or an installed package, which versions identify."""
    folders = (module_sources.PACKAGE_ROOT / "edgepipe", *map(Path, sysconfig.get_paths().values()))
    return any(path.is_relative_to(folder) for folder in folders)


def _references(content: Any) -> Iterator[str]:
    """Every `module:function` in a pipeline, also those of stages, which are keys."""
    if isinstance(content, str) and references.is_reference(content):
        yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from (*_references(key), *_references(value))
    elif isinstance(content, list):
        for value in content:
            yield from _references(value)


def _step_inputs(step: Step) -> Iterator[RunInput]:
    """The files and profiles that the options of a step name: the digests in its part of the cache key."""
    options = step.stage.model_dump(mode="json")
    for path, digest in _digests(step.stage.key(step.pipeline), ()):
        option_path = (*path[:-1], "path") if path[-1] == "content" else path
        option = _option_at(options, option_path)
        name = option if isinstance(option, str) else str(path[-1])
        role: InputRole = "model" if step.name == SOURCE_NAME else _ROLE_BY_KEY.get(str(path[0]), "file")
        yield RunInput(role=role, name=name, digest=digest)


def _digests(key: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(key, Mapping):
        for name, value in key.items():
            if name not in _KEYS_ELSEWHERE:
                yield from _digests(value, (*path, name))
    elif isinstance(key, (list, tuple)):
        for index, value in enumerate(key):
            yield from _digests(value, (*path, index))
    elif isinstance(key, str) and len(key) == DIGEST_LENGTH:
        yield path, key


def _option_at(options: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        keys = range(len(options)) if isinstance(options, list) else options if isinstance(options, Mapping) else ()
        if key not in keys:
            return None
        options = options[key]
    return options


def refuse_changes(report_name: str, recorded: tuple[RunInput, ...], current: tuple[RunInput, ...]) -> None:
    """Refuse to repeat a run whose inputs are no longer what they were.

    A profile that comes with edgepipe may change with its version, like its code: that is no change of the user's.

    Raises:
        ConfigError: every input that has changed, is new or is gone, by name.
    """
    then, now = _digest_by_name(recorded), _digest_by_name(current)
    problems = [
        Problem(report_name, 0, 0, name, _describe_change(then.get(name), now.get(name)))
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if problems:
        remedy = "restore what the run read, or run the pipeline file itself: that is a new run"
        raise ConfigError([*problems[:-1], problems[-1]._replace(message=f"{problems[-1].message}; {remedy}")])


def _digest_by_name(inputs: tuple[RunInput, ...]) -> dict[str, str]:
    return {
        str(run_input): run_input.digest
        for run_input in inputs
        if run_input.role != "device" or run_input.name.endswith((".yaml", ".yml"))
    }


def _describe_change(then: str | None, now: str | None) -> str:
    if then is None:
        return "is read now, but was not then"
    if now is None:
        return "was read then, but is not now"
    return f"has changed since this run (SHA-256 {then[:12]} then, {now[:12]} now)"
