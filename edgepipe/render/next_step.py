"""How a report ends: the one file to deploy, its size, and the command of the next step."""

import shlex
from pathlib import Path

from edgepipe.core import units
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.units import Dimension
from edgepipe.render.report import Report


def closing_lines(report: Report) -> list[str]:
    """The last lines of a report, after the verdict."""
    if report.model is None:
        return [_describe_missing_model(report)] if report.definition is not None else []
    path = report.model_path or Path(report.model)
    return [f"model to deploy: {path}{size_text(report)}", f"next: {next_command(report, path)}"]


def _describe_missing_model(report: Report) -> str:
    kind = report.stages[-1].kind
    return f"no model to deploy: the pipeline ends with a model of kind {kind}; a .tflite needs the stage `convert`"


def size_text(report: Report) -> str:
    """The size of the deployed model in parentheses, or nothing."""
    sizes = [metric.value for stage in report.stages if (metric := stage.metric("size")) is not None]
    return f" ({units.show(sizes[-1], Dimension.BYTES)})" if sizes and sizes[-1] is not None else ""


def next_command(report: Report, model_path: Path) -> str:
    """The command that comes after the run: `verify` on the devices it was validated for, else `profile`."""
    devices = [
        device
        for stage in report.stages
        if stage.type == "validate"
        for device in stage.options.get("devices", ())
        if device != "host"
    ]
    if not devices or report.stages[-1].kind is ArtifactKind.VELA:
        return shlex.join(["edgepipe", "profile", str(model_path)])
    device_options = [word for device in dict.fromkeys(devices) for word in ("--device", str(device))]
    return shlex.join(["edgepipe", "verify", str(model_path), *device_options])
