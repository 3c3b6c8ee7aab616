"""Reads and checks a pipeline without TensorFlow: reports every problem at once, each with line and column."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.core import config
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.config import Document, KeyPath, describe_value
from edgepipe.core.errors import ConfigError, InputError, Problem, did_you_mean
from edgepipe.data.data_spec import DataSpec
from edgepipe.data.data_spec import parse as parse_data
from edgepipe.pipeline.data_fit import check_data_fit
from edgepipe.pipeline.settings import PIPELINE_KEYS, Settings, apply_settings, default_name, entry_name, list_settings
from edgepipe.pipeline.shipped_pipelines import pipeline_file
from edgepipe.stages import registry
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo
from edgepipe.stages.model_source import Source, parse_source
from edgepipe.stages.registry import StageSource
from edgepipe.stages.teacher_models import TEACHER_KINDS
from edgepipe.tasks.task_spec import TaskSpec, parse_task

REQUIRED_KEYS = ("name", "model", "stages")
MAX_STAGES = 1000
SOURCE_NAME = "model"
SOURCE_STAGE = StageSource(SOURCE_NAME, "edgepipe.stages.model_source:Source", "edgepipe")
MAPPING_NAME = "the pipeline mapping"
_TEXT_BY_KIND = {
    ArtifactKind.KERAS: "a Keras 3 model",
    ArtifactKind.FLOAT: "a tf_keras model",
    ArtifactKind.QAT: "a fake-quant model",
    ArtifactKind.SAVED_MODEL: "a SavedModel",
    ArtifactKind.TFLITE: "a TFLite model",
    ArtifactKind.VELA: "a compiled model",
}
_FLOAT_KERAS = (ArtifactKind.KERAS, ArtifactKind.FLOAT)


@dataclass(frozen=True)
class Step:
    """One step of a run: a stage, its name in `--set`, `teacher:` and the report, and where its class comes from."""

    name: str
    stage: Stage
    pipeline: PipelineInfo
    source: StageSource

    @property
    def type(self) -> str:
        """The stage's type, such as `prune`; its `name` may differ."""
        return self.source.name


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline. The first of `steps` is the model source, named `model`.

    `text` is the YAML as written, `settings` the overrides of it, and `content` what both say together.
    """

    name: str
    description: str
    file: Path
    base_folder: Path
    seed: int
    source: Source
    data: DataSpec | None
    task: TaskSpec | None
    steps: tuple[Step, ...]
    text: str
    settings: tuple[str, ...]
    content: Mapping[str, Any]
    allow_chance: bool = False  # quality at chance, or far below the model's before compression, is only noted


def load(pipeline: Path | str | Mapping[str, Any], settings: Settings = ()) -> Pipeline:
    """Check a pipeline file, a shipped pipeline by its name, or a mapping with the same content.

    Paths and modules are relative to the folder of the file; for a mapping to the current one. `settings` override
    options (`stages.prune.sparsity=0.8`).

    Raises:
        ConfigError: all problems of the file, each with line and column.
        InputError: the file cannot be read, or a mapping holds values that YAML has no form for.
    """
    if isinstance(pipeline, Mapping):
        return _parse_document(_mapping_document(pipeline), Path(MAPPING_NAME), Path.cwd(), settings)
    file = pipeline_file(pipeline)
    return _parse_document(config.read(file), file, file.resolve().parent, settings)


def load_text(text: str, file: Path, base_folder: Path, settings: Settings = ()) -> Pipeline:
    """Check the text of a pipeline, as a report stores it.

    Args:
        text: YAML.
        file: the name of the pipeline in problems and reports.
        base_folder: the folder that paths and modules start from.
        settings: options that override those of the text.

    Raises:
        ConfigError: all problems of the text.
    """
    return _parse_document(config.parse(text, str(file)), file, base_folder, settings)


def _parse_document(document: Document, file: Path, base_folder: Path, settings: Settings) -> Pipeline:
    settings = list_settings(settings)
    if isinstance(document.content, dict):
        apply_settings(document, settings)
    checked_pipeline = _PipelineParser(document, file, base_folder, settings).parse_pipeline()
    document.raise_problems()
    if checked_pipeline is None:
        raise ConfigError([Problem(str(file), 1, 1, "", "not a pipeline")])
    return checked_pipeline


def _mapping_document(pipeline: Mapping[str, Any]) -> Document:
    """A document without lines and columns."""
    try:
        text = json.dumps(dict(pipeline), default=_path_text)
    except (TypeError, ValueError) as error:
        raise InputError(f"{MAPPING_NAME}: {error}; only what YAML can hold, and paths") from None
    document = config.parse(text, MAPPING_NAME)
    document.problems = [problem._replace(line=0, column=0) for problem in document.problems]
    document.key_positions.clear()
    document.value_positions.clear()
    return document


def _path_text(raw_value: Any) -> str:
    if isinstance(raw_value, Path):
        return str(raw_value)
    raise TypeError(f"found {raw_value!r:.60} of type {type(raw_value).__name__}")


class _PipelineParser:
    """Reads one document; problems gather in it."""

    def __init__(self, document: Document, file: Path, base_folder: Path, settings: tuple[str, ...]) -> None:
        self.document = document
        self.settings = settings
        self.file = file
        self.base_folder = base_folder
        self.steps: list[Step] = []
        self.kind_by_stage: dict[str, ArtifactKind | None] = {}  # including stages with problems
        self.previous_stage_name = SOURCE_NAME  # even if it could not be read
        self.present_keys: frozenset[str] = frozenset()
        self.missing_keys: set[str] = set()  # needed by a stage and already reported
        self.data: DataSpec | None = None
        self.task: TaskSpec | None = None

    def parse_pipeline(self) -> Pipeline | None:
        content = self.document.content
        if self.document.problems and not isinstance(content, dict):
            return None
        if not isinstance(content, dict):
            self.document.add_problem(
                (), f"a pipeline is a mapping with {', '.join(PIPELINE_KEYS)}; found {describe_value(content)}"
            )
            return None
        self._check_keys(content)
        source = None
        if "model" in content:
            source = parse_source(self.document, ("model",), content["model"], self.base_folder)
        self.present_keys = frozenset(content)
        if "data" in content:
            self.data = parse_data(self.document, ("data",), content["data"], self.base_folder)
        if "task" in content:
            self.task = parse_task(self.document, ("task",), content["task"], self.base_folder)
        name = self._read_text(content, "name", "pipeline")
        if "stages" in content:
            self._parse_stages(content["stages"], source)
        if source is None or not self._fits_data(source):
            return None
        return Pipeline(
            name=name,
            description=self._read_text(content, "description", ""),
            file=self.file,
            base_folder=self.base_folder,
            seed=self._read_seed(content),
            source=source,
            data=self.data,
            task=self.task,
            steps=tuple(self.steps),
            text=self.document.text,
            settings=self.settings,
            content=content,
            allow_chance=content.get("allow_chance", False),
        )

    def _fits_data(self, source: Source) -> bool:
        """Whether there is no problem; the model is compared with the data if there is no other one."""
        if not self.document.problems:
            check_data_fit(self.document, source, self.data, self.task, self.base_folder)
        return not self.document.problems

    def _check_keys(self, content: Mapping[str, Any]) -> None:
        for key in content:
            if key not in PIPELINE_KEYS:
                self.document.add_problem((key,), f"unknown option{did_you_mean(key, PIPELINE_KEYS)}", anchor="key")
        for key in REQUIRED_KEYS:
            if key not in content:
                self.document.add_problem((key,), "is required but missing")
        if not isinstance(content.get("allow_chance", False), bool):
            self.document.add_problem(
                ("allow_chance",), f"must be true or false; found {describe_value(content['allow_chance'])}"
            )
        self._read_seed(content)

    def _read_text(self, content: Mapping[str, Any], key: str, default: str) -> str:
        text = content.get(key, default)
        if not isinstance(text, str) or (key == "name" and not _is_plain_name(text)):
            expectation = "a name of letters, digits, '-', '_' and '.'" if key == "name" else "a text"
            self.document.add_problem((key,), f"must be {expectation}; found {describe_value(text)}")
            return default
        return text

    def _read_seed(self, content: Mapping[str, Any]) -> int:
        seed = content.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
            if not any(problem.path == "seed" for problem in self.document.problems):
                self.document.add_problem(
                    ("seed",), f"must be an integer from 0 to 2147483647; found {describe_value(seed)}"
                )
            return 0
        return seed

    def _parse_stages(self, stage_entries: Any, source: Source | None) -> None:
        if not isinstance(stage_entries, list) or not stage_entries:
            self.document.add_problem(("stages",), f"must be a list of stages; found {describe_value(stage_entries)}")
            return
        if len(stage_entries) > MAX_STAGES:
            self.document.add_problem(("stages",), f"{len(stage_entries):,} stages; at most {MAX_STAGES:,} are read")
            return
        kind = source.kind(self.base_folder) if source is not None else None
        if source is not None:
            self.steps.append(Step(SOURCE_NAME, source, self._pipeline_info(), SOURCE_STAGE))
            self.kind_by_stage[SOURCE_NAME] = kind
        for index, entry in enumerate(stage_entries):
            kind = self._parse_entry(("stages", index), entry, kind)
            self.previous_stage_name = entry_name(entry)

    def _parse_entry(self, entry_path: KeyPath, entry: Any, input_kind: ArtifactKind | None) -> ArtifactKind | None:
        if isinstance(entry, str):
            entry = {entry: {}}
        if not isinstance(entry, dict) or len(entry) != 1:
            self.document.add_problem(
                entry_path, f"each stage is one name with its options; found {_describe_entry(entry)}"
            )
            return None
        stage_type, options = next(iter(entry.items()))
        stage_path = (*entry_path, stage_type)
        try:
            stage_source = registry.find_stage(stage_type, self.base_folder)
            cls = registry.load_stage_class(stage_source)
        except InputError as error:
            self.document.add_problem(stage_path, str(error), anchor="key")
            return None
        return self._parse_stage(stage_path, stage_source, cls, options, input_kind)

    def _parse_stage(
        self, path: KeyPath, source: StageSource, cls: type[Stage], options: Any, input_kind: ArtifactKind | None
    ) -> ArtifactKind | None:
        name = self._stage_name(path, source.name, options)
        if isinstance(options, dict):
            options = {key: option for key, option in options.items() if key != "as"}
        stage = config.validate(self.document, path, options, cls)
        output_kind = self._output_kind(path, source.name, cls, input_kind)
        if stage is not None:
            self._check_needs(path, source.name, stage, input_kind)
            stage.check(self.document, path, self._pipeline_info())
            self.steps.append(Step(name, stage, self._pipeline_info(), source))
        self.kind_by_stage[name] = output_kind
        return output_kind

    def _pipeline_info(self) -> PipelineInfo:
        """The pipeline up to the next stage."""
        return PipelineInfo(
            self.base_folder,
            self.task,
            earlier_stages=tuple(step.name for step in self.steps),
            training_stages=tuple(step.name for step in self.steps if step.stage.trains),
            calibration_samples=self.data.representative if self.data else 0,
            keras_stages=tuple(name for name, kind in self.kind_by_stage.items() if kind in TEACHER_KINDS),
            quantizing_stages=tuple(step.name for step in self.steps if step.stage.quantizes),
            partly_float_stages=tuple(step.name for step in self.steps if step.stage.keeps_float),
        )

    def _stage_name(self, path: KeyPath, stage_type: str, options: Any) -> str:
        fallback_name = default_name(stage_type)
        name = options.get("as", fallback_name) if isinstance(options, dict) else fallback_name
        name_path = (*path, "as") if isinstance(options, dict) and "as" in options else path
        if not isinstance(name, str) or not _is_plain_name(name):
            self.document.add_problem(
                name_path, f"must be a name of letters, digits, '-', '_' and '.'; found {describe_value(name)}"
            )
            return fallback_name
        if name in {step.name for step in self.steps}:
            self.document.add_problem(
                name_path,
                f"a second stage named '{name}'; give it a name of its own: `{stage_type}: {{as: {name}2, ..}}`",
                anchor="key",
            )
        return name

    def _output_kind(
        self, path: KeyPath, stage_type: str, cls: type[Stage], input_kind: ArtifactKind | None
    ) -> ArtifactKind | None:
        if input_kind is None:
            return next(iter(cls.accepts.values())) if len(set(cls.accepts.values())) == 1 else None
        if input_kind not in cls.accepts:
            remedy = _chain_remedy(cls, input_kind) or self._move_remedy(stage_type, input_kind)
            self.document.add_problem(
                path,
                f"'{stage_type}' takes {_describe_kinds(cls.accepts)}, "
                f"but '{self.previous_stage_name}' before it gives {_describe_kinds([input_kind])}; {remedy}",
                anchor="key",
            )
            return None
        return cls.accepts[input_kind]

    def _move_remedy(self, stage_type: str, kind: ArtifactKind) -> str:
        """Where a stage that does not take `kind` would: before the first stage that gives it."""
        origin_stage = next(
            (name for name, given in self.kind_by_stage.items() if given is kind), self.previous_stage_name
        )
        if origin_stage == SOURCE_NAME:
            return f"name such a model in `model:`, or drop '{stage_type}'"
        return f"move '{stage_type}' before '{origin_stage}'"

    def _check_needs(self, path: KeyPath, stage_type: str, stage: Stage, input_kind: ArtifactKind | None) -> None:
        needed_keys = ["data"] if input_kind is None or stage.wants_data(input_kind) else []
        needed_keys += ["task"] if stage.needs_data else []
        for key in needed_keys:
            if key not in self.present_keys | self.missing_keys:
                self.document.add_problem(path, f"'{stage_type}' needs `{key}:` at the top of the file", anchor="key")
                self.missing_keys.add(key)


def _chain_remedy(cls: type[Stage], kind: ArtifactKind) -> str:
    """How to fix a stage that does not take `kind`; empty if moving it earlier does."""
    if kind is ArtifactKind.VELA:
        return "a compiled model can only be validated: move this stage before `compile`"
    if set(cls.accepts) <= {ArtifactKind.TFLITE, ArtifactKind.VELA}:
        return "put `convert` before it"
    if kind is ArtifactKind.QAT:
        return "a fake-quant model can only be converted: drop this stage or put it before `quantize`"
    if kind is ArtifactKind.KERAS:
        return "it is a Keras 3 model already: drop this stage"
    return ""


def _describe_kinds(kinds: Collection[ArtifactKind]) -> str:
    """Kinds of models in words, such as `a float Keras model or a fake-quant model`."""
    is_float_keras = all(kind in kinds for kind in _FLOAT_KERAS)
    kind_texts = ["a float Keras model"] if is_float_keras else []
    kind_texts += [_TEXT_BY_KIND[kind] for kind in kinds if not (is_float_keras and kind in _FLOAT_KERAS)]
    return " or ".join(filter(None, [", ".join(kind_texts[:-1]), kind_texts[-1]]))


def _is_plain_name(name: str) -> bool:
    return bool(name) and name[0] not in ".-" and all(c.isalnum() or c in "-_." for c in name)


def _describe_entry(entry: Any) -> str:
    if isinstance(entry, dict) and entry:
        return f"{len(entry)} keys ({', '.join(map(str, entry))}); begin each stage with its own '- '"
    return describe_value(entry)
