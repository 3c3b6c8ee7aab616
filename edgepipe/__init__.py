"""edgepipe: takes a Keras model to a proven, fully-integer TFLite model for a small device, from one YAML file.

`run`, `check`, `convert`, `inspect`, `verify` and `load_report` are the commands as functions; `Task` and `Measure`
are what a `task: module:function` returns. Importing this imports nothing heavy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepipe.api import check, convert, inspect, load_report, run, verify
    from edgepipe.core.errors import EdgepipeError
    from edgepipe.tasks.quality import Measure, Task

__all__ = ["EdgepipeError", "Measure", "Task", "check", "convert", "inspect", "load_report", "run", "verify"]

_HOMES = {
    "Task": "edgepipe.tasks.quality",
    "Measure": "edgepipe.tasks.quality",
    "EdgepipeError": "edgepipe.core.errors",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'edgepipe' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES.get(name, "edgepipe.api")), name)
