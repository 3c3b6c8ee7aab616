"""Finds a stage by its name in a pipeline: built in, of an installed package, or `module:Class`.

An installed package adds a stage with an entry point in the group `edgepipe.stages`: name = "module:Class". Listing
reads metadata only, so a package that cannot be imported affects only its own stages.
"""

import ast
import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgepipe.core import module_sources, references
from edgepipe.core.errors import EdgepipeError, InputError, did_you_mean
from edgepipe.stages.base import Stage

ENTRY_POINT_GROUP = "edgepipe.stages"
STAGE_REFERENCES = {
    "train": "edgepipe.stages.train:Train",
    "distill": "edgepipe.stages.distill:Distill",
    "prune": "edgepipe.stages.prune:Prune",
    "cluster": "edgepipe.stages.cluster:Cluster",
    "quantize": "edgepipe.stages.quantize:Quantize",
    "export": "edgepipe.stages.export:Export",
    "convert": "edgepipe.stages.convert:Convert",
    "compile": "edgepipe.stages.compile:Compile",
    "validate": "edgepipe.stages.validate:Validate",
    "deploy": "edgepipe.stages.deploy:Deploy",
}


@dataclass(frozen=True)
class StageSource:
    """Where the class of a stage comes from.

    `name` is its name in a pipeline, `reference` is `module:Class`. `package` and `version` are those of its
    distribution; for a module beside the pipeline they are empty, and `folder` is where it is looked up.
    """

    name: str
    reference: str
    package: str = ""
    version: str = ""
    folder: Path | None = None

    @property
    def module(self) -> str:
        """The module of the class."""
        return self.reference.partition(":")[0]

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return self.reference.partition(":")[2]


def find_stage(name: str, folder: Path) -> StageSource:
    """The source of the stage `name` of a pipeline in `folder`; nothing is imported.

    Raises:
        InputError: there is none, or two packages have one of this name.
    """
    if name in STAGE_REFERENCES:
        _refuse_collision(name)
        return built_in_stage(name)
    if name in _installed_sources_by_name():
        _refuse_collision(name)
        return _installed_sources_by_name()[name][0]
    if references.is_reference(name):
        references.check(name, folder)
        return StageSource(name, name, folder=folder)
    raise InputError(f"unknown stage{did_you_mean(name, [*STAGE_REFERENCES, *_installed_sources_by_name()])}")


def built_in_stage(name: str) -> StageSource:
    """The source of a built-in stage."""
    return StageSource(name, STAGE_REFERENCES[name], "edgepipe", references.installed_version("edgepipe"))


def load_stage_class(source: StageSource) -> type[Stage]:
    """Import the class of a stage.

    Raises:
        InputError: it cannot be imported, or is not a stage that can run.
    """
    if source.package == "edgepipe":
        return cast("type[Stage]", getattr(importlib.import_module(source.module), source.class_name))
    try:
        cls = references.load_attribute(source.reference, source.folder)
    except EdgepipeError as error:
        origin_text = f" of the package {source.package} {source.version}" if source.package else ""
        raise InputError(f"stage '{source.name}'{origin_text}: {error}") from error
    if problem := _class_problem(cls):
        raise InputError(f"stage '{source.name}': '{source.reference}' {problem}")
    return cast("type[Stage]", cls)


def _class_problem(cls: Any) -> str:
    """Why `cls` is not a stage that can run; empty if it is one."""
    if not (isinstance(cls, type) and issubclass(cls, Stage)):
        return "is not a subclass of edgepipe.Stage"
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        return f"does not define {', '.join(missing)}"
    if cls.run is Stage.run:
        return "does not define run"
    if not isinstance(getattr(cls, "accepts", None), Mapping) or not cls.accepts:
        example = "accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.KERAS}"
        return f"does not say which kinds it takes and gives: `{example}`"
    return ""


def code_identity(source: StageSource, cls: type[Stage]) -> dict[str, Any]:
    """A stage's code as part of the cache key.

    The digests of its module, of the modules that this imports from its own package or folder and of those declared
    in `Stage.modules`, and the version of its distribution.
    """
    module_names = (source.module, *cls.modules)
    return {
        "reference": source.reference,
        "package": [source.package, source.version],
        "sources": {module: module_sources.source_digest(module, source.folder) for module in module_names},
    }


def installed_stages() -> list[StageSource]:
    """The stages of installed packages, sorted by name, including those whose names collide."""
    return [source for name in sorted(_installed_sources_by_name()) for source in _installed_sources_by_name()[name]]


def describe_collision(name: str) -> str:
    """Why the stage `name` is refused because another has the same name; empty if no other has."""
    stage_sources = _installed_sources_by_name().get(name, [])
    package_texts = [f"{source.package} {source.version} ({source.reference})" for source in stage_sources]
    if name in STAGE_REFERENCES and package_texts:
        return f"'{name}' is a stage of edgepipe, and the package {package_texts[0]} has one of the same name"
    return f"the packages {' and '.join(package_texts)} both have a stage '{name}'" if len(package_texts) > 1 else ""


def _refuse_collision(name: str) -> None:
    if problem := describe_collision(name):
        raise InputError(f"{problem}; uninstall one, or name its class as module:Class")


@functools.cache
def _installed_sources_by_name() -> dict[str, list[StageSource]]:
    sources_by_name: dict[str, list[StageSource]] = {}
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        package = entry_point.dist.name if entry_point.dist is not None else "?"
        version = entry_point.dist.version if entry_point.dist is not None else "?"
        source = StageSource(entry_point.name, entry_point.value.replace(" ", ""), package, version)
        if source not in sources_by_name.setdefault(entry_point.name, []):
            sources_by_name[entry_point.name].append(source)
    return sources_by_name


def stages_in_folder(folder: Path) -> list[StageSource]:
    """The stage classes in the .py files of `folder`, found by parsing their source; nothing is imported."""
    return [
        StageSource(f"{file.stem}:{name}", f"{file.stem}:{name}", folder=folder)
        for file in sorted(folder.glob("*.py"))
        if file.stem.isidentifier()
        for name in _stage_class_names(file)
    ]


def _stage_class_names(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    imported_names = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edgepipe"
        for alias in node.names
        if alias.name in ("Stage", "TrainingStage")
    }
    base_names = imported_names | {"edgepipe.Stage", "edgepipe.TrainingStage"}
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in base_names for base in node.bases)
    ]


def describe_problem(source: StageSource) -> str:
    """Why a stage cannot be used; empty if it can. A broken package is listed with its problem."""
    if source.folder is None and (clash := describe_collision(source.name)):
        return clash if source.package != "edgepipe" else ""
    try:
        load_stage_class(source)
    except EdgepipeError as error:
        return str(error)
    return ""
