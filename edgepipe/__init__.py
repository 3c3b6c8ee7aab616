"""edgepipe: turns a Keras model into a proven, fully integer TFLite model for a small device, from one YAML file.

The commands as functions: `run`, `reproduce`, `check`, `convert`, `verify`, `inspect`, `profile`, `sensitivity`,
`footprint`, `describe_data`, `calibrate`, `fit_device`, `load_report`, `list_runs`, `compare_runs`, `prune_runs`,
`deploy_model`, `switch_version`, `list_versions`, `measure`. What a `task: module:function` returns: `Task` of
`Measure`. What a stage of one's own is made of: `Stage` or
`TrainingStage`, `StageContext`, `PipelineInfo`, `Artifact`, `ArtifactKind`, `Outcome`. Importing this imports nothing
heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepipe.api import (
        calibrate,
        check,
        compare_runs,
        convert,
        deploy_model,
        describe_data,
        fit_device,
        footprint,
        inspect,
        list_runs,
        list_versions,
        load_report,
        measure,
        profile,
        prune_runs,
        reproduce,
        run,
        sensitivity,
        switch_version,
        verify,
    )
    from edgepipe.core.artifact import Artifact, ArtifactKind
    from edgepipe.core.errors import ConfigError, EdgepipeError, InputError
    from edgepipe.core.outcome import Outcome
    from edgepipe.stages.base import Stage
    from edgepipe.stages.context import PipelineInfo, StageContext
    from edgepipe.stages.training import TrainingStage
    from edgepipe.tasks.quality import Measure, Task

__all__ = [
    "Artifact",
    "ArtifactKind",
    "ConfigError",
    "EdgepipeError",
    "InputError",
    "Measure",
    "Outcome",
    "PipelineInfo",
    "Stage",
    "StageContext",
    "Task",
    "TrainingStage",
    "calibrate",
    "check",
    "compare_runs",
    "convert",
    "deploy_model",
    "describe_data",
    "fit_device",
    "footprint",
    "inspect",
    "list_runs",
    "list_versions",
    "load_report",
    "measure",
    "profile",
    "prune_runs",
    "reproduce",
    "run",
    "sensitivity",
    "switch_version",
    "verify",
]

_MODULES = {
    "Artifact": "edgepipe.core.artifact",
    "ArtifactKind": "edgepipe.core.artifact",
    "ConfigError": "edgepipe.core.errors",
    "EdgepipeError": "edgepipe.core.errors",
    "InputError": "edgepipe.core.errors",
    "Measure": "edgepipe.tasks.quality",
    "Outcome": "edgepipe.core.outcome",
    "PipelineInfo": "edgepipe.stages.context",
    "Stage": "edgepipe.stages.base",
    "StageContext": "edgepipe.stages.context",
    "Task": "edgepipe.tasks.quality",
    "TrainingStage": "edgepipe.stages.training",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgepipe' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES.get(name, "edgepipe.api")), name)


def __dir__() -> list[str]:
    return __all__
