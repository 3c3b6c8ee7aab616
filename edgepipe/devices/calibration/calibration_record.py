"""The calibration in a device profile: how it was measured, the fitted model, and its held-out errors."""

from typing import Annotated, final

from pydantic import Field

from edgepipe.core.config import Options

NonNegativeSeconds = Annotated[float, Field(ge=0)]
NonNegativeCount = Annotated[int, Field(ge=0)]


@final
class PredictionErrors(Options):
    """Relative errors of predictions for models held out of the fit, as fractions of the measurement."""

    models: NonNegativeCount
    median: Annotated[float, Field(ge=0)]
    p90: Annotated[float, Field(ge=0)]
    worst: Annotated[float, Field(ge=0)]


@final
class GroupErrors(Options):
    """How well one group of the suite is predicted."""

    within: PredictionErrors = Field(description="5-fold: some of its models were in the fit")
    across: PredictionErrors | None = Field(
        description="none of its models was; null if no other group has its kind of operator"
    )


@final
class SuiteMeasurement(Options):
    """Where and how the suite was measured."""

    host: str = Field(description="processor, cores, architecture and system")
    host_digest: str = Field(description="identifies the machine; an estimate for another one says so")
    runtime: str = Field(description="package, version and kernels")
    threads: Annotated[int, Field(ge=1)]
    suite: str = Field(description="effort and seed")
    models: NonNegativeCount = Field(description="models that were measured")
    sustained: Annotated[float, Field(gt=0)] = Field(
        description="slowdown of inferences in runs of 0.3 s relative to the suite's short turns; already applied"
    )
    refused: tuple[str, ...] = Field(default=(), description="models that the device did not run, with the reason")
    at: str = Field(description="ISO 8601, UTC")


@final
class DeviceCalibration(Options):
    """A latency model of a device: the seconds of each term (see `cost_terms`), and the data behind the fit."""

    measured: SuiteMeasurement
    seconds: dict[str, NonNegativeSeconds] = Field(
        description="per unit of each term, as kind.term; terms at 0 are omitted"
    )
    largest: dict[str, dict[str, float]] = Field(description="by kind, the largest amount of each term in the suite")
    within: PredictionErrors = Field(description="every fifth model held out in turn (5-fold), composites only")
    across: PredictionErrors = Field(description="each composite predicted by a fit without its group")
    operators: PredictionErrors = Field(description="every fifth model held out in turn, single operators only")
    groups: dict[str, GroupErrors] = Field(description="by group of the suite")
    interval: tuple[float, float] = Field(
        description="bounds that contain measured / predicted of 90 % of the held-out composites"
    )
