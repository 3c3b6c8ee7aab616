"""A pipeline file, read and checked without TensorFlow: every problem at once, each with its place."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.core import config
from edgepipe.core.artifact import Kind
from edgepipe.core.config import Document, Path_, describe
from edgepipe.core.errors import ConfigError, InputError, Problem, did_you_mean
from edgepipe.data.data_spec import DataSpec
from edgepipe.data.data_spec import parse as parse_data
from edgepipe.stages import STAGES, stage_class
from edgepipe.stages.base import Stage, World
from edgepipe.stages.model_source import Source
from edgepipe.stages.model_source import parse as parse_source
from edgepipe.stages.teacher_models import TEACH
from edgepipe.tasks.task_spec import TaskSpec
from edgepipe.tasks.task_spec import parse as parse_task

KEYS = ("name", "description", "model", "data", "task", "seed", "stages")
REQUIRED = ("name", "model", "stages")
SOURCE_NAME = "model"


@dataclass(frozen=True)
class Step:
    """One step of a run: a stage under the name that options, `teacher:` and reports point to, and its world."""

    name: str
    stage: Stage
    world: World
    type: str


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline. `steps` begins with the model source, named `model`."""

    name: str
    description: str
    file: Path
    base: Path
    seed: int
    source: Source
    data: DataSpec | None
    task: TaskSpec | None
    steps: tuple[Step, ...]


def load(path: Path | str, settings: Iterable[str] = ()) -> Pipeline:
    """The pipeline of the file `path` with `settings` (`stages.prune.sparsity=0.8`) put over it.

    Raises:
        ConfigError: all problems of the file, each with line and column.
        InputError: the file cannot be read.
    """
    document = config.read(path)
    if isinstance(document.data, dict):
        for setting in settings:
            _set(document, setting)
    pipeline = _Parser(document, Path(path)).pipeline()
    document.raise_problems()
    if pipeline is None:
        raise ConfigError([Problem(str(path), 1, 1, "", "not a pipeline")])
    return pipeline


def _set(document: Document, setting: str) -> None:
    path_text, equals, text = setting.partition("=")
    source = f"--set {setting}"
    words = tuple(path_text.split(".")) if equals else ()
    if not all(words) or not words:
        raise InputError(f"'{source}' is not of the form --set path=value, for example --set stages.prune.sparsity=0.8")
    if words[0] not in KEYS:
        raise InputError(f"{source}: unknown option '{words[0]}'{did_you_mean(words[0], KEYS)}")
    path = _stage_path(document, words, source) if words[0] == "stages" else words
    config.assign(document, path, text, source)


def _stage_path(document: Document, path: tuple[str, ...], source: str) -> Path_:
    """`stages.NAME.option` as the path into the list of stages."""
    entries = document.data.get("stages")
    named = [
        (i, e) for i, e in enumerate(entries if isinstance(entries, list) else []) if e and isinstance(e, (str, dict))
    ]
    names = {_entry_name(entry): index for index, entry in named}
    name = path[1] if len(path) > 1 else ""
    if name and name not in names:
        raise InputError(f"{source}: no stage of the file is named '{name}'{did_you_mean(name, names)}")
    if len(path) < 3:
        raise InputError(f"{source}: names no option; write --set stages.{name or 'NAME'}.OPTION=VALUE")
    index = names[name]
    entry = entries[index]
    if isinstance(entry, str):
        entries[index] = {entry: {}}
    return ("stages", index, next(iter(entries[index])), *path[2:])


def _entry_name(entry: Any) -> str:
    """The name of an entry of `stages:`: its `as`, else the kind of stage."""
    if not isinstance(entry, dict) or not entry:
        return str(entry)
    kind, options = next(iter(entry.items()))
    own = options.get("as") if isinstance(options, dict) else None
    return own if isinstance(own, str) else str(kind)


class _Parser:
    """Reads one document; problems gather in it."""

    def __init__(self, document: Document, file: Path) -> None:
        self.document = document
        self.file = file
        self.base = file.resolve().parent
        self.steps: list[Step] = []
        self.gives: dict[str, Kind | None] = {}  # by stage, also of those that have problems of their own
        self.before = SOURCE_NAME  # the entry above, also one that could not be read
        self.given: frozenset[str] = frozenset()  # the keys of the file
        self.missed: set[str] = set()  # those of them that a stage needs and that are not there, each told once
        self.data: DataSpec | None = None
        self.task: TaskSpec | None = None

    def pipeline(self) -> Pipeline | None:
        data = self.document.data
        if self.document.problems and not isinstance(data, dict):
            return None
        if not isinstance(data, dict):
            self.document.problem((), f"a pipeline is a mapping with {', '.join(KEYS)}; found {describe(data)}")
            return None
        self._keys(data)
        source = parse_source(self.document, ("model",), data["model"], self.base) if "model" in data else None
        self.given = frozenset(data)
        if "data" in data:
            self.data = parse_data(self.document, ("data",), data["data"], self.base)
        if "task" in data:
            self.task = parse_task(self.document, ("task",), data["task"], self.base)
        name = self._text(data, "name", "pipeline")
        if "stages" in data:
            self._stages(data["stages"], source)
        if self.document.problems or source is None:
            return None
        return Pipeline(
            name, self._text(data, "description", ""), self.file, self.base, self._seed(data), source, self.data,
            self.task, tuple(self.steps),
        )  # fmt: skip

    def _keys(self, data: Mapping[str, Any]) -> None:
        for key in data:
            if key not in KEYS:
                self.document.problem((key,), f"unknown option{did_you_mean(key, KEYS)}", at="key")
        for key in REQUIRED:
            if key not in data:
                self.document.problem((key,), "is required but missing")
        self._seed(data)

    def _text(self, data: Mapping[str, Any], key: str, default: str) -> str:
        value = data.get(key, default)
        if not isinstance(value, str) or (key == "name" and not _plain_name(value)):
            allowed = "a name of letters, digits, '-', '_' and '.'" if key == "name" else "a text"
            self.document.problem((key,), f"must be {allowed}; found {describe(value)}")
            return default
        return value

    def _seed(self, data: Mapping[str, Any]) -> int:
        value = data.get("seed", 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            if not any(problem.path == "seed" for problem in self.document.problems):
                self.document.problem(("seed",), f"must be an integer from 0 to 2147483647; found {describe(value)}")
            return 0
        return value

    def _stages(self, entries: Any, source: Source | None) -> None:
        if not isinstance(entries, list) or not entries:
            self.document.problem(("stages",), f"must be a list of stages; found {describe(entries)}")
            return
        kind = source.kind(self.base) if source is not None else None
        if source is not None:
            self.steps.append(Step(SOURCE_NAME, source, self._world(), SOURCE_NAME))
            self.gives[SOURCE_NAME] = kind
        for index, entry in enumerate(entries):
            kind = self._stage(("stages", index), entry, kind)
            self.before = _entry_name(entry)

    def _stage(self, path: Path_, entry: Any, kind: Kind | None) -> Kind | None:
        if isinstance(entry, str):
            entry = {entry: {}}
        if not isinstance(entry, dict) or len(entry) != 1:
            self.document.problem(path, f"each stage is one name with its options; found {_several(entry)}")
            return None
        type_, options = next(iter(entry.items()))
        here = (*path, type_)
        if type_ not in STAGES:
            self.document.problem(here, f"unknown stage{did_you_mean(type_, STAGES)}", at="key")
            return None
        return self._known_stage(here, type_, options, kind)

    def _known_stage(self, path: Path_, type_: str, options: Any, kind: Kind | None) -> Kind | None:
        cls = stage_class(type_)
        name = self._name(path, type_, options)
        own = {key: value for key, value in options.items() if key != "as"} if isinstance(options, dict) else options
        stage = config.validate(self.document, path, own, cls)
        gives = self._kinds(path, type_, cls, kind)
        if stage is not None:
            self._needs(path, type_, stage, kind)
            stage.check(self.document, path, self._world())
            self.steps.append(Step(name, stage, self._world(), type_))
        self.gives[name] = gives
        return gives

    def _world(self) -> World:
        """What the next stage may know of the pipeline."""
        return World(
            self.base,
            self.task,
            earlier=tuple(step.name for step in self.steps),
            trained=tuple(step.name for step in self.steps if step.stage.trains),
            representative=self.data.representative if self.data else 0,
            models=tuple(name for name, kind in self.gives.items() if kind in TEACH),
            quantized=tuple(step.name for step in self.steps if step.stage.quantizes),
            floating=tuple(step.name for step in self.steps if step.stage.leaves_float),
        )

    def _name(self, path: Path_, type_: str, options: Any) -> str:
        name = options.get("as", type_) if isinstance(options, dict) else type_
        here = (*path, "as") if isinstance(options, dict) and "as" in options else path
        if not isinstance(name, str) or not _plain_name(name):
            self.document.problem(here, f"must be a name of letters, digits, '-', '_' and '.'; found {describe(name)}")
            return type_
        if name in {step.name for step in self.steps}:
            self.document.problem(
                here,
                f"a second stage named '{name}'; give it a name of its own: `{type_}: {{as: {name}2, ..}}`",
                at="key",
            )
        return name

    def _kinds(self, path: Path_, type_: str, cls: type[Stage], kind: Kind | None) -> Kind | None:
        if kind is None:
            return next(iter(cls.accepts.values())) if len(set(cls.accepts.values())) == 1 else None
        if kind not in cls.accepts:
            allowed = ", ".join(cls.accepts)
            self.document.problem(
                path,
                f"'{type_}' takes {allowed}, but '{self.before}' before it gives {kind}; {_remedy(cls, kind)}",
                at="key",
            )
            return None
        return cls.accepts[kind]

    def _needs(self, path: Path_, type_: str, stage: Stage, kind: Kind | None) -> None:
        needed = ["data"] if kind is None or stage.wants_data(kind) else []
        needed += ["task"] if stage.needs_data else []
        for key in needed:
            if key not in self.given | self.missed:
                self.document.problem(path, f"'{type_}' needs `{key}:` at the top of the file", at="key")
                self.missed.add(key)


def _remedy(cls: type[Stage], kind: Kind) -> str:
    """What to do about a stage that does not take `kind`."""
    if kind is Kind.VELA:
        return "a compiled model can only be validated: move this stage before `compile`"
    if set(cls.accepts) <= {Kind.TFLITE, Kind.VELA}:
        return "put `convert` before it"
    if kind is Kind.QAT:
        return "a fake-quant model can only be converted: drop this stage or put it before `quantize`"
    if kind is Kind.KERAS:
        return "it is a Keras 3 model already: drop this stage"
    return "move it earlier"


def _plain_name(value: str) -> bool:
    return bool(value) and value[0] not in ".-" and all(c.isalnum() or c in "-_." for c in value)


def _several(entry: Any) -> str:
    if isinstance(entry, dict) and entry:
        return f"{len(entry)} keys ({', '.join(map(str, entry))}); begin each stage with its own '- '"
    return describe(entry)
