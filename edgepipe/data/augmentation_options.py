"""`augment:` of a dataset: random changes of training samples, parsed without importing anything heavy.

Changes apply in one order, whatever the order in the file: waveform (shift, gain, noise), geometry (flip, crop,
rotate), rand_augment, values (scale, rotation, jitter), masks (spec_augment, cutout) and mixing (mixup or cutmix).
"""

from typing import Annotated, Literal, final

from pydantic import AfterValidator, Field, model_validator

from edgepipe.core.config import Options, Quantity
from edgepipe.core.units import Dimension


def _check_rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"a range [min, max] must rise; found [{pair[0]:g}, {pair[1]:g}]")
    return pair


Angle = Annotated[float, Field(gt=0, le=180)]
Seconds = Annotated[float, Quantity(Dimension.SECONDS)]
Decibel = Annotated[float, Field(ge=-100, le=100)]
DecibelRange = Annotated[tuple[Decibel, Decibel], AfterValidator(_check_rising)]
SOUND_OPTION_NAMES = ("shift", "gain", "noise")
IMAGE_OPTION_NAMES = ("flip", "crop", "rotate", "rand_augment", "cutout", "cutmix")
SPECTROGRAM_OPTION_NAMES = ("spec_augment",)
WINDOW_OPTION_NAMES = ("jitter", "scale", "rotation")


@final
class SpecAugment(Options):
    """Park et al. 2019 (arXiv 1904.08779): random spans of time and frequency set to the sample's mean."""

    time: int = Field(default=8, ge=0, description="maximum frames per mask")
    frequency: int = Field(default=5, ge=0, description="maximum bands per mask")
    masks: int = Field(default=1, ge=1, description="masks of each kind")


@final
class Noise(Options):
    """Additive noise on waveforms; each sample draws one of the colours or of the folder's recordings."""

    snr: DecibelRange = Field(default=(5.0, 30.0), description="signal-to-noise ratio in dB, [min, max]")
    colors: tuple[Literal["white", "pink", "brown"], ...] = Field(
        default=(), description="synthetic noise; default white if there is no folder"
    )
    folder: str | None = Field(default=None, description="recordings of noise; a random section is used")

    @property
    def noise_kinds(self) -> tuple[str, ...]:
        """The kinds to draw from: colours, and `folder` if there is one."""
        return (*self.colors, "folder") if self.folder is not None else self.colors or ("white",)


@final
class RandAugment(Options):
    """Cubuk et al. 2019 (arXiv 1909.13719): random operations on each image, all of one magnitude."""

    operations: int = Field(default=2, ge=1, le=14, description="operations applied to each image, in sequence")
    magnitude: int = Field(default=9, ge=0, le=30, description="of each operation, 0 to 30 (the paper's strongest)")


@final
class Augment(Options):
    """Random changes of training samples. Validation, test and representative samples are unchanged."""

    shift: Seconds | None = Field(
        default=None, gt=0, description="sound: maximum shift to either side, such as 100 ms; filled with silence"
    )
    gain: DecibelRange | None = Field(default=None, description="sound: volume change in dB, [min, max]")
    noise: Noise | None = Field(default=None, description="sound: additive noise")
    flip: Literal["horizontal", "vertical", "both"] | None = Field(
        default=None, description="images: mirror each way with probability 0.5"
    )
    crop: int | None = Field(
        default=None, ge=1, description="images: zero padding in pixels on each side before a random crop to size"
    )
    rotate: Angle | None = Field(default=None, description="images: maximum angle to either side, degrees")
    rand_augment: RandAugment | None = Field(
        default=None, description="images: random operations out of fourteen (Cubuk et al. 2019)"
    )
    scale: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="windows: deviation of a random factor around 1 per channel (Um et al. 2017)",
    )
    rotation: Angle | None = Field(
        default=None,
        description="windows: maximum angle in degrees about a random axis, for each three consecutive channels",
    )
    jitter: float | None = Field(
        default=None, gt=0, description="windows: noise, as a fraction of each channel's deviation (Um et al. 2017)"
    )
    spec_augment: SpecAugment | None = Field(default=None, description="spectrograms: masked spans")
    cutout: int | None = Field(
        default=None, ge=1, description="images: side of a randomly placed square of zeros (DeVries, Taylor 2017)"
    )
    mixup: float | None = Field(
        default=None,
        gt=0,
        description="classes: two samples blended, alpha of the Beta distribution (Zhang et al. 2018)",
    )
    cutmix: float | None = Field(
        default=None,
        gt=0,
        description="images: paste a rectangle of another, alpha of the Beta distribution (Yun et al. 2019)",
    )

    @model_validator(mode="after")
    def _check_combination(self) -> "Augment":
        if not self.change_names:
            raise ValueError(f"names nothing; allowed: {', '.join(type(self).model_fields)}")
        if self.mixup is not None and self.cutmix is not None:
            raise ValueError("mixup and cutmix exclude each other: each mixes the labels")
        return self

    @property
    def waveform_change_names(self) -> list[str]:
        """The requested changes of waveforms."""
        return [name for name in SOUND_OPTION_NAMES if getattr(self, name) is not None]

    @property
    def change_names(self) -> list[str]:
        """The requested changes, in the order in which they apply."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]
