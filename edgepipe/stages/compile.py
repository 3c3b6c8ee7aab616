"""`compile`: compile for an Arm Ethos-U with Vela."""

from typing import Any, ClassVar, final

from pydantic import Field

from edgepipe.core.artifact import Artifact, ArtifactKind, write_bytes
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.core.outcome import Outcome, Table
from edgepipe.devices import device_profile
from edgepipe.devices.device_profile import Device
from edgepipe.devices.vela.vela_result import VelaCompilation
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo, StageContext

MAX_LISTED_LAYERS = 12  # layers that the report shows; the cache keeps all


@final
class Compile(Stage):
    """Compile for an Arm Ethos-U with Vela: operators for the NPU become command streams, the rest stay as they are."""

    accepts: ClassVar = {ArtifactKind.TFLITE: ArtifactKind.VELA}
    tools: ClassVar = ("ethos-u-vela", "ai-edge-litert")

    device: str = Field(description="a device profile with `system.npu.vela`, by name or path to a .yaml")

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """The device exists and has an accelerator that Vela compiles for."""
        device_path = (*path, "device")
        try:
            device = device_profile.load(self.device, pipeline.base_folder)
        except ConfigError as error:
            document.problems.extend(error.problems)
            return
        except InputError as error:
            document.add_problem(device_path, str(error))
            return
        if device.system.npu is None or device.system.npu.vela is None:
            supported_names = ", ".join(
                name
                for name in device_profile.device_names()
                if _has_vela(device_profile.load(name, pipeline.base_folder))
            )
            document.add_problem(
                device_path, f"'{device.name}' has no NPU that Vela compiles for; devices with one: {supported_names}"
            )

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The content of the profile."""
        return {"device": device_profile.digest(device_profile.load(self.device, pipeline.base_folder))}

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Compile, and report what the model costs there and which operators stay on the core.

        Raises:
            InputError: Vela refuses the model or crashes on it; the message names model, accelerator and version.
            ToolError: Vela is not installed.
        """
        from edgepipe.devices.vela import vela_compiler, vela_metrics
        from edgepipe.tflite.reader import read

        device, model = device_profile.load(self.device, context.base_folder), read(context.artifact.path)
        settings = vela_compiler.device_settings(device)
        assert settings is not None, "`check` refuses a device without `system.npu.vela`"
        assert device.system.npu is not None, "it has one"
        compiled_model = vela_compiler.compile_model(model, settings, context.cache)
        path = context.output_folder / f"{device.name}.tflite"
        write_bytes(path, compiled_model.content)
        analysis = vela_metrics.VelaAnalysis(model, device, device.system.npu, compiled_model.compilation)
        return Artifact.from_path(ArtifactKind.VELA, path), Outcome(
            metrics=tuple(analysis.metric(name) for name in vela_metrics.UNIT_BY_METRIC),
            notes=(
                *([compiled_model.cache_note] if compiled_model.cache_note else []),
                *(str(finding) for finding in analysis.fallback_findings),
            ),
            tables=tuple(_compilation_tables(compiled_model.compilation)),
        )


def _has_vela(device: Device) -> bool:
    return device.system.npu is not None and device.system.npu.vela is not None


def _compilation_tables(compilation: VelaCompilation) -> list[Table]:
    memory_rows = [(m.name, m.used, m.traffic, m.bandwidth / 1e9, m.cycles) for m in compilation.memories if m.used]
    slowest_layers = sorted(compilation.layers, key=lambda layer: -layer.cycles)[:MAX_LISTED_LAYERS]
    layer_rows = [
        (layer.operator, layer.operation, layer.cycles, layer.macs, layer.utilisation) for layer in slowest_layers
    ]
    return [
        Table(title="Memories", columns=("memory", "bytes at the peak", "bytes moved", "GB/s at most", "cycles"),
              rows=tuple(memory_rows)),
        Table(title=f"Layers by cycles, of {compilation.cycles:,}",
              columns=("operator", "on the NPU", "cycles", "MACs", "utilisation"), rows=tuple(layer_rows)),
    ]  # fmt: skip
