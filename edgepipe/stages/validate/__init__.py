"""`validate`: the evidence that the deployed model is accurate, small and fast enough. Reads the test split."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, final

from pydantic import Field, PrivateAttr

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.budget import BudgetNames, read_limits
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.core.metric import Limit, Metric, judge
from edgepipe.core.outcome import Outcome
from edgepipe.core.progress import report_step
from edgepipe.core.units import Dimension, plural
from edgepipe.data.split_names import Split
from edgepipe.devices import device_profile
from edgepipe.devices.device_profile import Device
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo, StageContext
from edgepipe.tflite.host_fingerprint import fingerprint


@final
class Validate(Stage):
    """Evaluate on the test split, check integer-only, measure or simulate each device, judge the budget."""

    accepts: ClassVar = {ArtifactKind.TFLITE: ArtifactKind.TFLITE, ArtifactKind.VELA: ArtifactKind.VELA}
    splits: ClassVar = frozenset({Split.TEST})
    tools: ClassVar = ("ai-edge-litert", "tflite-micro", "tensorflow", "keras", "tf_keras", "numpy", "scikit-learn",
                            "zstandard", "ethos-u-vela")  # fmt: skip

    devices: tuple[str, ...] = Field(
        default=("host",), min_length=1, description="device profiles, by name or path to a .yaml"
    )
    budget: dict[str, Any] = Field(
        default_factory=dict,
        description="limits on quality, drops and file metrics; per device on latency, ram, flash, npu_operators",
    )
    against: str | None = Field(
        default=None, description="the stage whose model is the reference for drops; null: the first that trains"
    )
    compared_samples: int = Field(
        default=1000, ge=1, description="test samples that are also run by reference kernels and TFLite Micro (slow)"
    )
    integer_only: bool | None = Field(
        default=None, description="a float operator or tensor fails the run; null: as the devices require"
    )

    _device_by_name: dict[tuple[str, Path], Device] = PrivateAttr(default_factory=dict)

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """The devices and the stages named in the options exist, and every limit of the budget is valid."""
        for index, device_name in enumerate(self.devices):
            if device_name in self.devices[:index]:
                document.add_problem((*path, "devices", index), f"'{device_name}' is listed twice")
            try:
                device = self._load_device(device_name, pipeline.base_folder)
            except ConfigError as error:
                document.problems.extend(error.problems)
            except InputError as error:
                document.add_problem((*path, "devices", index), str(error))
            else:
                self._check_float_layers(document, (*path, "devices", index), pipeline, device)
        if self.against is not None and self.against not in pipeline.earlier_stages:
            allowed_names = ", ".join(pipeline.earlier_stages)
            document.add_problem(
                (*path, "against"), f"no earlier stage is named '{self.against}'; allowed: {allowed_names}"
            )
        read_limits(document, (*path, "budget"), self.budget, self._budget_names(pipeline))

    def _check_float_layers(self, document: Document, path: KeyPath, pipeline: PipelineInfo, device: Device) -> None:
        if pipeline.partly_float_stages and device.integer_only:
            stage_name = pipeline.partly_float_stages[-1]
            document.add_problem(
                path,
                f"{device.name} is for integers only, and '{stage_name}' keeps layers in float (`keep_float_types`, "
                "`keep_float_layers`); quantize them, or remove this device",
            )

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The content of the profiles, and the host whose time is measured."""
        devices = self.load_devices(pipeline.base_folder)
        return {"devices": [device_profile.digest(device) for device in devices], "host": fingerprint().digest}

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Evaluate the model and judge it by the budget."""
        from edgepipe.devices import device_metrics, sparsity_benefit
        from edgepipe.stages.validate import validation_checks
        from edgepipe.tflite.reader import read

        context, input_artifact = _runnable_context(context), context.artifact
        model = read(context.artifact.path)
        devices = self.load_devices(context.base_folder)
        limits = self.read_budget(context.pipeline)
        report_step("evaluating on the test split")
        quality_metrics, agreement_tables, notes = validation_checks.check_quality(
            context, self._reference_stages(limits, context.pipeline), self.compared_samples
        )
        float_findings, integer_metrics, integer_table = validation_checks.check_integers(
            model, is_required=bool(self.integer_only)
        )
        sparsity_metrics, sparsity_tables = validation_checks.measure_sparsity(model)
        zero_findings, zero_tables, zero_notes = validation_checks.check_pruned_zeros(context, model)
        report_step(f"measuring and modelling {plural(len(devices), 'device')}")
        device_results = device_metrics.gather(model, devices, limits, context.cache)
        file_metrics = device_metrics.file_metrics(model)
        metrics = [*quality_metrics, *file_metrics, *integer_metrics, *sparsity_metrics, *device_results.metrics]
        verdicts = [judge(limit, self._judged_metrics(limit, metrics, context.pipeline)) for limit in limits]
        return input_artifact, Outcome(
            metrics=tuple(metrics),
            findings=(*float_findings, *zero_findings, *device_results.findings),
            notes=(
                *notes,
                *zero_notes,
                *_recompilation_notes(input_artifact, devices),
                *device_results.notes,
                *sparsity_benefit.benefit_notes(model, devices, file_metrics),
            ),
            verdicts=tuple(verdicts),
            tables=(*agreement_tables, integer_table, *sparsity_tables, *zero_tables),
        )

    def _budget_names(self, pipeline: PipelineInfo) -> BudgetNames:
        device_names = [Path(device).stem for device in self.devices]
        return BudgetNames(_quality_names(pipeline), device_names, pipeline.earlier_stages)

    def load_devices(self, base_folder: Path) -> list[Device]:
        """The profiles; paths of profiles start from `base_folder`."""
        return [self._load_device(name, base_folder) for name in self.devices]

    def _load_device(self, name: str, base_folder: Path) -> Device:
        """The profile, read once: all of a run sees the same one."""
        if (name, base_folder) not in self._device_by_name:
            self._device_by_name[name, base_folder] = device_profile.load(name, base_folder)
        return self._device_by_name[name, base_folder]

    def read_budget(self, pipeline: PipelineInfo) -> list[Limit]:
        """The limits of the budget."""
        document = Document("budget")
        limits = read_limits(document, (), self.budget, self._budget_names(pipeline))
        document.raise_problems()
        return limits

    def _reference_stage(self, pipeline: PipelineInfo) -> str:
        return self.against or next(iter(pipeline.training_stages), pipeline.earlier_stages[0])

    def _reference_stages(self, limits: list[Limit], pipeline: PipelineInfo) -> list[str]:
        return list(
            dict.fromkeys([self._reference_stage(pipeline), *(limit.against for limit in limits if limit.against)])
        )

    def _judged_metrics(self, limit: Limit, metrics: list[Metric], pipeline: PipelineInfo) -> list[Metric]:
        # Drops against several stages share a name; a limit is for the one against its own stage.
        reference_stage = limit.against or self._reference_stage(pipeline)
        return [metric for metric in metrics if metric.details.get("against", reference_stage) == reference_stage]


def _runnable_context(context: StageContext) -> StageContext:
    """`context` with the .tflite that a compiled model was compiled from: no runtime here runs NPU command streams."""
    if context.artifact.kind is not ArtifactKind.VELA:
        return context
    tflite_artifacts = [a for a in context.earlier_artifacts.values() if a.kind is ArtifactKind.TFLITE]
    return replace(context, input_artifact=tflite_artifacts[-1])


def _recompilation_notes(artifact: Artifact, devices: list[Device]) -> list[str]:
    """A note if Ethos-U devices were judged by another compilation than the one of `compile`."""
    compiled_device_name = artifact.path.stem  # `compile` names its file after the device
    vela_device_names = [device.name for device in devices if device.system.npu and device.system.npu.vela]
    other_devices_text = ", ".join(name for name in vela_device_names if name != compiled_device_name)
    if artifact.kind is not ArtifactKind.VELA or not other_devices_text:
        return []
    return [
        f"the model was compiled for {compiled_device_name}; {other_devices_text}: judged by a compilation of its own"
    ]


def _quality_names(pipeline: PipelineInfo) -> dict[str, tuple[Dimension, bool]] | None:
    if pipeline.task is None or pipeline.task.function is not None:
        return None
    return {name: (measure.unit, measure.higher_is_better) for name, measure in pipeline.task.measures.items()}
