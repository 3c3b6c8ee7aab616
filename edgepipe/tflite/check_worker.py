"""Worker of `interpreter.check_runs`, in the sandbox: loads a model and runs it once on zeros."""

from pathlib import Path

from edgepipe.tflite import graph
from edgepipe.tflite.child import Json
from edgepipe.tflite.interpreter import Runtime, open_once


def work(request: Json) -> Json:
    """`path` and `runtime` in, nothing out."""
    open_once(graph.read(Path(request["path"])), Runtime(request["runtime"]), threads=1)
    return {}
