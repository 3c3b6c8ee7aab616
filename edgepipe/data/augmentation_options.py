"""`augment:` of a dataset: how training samples are changed at random, read without importing anything heavy.

What is named is applied in one order, whatever the order in the file: to the waveform first (shift, gain, noise), then
places (flip, crop, rotate), rand_augment, values (scale, rotation, jitter), what is hidden (spec_augment, cutout), and
last what is mixed (mixup or cutmix).
"""

from typing import Annotated, Literal, final

from pydantic import AfterValidator, Field, model_validator

from edgepipe.core.config import Options, Quantity
from edgepipe.core.units import Dimension


def _check_rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"a range [least, most] must rise; found [{pair[0]:g}, {pair[1]:g}]")
    return pair


Angle = Annotated[float, Field(gt=0, le=180)]
Seconds = Annotated[float, Quantity(Dimension.SECONDS)]
Decibel = Annotated[float, Field(ge=-100, le=100)]
DecibelRange = Annotated[tuple[Decibel, Decibel], AfterValidator(_check_rising)]
SOUND_OPTIONS = ("shift", "gain", "noise")
IMAGE_OPTIONS = ("flip", "crop", "rotate", "rand_augment", "cutout", "cutmix")
SPECTROGRAM_OPTIONS = ("spec_augment",)
WINDOW_OPTIONS = ("jitter", "scale", "rotation")


@final
class SpecAugment(Options):
    """Park et al. 2019 (arXiv 1904.08779): stretches of time and of frequency set to the sample's mean."""

    time: int = Field(default=8, ge=0, description="the most frames that one mask hides")
    frequency: int = Field(default=5, ge=0, description="the most bands that one mask hides")
    masks: int = Field(default=1, ge=1, description="of each kind")


@final
class Noise(Options):
    """Noise that is added to waveforms; for each sample one of the colours, or of the folder's recordings, is drawn."""

    snr: DecibelRange = Field(default=(5.0, 30.0), description="signal over noise in dB, [least, most]")
    colors: tuple[Literal["white", "pink", "brown"], ...] = Field(
        default=(), description="made noise; default white if there is no folder"
    )
    folder: str | None = Field(default=None, description="recordings of noise, of which a random stretch is taken")

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is drawn from: colours, and `folder` if there is one."""
        return (*self.colors, "folder") if self.folder is not None else self.colors or ("white",)


@final
class RandAugment(Options):
    """Cubuk et al. 2019 (arXiv 1909.13719): operations drawn for each image, all of one magnitude."""

    operations: int = Field(default=2, ge=1, le=14, description="how many are applied to an image, one after another")
    magnitude: int = Field(default=9, ge=0, le=30, description="of each, from 0 to 30, the paper's strongest")


@final
class Augment(Options):
    """Random changes of training samples. Validation, test and representative samples stay as they are."""

    shift: Seconds | None = Field(
        default=None, gt=0, description="sound: at most, to either side; silence comes in, such as 100 ms"
    )
    gain: DecibelRange | None = Field(default=None, description="sound: louder or softer by so many dB, [least, most]")
    noise: Noise | None = Field(default=None, description="sound: noise that is added")
    flip: Literal["horizontal", "vertical", "both"] | None = Field(
        default=None, description="images: mirrored, each way with a chance of one half"
    )
    crop: int | None = Field(
        default=None, ge=1, description="images: pixels that are added as zeros on each side before a crop to size"
    )
    rotate: Angle | None = Field(default=None, description="images: degrees, at most, to either side")
    rand_augment: RandAugment | None = Field(
        default=None, description="images: operations drawn from fourteen (Cubuk et al. 2019)"
    )
    scale: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="windows: deviation of a factor around 1 for each channel (Um et al. 2017)",
    )
    rotation: Angle | None = Field(
        default=None, description="windows: degrees, at most, about a random axis, of each three channels in a row"
    )
    jitter: float | None = Field(
        default=None, gt=0, description="windows: noise, as a share of each channel's deviation (Um et al. 2017)"
    )
    spec_augment: SpecAugment | None = Field(default=None, description="spectrograms: stretches that are hidden")
    cutout: int | None = Field(
        default=None, ge=1, description="images: side of a square of zeros, somewhere (DeVries, Taylor 2017)"
    )
    mixup: float | None = Field(
        default=None, gt=0, description="classes: two samples blended, alpha of the Beta law (Zhang et al. 2018)"
    )
    cutmix: float | None = Field(
        default=None, gt=0, description="images: a rectangle of another one, alpha of the Beta law (Yun et al. 2019)"
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
        """What is asked for that changes waveforms."""
        return [name for name in SOUND_OPTIONS if getattr(self, name) is not None]

    @property
    def change_names(self) -> list[str]:
        """What is asked for, in the order in which it is applied."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]
