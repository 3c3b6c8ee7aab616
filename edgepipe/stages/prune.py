"""`prune`: remove weights or channels that matter least, and train what is left."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

from pydantic import AfterValidator, Field, model_validator

from edgepipe.core.artifact import Artifact, Kind
from edgepipe.core.config import Document, Options, Path_, Quantity
from edgepipe.core.errors import EdgepipeError
from edgepipe.core.outcome import Outcome
from edgepipe.core.units import Dimension
from edgepipe.devices import device_profile
from edgepipe.stages.base import Expression, TrainingStage, Work, World

if TYPE_CHECKING:
    from edgepipe.compress.pruning.saliency import Settings
    from edgepipe.compress.pruning.sparsity_schedule import Schedule


Count = Annotated[float, Quantity(Dimension.COUNT), Field(gt=0)]
Bytes = Annotated[float, Quantity(Dimension.BYTES), Field(gt=0)]
Seconds = Annotated[float, Quantity(Dimension.SECONDS), Field(gt=0)]
Fraction = Annotated[float, Quantity(Dimension.FRACTION), Field(gt=0)]


def _granularity(text: str) -> str:
    if text != "channel":
        from edgepipe.compress.pruning.granularity import parse

        parse(text)
    return text


@final
class Target(Options):
    """What the pruned model is to cost at most; exactly one of the four."""

    parameters: Count | None = Field(default=None, description="weights that are not zero, as 20 k")
    macs: Count | None = Field(default=None, description="multiply-accumulates of one inference, as 2 M; channels only")
    flash: Bytes | None = Field(default=None, description="bytes of the int8 .tflite, as 64 KiB; channels only")
    latency: Seconds | None = Field(
        default=None, description="seconds of one inference on `device`, as 5 ms; channels only"
    )
    device: str | None = Field(default=None, description="the device profile that latency is for")

    @model_validator(mode="after")
    def _one(self) -> "Target":
        given = [name for name in ("parameters", "macs", "flash", "latency") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of parameters, macs, flash, latency; found {' and '.join(given) or 'none'}"
            )
        if (self.latency is None) != (self.device is None):
            raise ValueError("`latency` and `device` go together: the time of which device")
        return self


@final
class LayerOptions(Options):
    """What holds for some layers only."""

    sparsity: float | None = Field(default=None, ge=0, lt=1, description="the share of zeros, or of channels, there")


@final
class Prune(TrainingStage):
    """Remove the weights or channels that matter least, by a schedule or in rounds, and train what is left."""

    accepts: ClassVar = {Kind.KERAS: Kind.FLOAT, Kind.FLOAT: Kind.FLOAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")

    sparsity: float | None = Field(
        default=None, gt=0, lt=1, description="share that goes, of weights or channels; null takes 0.5 or what N:M says"
    )
    target: Target | None = Field(default=None, description="instead of a share: what the model is to cost at most")
    granularity: Annotated[str, AfterValidator(_granularity)] = Field(
        default="weight", description="what goes together: weight, `block 1x4` (outputs x inputs), `2:4`, or channel"
    )
    saliency: Literal["magnitude", "taylor", "obd", "taylor2", "random"] = Field(
        default="magnitude",
        description="what matters: |w|; |g w|; h w^2/2 (Optimal Brain Damage); h w^2/2 - g w; or nothing",
    )
    hessian: Literal["auto", "exact", "hutchinson", "gauss_newton"] = Field(
        default="auto", description="how obd and taylor2 take h; auto: exact up to 4096 weights, else gauss_newton"
    )
    probes: int = Field(default=32, ge=2, description="random vectors of an estimate of h")
    saliency_samples: int = Field(default=1024, ge=1, description="training samples that saliency is taken on")
    distribution: Literal["uniform", "erk", "global", "per_mac"] | None = Field(
        default=None,
        description="how it is spread over layers; null: uniform, or for channels the best of uniform, global, per_mac",
    )
    schedule: Literal["one_shot", "constant", "polynomial", "cubic", "iterative"] = Field(
        default="polynomial", description="when it goes: at once, along a curve, or in rounds of pruning and training"
    )
    initial_sparsity: float = Field(default=0.0, ge=0, lt=1, description="where polynomial and cubic begin")
    power: float = Field(default=3.0, gt=0, description="exponent of the polynomial schedule")
    ramp: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="share of the steps over which polynomial and cubic grow; the rest recovers",
    )
    rounds: int = Field(default=5, ge=1, description="of iterative: rounds to the target, each training for `epochs`")
    max_drop: Fraction | None = Field(
        default=None, description="of iterative: the validation quality that may be lost, as 1 point; then it stops"
    )
    min_quality: Fraction | None = Field(
        default=None, description="of iterative: the validation quality that must be held, as 95 %; else it stops"
    )
    multiple_of: int = Field(default=1, ge=1, description="of channel: layers keep a multiple of this many channels")
    exclude_last: bool = Field(default=True, description="leave the last convolution or dense layer alone")
    types: dict[str, LayerOptions | None] = Field(
        default_factory=dict, description="by layer class: `{Conv2D: {sparsity: 0.9}}`; null leaves the class alone"
    )
    layers: dict[Expression, LayerOptions | None] = Field(
        default_factory=dict, description='by name, a regular expression: `{"block_1_.*": null}`'
    )

    @model_validator(mode="after")
    def _agree(self) -> "Prune":
        for wrong in filter(None, (rule(self) for rule in _RULES)):
            raise ValueError(wrong)
        return self

    @property
    def share(self) -> float:
        """The share that is asked for, where no target is."""
        kept, _, group = self.granularity.partition(":")
        return 1 - int(kept) / int(group) if group else self.sparsity or 0.5

    def check(self, document: Document, path: Path_, world: World) -> None:
        """Teachers exist; so does the device of a latency target, and it can tell latency."""
        super().check(document, path, world)
        if self.target is None or self.target.device is None:
            return
        try:
            latency = device_profile.load(self.target.device, world.base).latency
        except EdgepipeError as error:
            document.problem((*path, "target", "device"), str(error))
            return
        if latency.by is None:
            document.problem((*path, "target", "device"), f"its latency is unavailable: {latency.reason}")

    def key(self, world: World) -> dict[str, Any]:
        """The profile of the device that a latency target is for, and the host that is measured."""
        taught = super().key(world)
        if self.target is None or self.target.device is None:
            return taught
        from edgepipe.tflite.host_fingerprint import fingerprint

        device = device_profile.load(self.target.device, world.base)
        return {**taught, "device": device_profile.digest(device), "host": fingerprint().digest}

    def run(self, work: Work) -> tuple[Artifact, Outcome]:
        """Prune, train, and count what is left."""
        from edgepipe.stages import channel_pruning, weight_pruning
        from edgepipe.training.training_loop import seeded

        seeded(work.seed)
        return channel_pruning.run(self, work) if self.granularity == "channel" else weight_pruning.run(self, work)

    def settings(self) -> "Settings":
        """The saliency that is asked for."""
        from edgepipe.compress.pruning.saliency import Settings

        return Settings(self.saliency, self.hessian, self.probes, self.saliency_samples)

    def when(self, final: float) -> "Schedule":
        """The schedule, for a share `final` that goes in the end."""
        from edgepipe.compress.pruning.sparsity_schedule import Schedule

        return Schedule(
            self.schedule, min(self.initial_sparsity / final, 1.0) if final else 0.0, self.power, self.ramp, self.rounds
        )


def _two_targets(prune: Prune) -> str:
    return "sparsity and target exclude each other" if prune.sparsity is not None and prune.target else ""


def _pattern(prune: Prune) -> str:
    own = [
        option for option in (*prune.types.values(), *prune.layers.values()) if option and option.sparsity is not None
    ]
    given = prune.target is not None or prune.sparsity not in (None, prune.share)
    if ":" not in prune.granularity or not (given or own):
        return ""
    return f"{prune.granularity} says how many weights go ({prune.share:.0%}): leave sparsity and target out"


def _channels_only(prune: Prune) -> str:
    if prune.granularity == "channel":
        return ""
    given = [name for name in ("macs", "flash", "latency") if prune.target and getattr(prune.target, name) is not None]
    if given:
        return f"zeros in a kernel save no {given[0]}: a target in {given[0]} needs `granularity: channel`"
    if prune.multiple_of > 1 or prune.distribution == "per_mac":
        return "multiple_of and `distribution: per_mac` are for `granularity: channel`"
    return ""


def _no_erk(prune: Prune) -> str:
    return "erk is for zeros in kernels; for channels: uniform, global, per_mac" if (
        prune.granularity == "channel" and prune.distribution == "erk"
    ) else ""  # fmt: skip


def _rounds_only(prune: Prune) -> str:
    given = [name for name in ("max_drop", "min_quality") if getattr(prune, name) is not None]
    return f"{given[0]} needs `schedule: iterative`" if given and prune.schedule != "iterative" else ""


def _grows(prune: Prune) -> str:
    if prune.initial_sparsity == 0:
        return ""
    if prune.schedule not in ("polynomial", "cubic"):
        return "initial_sparsity is where polynomial and cubic begin"
    if prune.target is None and prune.initial_sparsity >= prune.share:
        return f"initial_sparsity ({prune.initial_sparsity}) must be below sparsity ({prune.share:g})"
    return ""


_RULES = (_two_targets, _pattern, _channels_only, _no_erk, _rounds_only, _grows)
