"""`deploy`: put the model onto devices, and bring back what they measured."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar, Literal, final

from pydantic import Field

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.config import Document, KeyPath, Quantity
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.core.metric import Finding, Judgement, Limit, judge_all
from edgepipe.core.outcome import Outcome
from edgepipe.core.units import Dimension
from edgepipe.data.split_names import Split
from edgepipe.deploy import board_check
from edgepipe.deploy.target_url import parse_url
from edgepipe.devices.device_profile import Device
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo, StageContext


@final
class Deploy(Stage):
    """Deploy to devices: stage, read back, prove with golden vectors, switch; never taken from the cache."""

    accepts: ClassVar = {ArtifactKind.TFLITE: ArtifactKind.TFLITE}
    splits: ClassVar = frozenset({Split.VALIDATION})  # inputs of the golden vectors
    tools: ClassVar = ("ai-edge-litert", "paramiko")
    always_runs: ClassVar = True

    to: tuple[str, ...] = Field(min_length=1, description="addresses, such as ssh://pi@raspberrypi/home/pi/app")
    device: str | None = Field(default=None, description="profile of the boards, by name or path to a .yaml")
    latency: Annotated[float, Quantity(Dimension.SECONDS), Field(gt=0)] | None = Field(
        default=None, description="the most that the median of an inference may take there, such as 20 ms"
    )
    ram: Annotated[float, Quantity(Dimension.BYTES), Field(gt=0)] | None = Field(
        default=None, description="the most that loading and running the model may add to the process's memory"
    )
    samples: int = Field(default=200, ge=1, description="the most golden vectors, drawn from the validation split")
    tolerance: int | None = Field(
        default=None,
        ge=0,
        description="the largest difference in LSB that passes; null: as kernels here differ",
    )
    threads: int = Field(default=1, ge=1, description="of the interpreter there")
    stage_only: bool = Field(default=False, description="stage and prove the model, but do not switch to it")
    even_if_not_met: bool = Field(
        default=False, description="deploy although an earlier stage's limit or rule is not met"
    )
    keep: int = Field(default=5, ge=1, description="complete versions that stay on a device")
    canary: int = Field(default=1, ge=0, description="devices that go first; if one fails, no other is touched")
    parallel: int = Field(default=8, ge=1, description="devices at a time")
    max_failures: Annotated[float, Quantity(Dimension.FRACTION), Field(ge=0, le=1)] = Field(
        default=0.2, description="share of the devices that may fail before no further one is begun, such as 20 %"
    )
    wait: Annotated[float, Quantity(Dimension.SECONDS), Field(ge=0)] = Field(
        default=120.0, description="how long to wait for a device that another deployment works on"
    )
    python: str = Field(default="python3", description="the Python on the devices")
    install: bool = Field(default=False, description="install the runtime there where it is missing")

    benchmark_model: str | None = Field(default=None, description="of adb: the benchmark tool for Android; null: none")
    delegate: Literal["cpu", "xnnpack", "gpu", "nnapi", "npu"] = Field(
        default="xnnpack", description="of adb: what must run the whole model"
    )

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """The addresses are well-formed, none is given twice, and the profile is of a board with a system."""
        for index, address in enumerate(self.to):
            self._add_problem(document, (*path, "to", index), partial(parse_url, address))
            if address in self.to[:index]:
                document.add_problem((*path, "to", index), f"'{address}' is listed twice")
        self._add_problem(document, (*path, "device"), lambda: self._load_profile(pipeline))

    def _add_problem(self, document: Document, path: KeyPath, action: Callable[[], object]) -> None:
        try:
            action()
        except ConfigError as error:
            document.problems.extend(error.problems)
        except InputError as error:
            document.add_problem(path, str(error))

    def _load_profile(self, pipeline: PipelineInfo) -> Device | None:
        return board_check.load_board(self.device, pipeline.base_folder)

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Deploy, unless an earlier stage was not met.

        Raises:
            ToolError: no device could be reached or used.
        """
        if reason := "" if self.even_if_not_met else _refusal_reason(context):
            finding = Finding(
                rule="deployed", place=", ".join(self.to), observed=f"not deployed: {reason}",
                suggestion="meet the limits, mark them `optional`, or set `even_if_not_met: true`",
            )  # fmt: skip
            return context.artifact, Outcome(findings=(finding,))
        return context.artifact, self._deploy(context)

    def _deploy(self, context: StageContext) -> Outcome:
        from edgepipe.deploy import fleet_outcome
        from edgepipe.deploy.android_proof import AndroidOptions
        from edgepipe.deploy.backends import ConnectionOptions
        from edgepipe.deploy.deployment import deploy
        from edgepipe.deploy.fleet import FleetOptions, work_on_all
        from edgepipe.deploy.golden_vectors import GoldenOptions, build_golden_vectors
        from edgepipe.deploy.health_check import MeasurementOptions
        from edgepipe.deploy.proof import DeploymentOptions, Package
        from edgepipe.tflite import reader

        samples = context.splits.validation.x if context.splits is not None else None
        golden_options = GoldenOptions(samples, self.samples, self.tolerance)
        golden = build_golden_vectors(reader.read(context.artifact.path), golden_options)
        package = Package(context.artifact.path.name, context.artifact.path.read_bytes(), golden)
        tool_path = context.base_folder / self.benchmark_model if self.benchmark_model is not None else None
        options = DeploymentOptions(
            stage_only=self.stage_only, keep=self.keep, wait_seconds=self.wait, install=self.install,
            limits=self._limits(), profile=self._load_profile(context.pipeline),
            measurement=MeasurementOptions(threads=self.threads),
            android=AndroidOptions(tool_path, self.delegate),
        )  # fmt: skip
        notify = context.progress.note
        outcomes = work_on_all(
            [parse_url(address) for address in self.to],
            lambda device, _: deploy(device, package, options, notify),
            ConnectionOptions(self.python),
            FleetOptions(self.canary, self.parallel, self.max_failures),
            notify,
        )
        return fleet_outcome.build_outcome(outcomes, golden)

    def _limits(self) -> tuple[Limit, ...]:
        values = (("latency", Dimension.SECONDS, self.latency), ("ram", Dimension.BYTES, self.ram))
        return tuple(
            Limit(metric=name, unit=unit, bound="max", value=value) for name, unit, value in values if value is not None
        )


def _refusal_reason(context: StageContext) -> str:
    """What earlier stages did not meet; empty if they met all."""
    unmet_texts = [
        f"'{name}' is {judgement}"
        for name, outcome in context.earlier_outcomes.items()
        if (judgement := judge_all(outcome.verdicts, outcome.findings)) is not Judgement.MET
    ]
    return ", ".join(unmet_texts)
