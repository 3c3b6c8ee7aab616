"""Worker of `interpreter.check_runs`, in the sandbox: loads a model and runs it once on zeros."""

from pathlib import Path

from edgepipe.tflite import reader
from edgepipe.tflite.child_process import Json
from edgepipe.tflite.interpreter import Runtime, run_on_zeros


def handle_request(request: Json) -> Json:
    """`path` and `runtime` in, nothing out."""
    run_on_zeros(reader.read(Path(request["path"])), Runtime(request["runtime"]), threads=1)
    return {}
