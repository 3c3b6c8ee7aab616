"""A fitted latency model as a profile stores it: rates, how sure they are, what they were fitted to, how well."""

from typing import Annotated, Literal, final

from pydantic import Field, model_validator

from edgepipe.core.config import Options
from edgepipe.devices.latency.processor_kinds import KINDS

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


@final
class FamilyError(Options):
    """How well the models of one family were predicted by a fit without them."""

    points: Annotated[int, Field(ge=1)]
    median: NonNegativeFloat = Field(description="of the absolute relative errors")
    worst: NonNegativeFloat


@final
class HeldOutError(Options):
    """How well models were predicted by a fit without their family."""

    points: Annotated[int, Field(ge=1)]
    median: NonNegativeFloat = Field(description="of the absolute relative errors")
    p90: NonNegativeFloat
    worst: NonNegativeFloat
    families: dict[str, FamilyError]


@final
class LatencyFit(Options):
    """Prices of the features of `edgepipe.devices.latency.feature_names`, in seconds a unit at `clock`."""

    source: str = Field(description="where the measurements come from")
    kind: str = Field(description="the kind of processor, in edgepipe.devices.latency.processor_kinds")
    dtype: Literal["int8", "float32"] = Field(description="what the activations of the fitted models are")
    clock: PositiveFloat = Field(description="of the fitted device, in hertz")
    on_chip: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="weights that the chip holds; more are read from outside"
    )
    points: Annotated[int, Field(ge=1)] = Field(description="measurements of this device and runtime")
    neighbours: tuple[str, ...] = Field(default=(), description="devices and runtimes fitted together with this one")
    rates: dict[str, PositiveFloat] = Field(description="seconds for one unit of each feature")
    covariance: tuple[tuple[float, ...], ...] = Field(
        description="of the logarithms of the rates, in their order: the lower triangle, row by row"
    )
    noise: PositiveFloat = Field(description="standard deviation of the logarithm of a measurement about the model")
    factor: PositiveFloat = Field(description="standard deviations to both sides that make the interval")
    rate: Annotated[float, Field(gt=0, lt=1)] = Field(description="share of unseen models whose latency lies inside")
    error: HeldOutError | None = Field(default=None, description="null: a single family, none could be held out")
    operators: tuple[str, ...] = Field(description="the operators that some fitted model computes with")
    largest: dict[str, PositiveFloat] = Field(description="the most of each feature that a fitted model has")
    seconds: tuple[PositiveFloat, PositiveFloat] = Field(description="the shortest and the longest measured latency")

    @model_validator(mode="after")
    def _check_kind(self) -> "LatencyFit":
        if self.kind not in KINDS:
            raise ValueError(f"kind '{self.kind}' is unknown; allowed: {', '.join(KINDS)}")
        if tuple(self.rates) != KINDS[self.kind].feature_names:
            raise ValueError(f"`rates` must be those of {self.kind}: {', '.join(KINDS[self.kind].feature_names)}")
        if [len(row) for row in self.covariance] != list(range(1, len(self.rates) + 1)):
            raise ValueError(f"`covariance` must be a lower triangle of {len(self.rates)} rows")
        return self
