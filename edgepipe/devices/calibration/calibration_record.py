"""What a calibration leaves in a device profile: how it was measured, the fitted model, and how good that is."""

from typing import Annotated, final

from pydantic import Field

from edgepipe.core.config import Options

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


@final
class PredictionErrors(Options):
    """How far predictions lay from measurements that the fit had not seen, as fractions of these."""

    models: Count
    median: Annotated[float, Field(ge=0)]
    p90: Annotated[float, Field(ge=0)]
    worst: Annotated[float, Field(ge=0)]


@final
class GroupErrors(Options):
    """How well one group of the suite is predicted."""

    within: PredictionErrors = Field(description="5-fold: some of its models were in the fit")
    across: PredictionErrors | None = Field(
        description="none of them was; null where its kind of operator is nowhere else"
    )


@final
class SuiteMeasurement(Options):
    """Where, with what and how the suite was measured."""

    host: str = Field(description="processor, cores, architecture and system")
    host_digest: str = Field(description="identifies the machine; an estimate for another one says so")
    runtime: str = Field(description="package, version and kernels")
    threads: Annotated[int, Field(ge=1)]
    suite: str = Field(description="effort and seed")
    models: Count = Field(description="that were measured")
    sustained: Annotated[float, Field(gt=0)] = Field(
        description="how many times longer inferences took in runs of 0.3 s than in the suite's short turns; applied"
    )
    refused: tuple[str, ...] = Field(default=(), description="models that the device did not run, with its reason")
    at: str = Field(description="ISO 8601, UTC")


@final
class DeviceCalibration(Options):
    """A latency model of a device: the seconds of each term (see `features`), and what it was fitted on."""

    measured: SuiteMeasurement
    seconds: dict[str, Seconds] = Field(description="of each unit of a term, as kind.term; terms at 0 are left out")
    largest: dict[str, dict[str, float]] = Field(description="by kind, the largest value of each term in the suite")
    within: PredictionErrors = Field(description="every fifth model held out in turn (5-fold), composites only")
    across: PredictionErrors = Field(description="each composite predicted by a fit that saw none of its group")
    operators: PredictionErrors = Field(description="every fifth model held out in turn, single operators only")
    groups: dict[str, GroupErrors] = Field(description="by group of the suite")
    interval: tuple[float, float] = Field(
        description="measured / predicted of held-out composites: the bounds that 90 % of them lie between"
    )
