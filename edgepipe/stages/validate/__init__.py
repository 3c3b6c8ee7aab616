"""`validate`: the evidence that the deployed model is right, small enough and fast enough. Reads the test split."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, final

from pydantic import Field

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.budget import BudgetNames, read_limits
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.core.metric import Limit, Metric, judge
from edgepipe.core.outcome import Outcome
from edgepipe.core.units import Dimension
from edgepipe.data.splits import Split
from edgepipe.devices import device_profile
from edgepipe.devices.device_profile import Device
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo, StageContext
from edgepipe.tflite.host_fingerprint import fingerprint


@final
class Validate(Stage):
    """Take quality on the test split, prove integer-only, measure or simulate each device, judge the budget."""

    accepts: ClassVar = {ArtifactKind.TFLITE: ArtifactKind.TFLITE, ArtifactKind.VELA: ArtifactKind.VELA}
    splits: ClassVar = frozenset({Split.TEST})
    tools: ClassVar = ("ai-edge-litert", "tflite-micro", "tensorflow", "keras", "tf_keras", "numpy", "scikit-learn",
                            "zstandard", "ethos-u-vela")  # fmt: skip

    devices: tuple[str, ...] = Field(
        default=("host",), min_length=1, description="device profiles, by name or path to a .yaml"
    )
    budget: dict[str, Any] = Field(
        default_factory=dict,
        description="limits on quality, drops and facts, and per device on latency, ram, flash, npu_operators",
    )
    against: str | None = Field(
        default=None, description="the stage whose model quality is compared with; null takes the first that trains"
    )
    compared_samples: int = Field(
        default=1000, ge=1, description="test samples that are also run by reference kernels and TFLite Micro (slow)"
    )
    integer_only: bool | None = Field(
        default=None, description="a float operator or tensor breaks the run; null leaves it to the devices"
    )

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """Devices exist, every line of the budget can be read, stages that are pointed to exist."""
        for index, device in enumerate(self.devices):
            if device in self.devices[:index]:
                document.add_problem((*path, "devices", index), f"'{device}' stands twice")
            try:
                loaded = device_profile.load(device, pipeline.base_folder)
            except ConfigError as error:
                document.problems.extend(error.problems)
            except InputError as error:
                document.add_problem((*path, "devices", index), str(error))
            else:
                self._check_floats(document, (*path, "devices", index), pipeline, loaded)
        if self.against is not None and self.against not in pipeline.earlier_stages:
            known = ", ".join(pipeline.earlier_stages)
            document.add_problem((*path, "against"), f"no earlier stage is named '{self.against}'; allowed: {known}")
        read_limits(document, (*path, "budget"), self.budget, self._known(pipeline))

    def _check_floats(self, document: Document, path: KeyPath, pipeline: PipelineInfo, device: Device) -> None:
        if pipeline.partly_float_stages and device.integer_only:
            what = (
                f"{device.name} is for integers only, and '{pipeline.partly_float_stages[-1]}' leaves layers in float"
            )
            document.add_problem(path, f"{what} (`types`, `layers`); quantize them, or take this device out")

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The content of the profiles, and the host whose time is measured."""
        loaded = [device_profile.load(device, pipeline.base_folder) for device in self.devices]
        return {"devices": [device_profile.digest(device) for device in loaded], "host": fingerprint().digest}

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Everything that can be known of the model before it is flashed."""
        from edgepipe.devices import device_metrics, sparsity_benefit
        from edgepipe.stages.validate import validation_checks
        from edgepipe.tflite.reader import read

        context, given = _runnable(context), context.artifact
        model = read(context.artifact.path)
        devices = [device_profile.load(device, context.base_folder) for device in self.devices]
        limits = self._limits(context.pipeline)
        quality, agreement, notes = validation_checks.quality(
            context, self._references(limits, context.pipeline), self.compared_samples
        )
        offenders, integer, integer_table = validation_checks.integer(model, demanded=bool(self.integer_only))
        sparsity, sparsity_tables = validation_checks.sparsity(model)
        lost, pruned_tables, unchecked = validation_checks.pruned(context, model)
        on_devices = device_metrics.gather(model, devices, limits, context.cache)
        counts = device_metrics.file_metrics(model)
        metrics = [*quality, *counts, *integer, *sparsity, *on_devices.metrics]
        verdicts = [judge(limit, self._comparable(limit, metrics, context.pipeline)) for limit in limits]
        return given, Outcome(
            metrics=tuple(metrics),
            findings=(*offenders, *lost, *on_devices.findings),
            notes=(
                *notes,
                *unchecked,
                *_elsewhere(given, devices),
                *on_devices.notes,
                *sparsity_benefit.notes(model, devices, counts),
            ),
            verdicts=tuple(verdicts),
            tables=(*agreement, integer_table, *sparsity_tables, *pruned_tables),
        )

    def _known(self, pipeline: PipelineInfo) -> BudgetNames:
        names = [Path(device).stem for device in self.devices]
        return BudgetNames(_quality_names(pipeline), names, pipeline.earlier_stages)

    def _limits(self, pipeline: PipelineInfo) -> list[Limit]:
        document = Document("budget")
        found = read_limits(document, (), self.budget, self._known(pipeline))
        document.raise_problems()
        return found

    def _origin(self, pipeline: PipelineInfo) -> str:
        return self.against or next(iter(pipeline.training_stages), pipeline.earlier_stages[0])

    def _references(self, limits: list[Limit], pipeline: PipelineInfo) -> list[str]:
        return list(dict.fromkeys([self._origin(pipeline), *(limit.against for limit in limits if limit.against)]))

    def _comparable(self, limit: Limit, metrics: list[Metric], pipeline: PipelineInfo) -> list[Metric]:
        # Drops from several stages share a name; the limit means the one counted from its own `against`.
        origin = limit.against or self._origin(pipeline)
        return [metric for metric in metrics if metric.details.get("against", origin) == origin]


def _runnable(context: StageContext) -> StageContext:
    """`context` on the .tflite that a compiled model was made of: no runtime here executes command streams for an NPU."""
    if context.artifact.kind is not ArtifactKind.VELA:
        return context
    origin = [artifact for artifact in context.earlier_artifacts.values() if artifact.kind is ArtifactKind.TFLITE][-1]
    return replace(context, input_artifact=origin)


def _elsewhere(given: Artifact, devices: list[Device]) -> list[str]:
    """A note for each Ethos-U for which another model than the compiled one was judged."""
    made_for = given.path.stem  # `compile` names its model so
    ethos = [device.name for device in devices if device.system.npu is not None and device.system.npu.vela is not None]
    others = [name for name in ethos if name != made_for]
    if given.kind is not ArtifactKind.VELA or not others:
        return []
    return [f"the model was compiled for {made_for}; {', '.join(others)}: judged by a compilation of its own"]


def _quality_names(pipeline: PipelineInfo) -> dict[str, tuple[Dimension, bool]] | None:
    if pipeline.task is None or pipeline.task.function is not None:
        return None
    return {name: (info.unit, info.higher_is_better) for name, info in pipeline.task.measures.items()}
