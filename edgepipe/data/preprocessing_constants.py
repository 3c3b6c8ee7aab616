"""The preprocessing that a device must repeat, as constants stored with the model."""

import numpy as np

from edgepipe.data.data_spec import DataSpec, FashionSpec, IdxSpec, ImagesSpec, Rescale, SoundSpec, TableSpec
from edgepipe.data.raw_samples import RawDataset
from edgepipe.data.sound_features import SoundFeatures
from edgepipe.data.split_names import Split
from edgepipe.data.standardization import Scaling
from edgepipe.tflite.metadata import Pixels, Preprocessing, Sound, Standardization, Windows


def build_preprocessing(spec: DataSpec, raw_dataset: RawDataset, scaling: Scaling | None) -> Preprocessing:
    """All preprocessing between the source of `raw` and the model's input."""
    return Preprocessing(
        sound=_sound_constants(spec, raw_dataset.sound_features)
        if isinstance(spec, SoundSpec) and raw_dataset.sound_features is not None
        else None,
        pixels=_pixel_constants(spec, raw_dataset),
        windows=_window_constants(spec, raw_dataset) if isinstance(spec, TableSpec) else None,
        standardize=None if scaling is None else _standardize_constants(scaling),
        classes=raw_dataset.class_names,
    )


def _sound_constants(spec: SoundSpec, sound_features: SoundFeatures) -> Sound:
    sample_count = round(spec.seconds * spec.rate)
    if sound_features.kind == "none":
        return Sound(features=sound_features.kind, rate=sound_features.rate, samples=sample_count)
    is_mfcc = sound_features.kind == "mfcc"
    return Sound(
        features=sound_features.kind,
        rate=sound_features.rate,
        samples=sample_count,
        window=sound_features.window_samples,
        hop=sound_features.hop_samples,
        fft=sound_features.fft_size,
        window_function="periodic Hann",
        spectrum="power",
        mels=sound_features.band_count,
        mel_scale="2595 log10(1 + f / 700)",
        mel_shape="triangles in Hz of peak 1",
        fmin=sound_features.fmin,
        fmax=sound_features.fmax,
        log="ln(power + floor)",
        floor=sound_features.floor,
        coefficients=sound_features.coefficient_count if is_mfcc else None,
        dct="II, orthonormal" if is_mfcc else None,
    )


def _pixel_constants(spec: DataSpec, raw_dataset: RawDataset) -> Pixels | None:
    x = raw_dataset.raw_splits[Split.TRAIN].x
    if isinstance(x, dict) or x.dtype.kind != "u":
        return None
    max_pixel, shape = float(np.iinfo(x.dtype).max), tuple(x.shape[1:])
    is_picture = isinstance(spec, (ImagesSpec, IdxSpec, FashionSpec))
    is_resized = isinstance(spec, ImagesSpec) and spec.size is not None
    return Pixels(
        stored=(0.0, max_pixel), given=_rescaled_range(spec.rescale, max_pixel), shape=shape,
        mode={1: "L", 3: "RGB"}.get(shape[-1]) if is_picture else None,
        resize="bilinear, antialiased (Pillow)" if is_resized else None,
    )  # fmt: skip


def _rescaled_range(rescale: Rescale, max_pixel: float) -> tuple[float, float]:
    return {"unit": (0.0, 1.0), "signed": (-1.0, 1.0), "none": (0.0, max_pixel)}[rescale]


def _window_constants(spec: TableSpec, raw_dataset: RawDataset) -> Windows:
    step = None if spec.window is None else spec.step or spec.window
    return Windows(channels=raw_dataset.channel_names, rows=spec.window, step=step)


def _standardize_constants(scaling: Scaling) -> Standardization:
    axis = "channels" if scaling.axis == -1 else "bands"
    return Standardization(axis=axis, mean=scaling.mean, deviation=scaling.deviation)
