"""What a device must repeat of what was done to samples: the constants that travel with the model."""

import numpy as np

from edgepipe.data.data_spec import DataSpec, FashionSpec, IdxSpec, ImagesSpec, Rescale, SoundSpec, TableSpec
from edgepipe.data.raw_samples import Raw
from edgepipe.data.sound_features import Features
from edgepipe.data.splits import Split
from edgepipe.data.standardization import Scaling
from edgepipe.tflite.metadata import Pixels, Preprocessing, Sound, Standardize, Windows


def preprocessing(spec: DataSpec, raw: Raw, scaling: Scaling | None) -> Preprocessing:
    """Everything that is done between what `raw` was read from and what the model is given."""
    return Preprocessing(
        sound=_sound(spec, raw.features) if isinstance(spec, SoundSpec) and raw.features is not None else None,
        pixels=_pixels(spec, raw),
        windows=_windows(spec, raw) if isinstance(spec, TableSpec) else None,
        standardize=None if scaling is None else _standardize(scaling),
        classes=raw.class_names,
    )


def _sound(spec: SoundSpec, found: Features) -> Sound:
    samples = round(spec.seconds * spec.rate)
    if found.kind == "none":
        return Sound(features=found.kind, rate=found.rate, samples=samples)
    cepstral = found.kind == "mfcc"
    return Sound(
        features=found.kind, rate=found.rate, samples=samples, window=found.window, hop=found.hop, fft=found.fft,
        window_function="periodic Hann", spectrum="power", mels=found.mels, mel_scale="2595 log10(1 + f / 700)",
        mel_shape="triangles in Hz of peak 1", fmin=found.fmin, fmax=found.fmax, log="ln(power + floor)",
        floor=found.floor, coefficients=found.coefficients if cepstral else None,
        dct="II, orthonormal" if cepstral else None,
    )  # fmt: skip


def _pixels(spec: DataSpec, raw: Raw) -> Pixels | None:
    x = raw.parts[Split.TRAIN].x
    if isinstance(x, dict) or x.dtype.kind != "u":
        return None
    most, shape = float(np.iinfo(x.dtype).max), tuple(x.shape[1:])
    pictures = isinstance(spec, (ImagesSpec, IdxSpec, FashionSpec))
    resized = isinstance(spec, ImagesSpec) and spec.size is not None
    return Pixels(
        stored=(0.0, most), given=_given(spec.rescale, most), shape=shape,
        mode={1: "L", 3: "RGB"}.get(shape[-1]) if pictures else None,
        resize="bilinear, antialiased (Pillow)" if resized else None,
    )  # fmt: skip


def _given(rescale: Rescale, most: float) -> tuple[float, float]:
    return {"unit": (0.0, 1.0), "signed": (-1.0, 1.0), "none": (0.0, most)}[rescale]


def _windows(spec: TableSpec, raw: Raw) -> Windows:
    step = None if spec.window is None else spec.step or spec.window
    return Windows(channels=raw.channels, rows=spec.window, step=step)


def _standardize(scaling: Scaling) -> Standardize:
    axis = "channels" if scaling.axis == -1 else "bands"
    return Standardize(axis=axis, mean=scaling.mean, deviation=scaling.deviation)
