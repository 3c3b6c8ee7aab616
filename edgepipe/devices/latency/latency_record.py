"""A fitted latency model as stored in a profile: rates, their uncertainty, the data behind them, held-out errors."""

import re
from typing import Annotated, Literal, final

from pydantic import Field, field_validator, model_validator

from edgepipe.core.config import Options
from edgepipe.devices.latency.processor_kinds import PROCESSOR_KINDS

_SHAPE_PATTERN = re.compile(r"[1-9]\d{0,9}(x[1-9]\d{0,9}){3}")
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


@final
class FamilyError(Options):
    """Errors for the models of one family, predicted by a fit without them."""

    points: Annotated[int, Field(ge=1)]
    median: NonNegativeFloat = Field(description="of the absolute relative errors")
    worst: NonNegativeFloat


@final
class HeldOutError(Options):
    """Errors for all models, each predicted by a fit without its family."""

    points: Annotated[int, Field(ge=1)]
    median: NonNegativeFloat = Field(description="of the absolute relative errors")
    p90: NonNegativeFloat
    worst: NonNegativeFloat
    families: dict[str, FamilyError]


@final
class LatencyFit(Options):
    """Rates of the features in `edgepipe.devices.latency.feature_names`, in seconds per unit at `clock`."""

    source: str = Field(description="where the measurements come from")
    kind: str = Field(description="the kind of processor, in edgepipe.devices.latency.processor_kinds")
    dtype: Literal["int8", "float32"] = Field(description="activation type of the fitted models")
    clock: PositiveFloat = Field(description="of the fitted device, in hertz")
    on_chip: Annotated[int, Field(gt=0)] | None = Field(
        default=None,
        description="number of weights that fit on the chip; larger models read theirs from off-chip memory",
    )
    points: Annotated[int, Field(ge=1)] = Field(description="measurements of this device and runtime")
    neighbours: tuple[str, ...] = Field(default=(), description="devices and runtimes in the same fit")
    rates: dict[str, PositiveFloat] = Field(description="seconds per unit of each feature")
    covariance: tuple[tuple[float, ...], ...] = Field(
        description="of the logarithms of the rates, in order: the lower triangle, row by row"
    )
    noise: PositiveFloat = Field(description="standard deviation of the log error of a measurement")
    factor: PositiveFloat = Field(description="half width of the interval in standard deviations")
    rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of unseen models whose latency is in the interval"
    )
    error: HeldOutError | None = Field(default=None, description="null: a single family, so none could be held out")
    operators: tuple[str, ...] = Field(description="the operators of the fitted models")
    layers: dict[str, str] = Field(
        description="their layers by kind: input channels x output channels x positions x kernel size of each"
    )
    largest: dict[str, PositiveFloat] = Field(description="largest amount of each feature in a fitted model")
    seconds: tuple[PositiveFloat, PositiveFloat] = Field(description="shortest and longest measured latency")

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: dict[str, str]) -> dict[str, str]:
        for kind, text in layers.items():
            for shape_text in text.split():
                if not _SHAPE_PATTERN.fullmatch(shape_text):
                    raise ValueError(f"{kind}: '{shape_text[:40]}' is not four sizes, such as 16x32x196x9")
        return layers

    @model_validator(mode="after")
    def _check_kind(self) -> "LatencyFit":
        if self.kind not in PROCESSOR_KINDS:
            raise ValueError(f"kind '{self.kind}' is unknown; allowed: {', '.join(PROCESSOR_KINDS)}")
        if tuple(self.rates) != PROCESSOR_KINDS[self.kind].feature_names:
            raise ValueError(
                f"`rates` must be those of {self.kind}: {', '.join(PROCESSOR_KINDS[self.kind].feature_names)}"
            )
        if [len(row) for row in self.covariance] != list(range(1, len(self.rates) + 1)):
            raise ValueError(f"`covariance` must be a lower triangle of {len(self.rates)} rows")
        return self
