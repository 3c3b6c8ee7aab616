"""Audio features: log-mel spectrograms and MFCC, by librosa, with every constant that a device needs."""

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError, ToolError
from edgepipe.core.units import plural

FeatureKind = Literal["log_mel", "mfcc", "none"]


@final
@dataclass(frozen=True)
class SoundFeatures:
    """How features are computed from a waveform: frames without padding, a periodic Hann window, the power of an FFT,
    triangular mel bands (HTK scale, no area normalization), the natural logarithm of power plus a floor, and for MFCC
    an orthonormal DCT-II.

    S. Davis, P. Mermelstein, "Comparison of Parametric Representations for Monosyllabic Word Recognition", IEEE
    Transactions on Acoustics, Speech, and Signal Processing 28 (4), 1980; S. Young et al., "The HTK Book", 5.4-5.6.
    """

    kind: FeatureKind
    rate: int  # Hz
    window_samples: int  # frame length in samples
    hop_samples: int  # frame step in samples
    band_count: int
    coefficient_count: int  # MFCC coefficients to keep
    fmin: float  # Hz
    fmax: float  # Hz
    floor: float  # added to the power before the logarithm

    @property
    def fft_size(self) -> int:
        """FFT size: the next power of two; the frame is centred and zero-padded."""
        return 1 << (self.window_samples - 1).bit_length()

    def compute(self, waveforms: Array) -> Array:
        """Features (n, frames, bands, 1) of waveforms (n, samples), float32; the waveforms (n, samples, 1) for `none`.

        Raises:
            InputError: waveforms shorter than one frame.
        """
        if self.kind == "none":
            return waveforms[..., None].astype(np.float32)
        if waveforms.shape[-1] < self.fft_size:
            raise InputError(
                f"a recording of {plural(waveforms.shape[-1], 'sample')} is shorter than one frame of {self.fft_size}"
            )
        librosa = import_librosa()
        mel_power = librosa.feature.melspectrogram(
            y=waveforms.astype(np.float32),
            sr=self.rate,
            n_fft=self.fft_size,
            hop_length=self.hop_samples,
            win_length=self.window_samples,
            window="hann",
            center=False,
            power=2.0,
            n_mels=self.band_count,
            fmin=self.fmin,
            fmax=self.fmax,
            htk=True,
            norm=None,
        )
        log_bands = np.log(mel_power + np.float32(self.floor))
        if self.kind == "mfcc":
            log_bands = librosa.feature.mfcc(S=log_bands, n_mfcc=self.coefficient_count, dct_type=2, norm="ortho")
        return np.asarray(np.swapaxes(log_bands, 1, 2)[..., None], np.float32)

    def output_shape(self, sample_count: int) -> tuple[int, ...]:
        """The shape of the features of one waveform of `sample_count` samples."""
        if self.kind == "none":
            return (sample_count, 1)
        frame_count = 1 + (sample_count - self.fft_size) // self.hop_samples
        return frame_count, self.coefficient_count if self.kind == "mfcc" else self.band_count, 1

    def describe(self) -> str:
        """Every constant in one line, for the report: a device must compute the same features."""
        if self.kind == "none":
            return f"waveforms at {self.rate} Hz, -1 to 1"
        cepstral_text = f", orthonormal DCT-II, the first {self.coefficient_count}" if self.kind == "mfcc" else ""
        return (
            f"{self.kind} at {self.rate} Hz: periodic Hann windows of {self.window_samples} samples "
            f"every {self.hop_samples}, in the middle of an FFT of {self.fft_size}, power, "
            f"{self.band_count} triangular mel bands (HTK scale, peak 1) from "
            f"{self.fmin:g} to {self.fmax:g} Hz, ln(power + {self.floor:g}){cepstral_text}"
        )


def import_librosa() -> Any:
    """Import librosa.

    Raises:
        ToolError: it is not installed.
    """
    try:
        import librosa
    except ImportError:
        raise ToolError('sound needs librosa: pip install "edgepipe[data]"') from None
    return librosa
