"""Real recordings that ship with the package aeon: `pip install "edgepipe[examples]"`."""

from typing import TYPE_CHECKING, Any

from edgepipe.core.errors import ToolError

if TYPE_CHECKING:
    from edgepipe.core.arrays import Array

UTTERANCE_STEPS = 29  # length of the longest utterance


def japanese_vowels() -> "dict[str, tuple[Array, Array]]":
    """Nine speakers say the Japanese vowels /ae/: 270 + 370 utterances as 12 LPC cepstrum coefficients over time.

    Source: M. Kudo, J. Toyama, M. Shimbo, "Multidimensional Curve Classification Using Passing-Through Regions",
    Pattern Recognition Letters 20 (11-13), 1999.

    Returns:
        `train` and `test` as published: windows (n, 29, 12) float32, shorter utterances zero at the end, and speakers
        (n,), int64 in 0..8.

    Raises:
        ToolError: aeon is not installed.
    """
    import numpy as np

    def pad_series(series: "Array") -> "Array":
        return np.pad(series.T, ((0, UTTERANCE_STEPS - series.shape[1]), (0, 0))).astype(np.float32)

    load_vowels = _aeon_datasets().load_japanese_vowels
    windows_by_split = {}
    for split in ("train", "test"):
        x, y = load_vowels(split=split)
        windows_by_split[split] = np.stack([pad_series(series) for series in x]), y.astype(np.int64) - 1
    return windows_by_split


def basic_motions(steps: int = 50) -> "dict[str, tuple[Array, Array]]":
    """Four students stand, walk, run and play badminton with a watch: accelerations and rotations at 10 Hz.

    Source: J. Clements, 2016, in A. Bagnall et al., "The UEA Multivariate Time Series Classification Archive, 2018",
    arXiv 1811.00075.

    Args:
        steps: window length; a recording has 100 steps, and its windows stay in its split.

    Returns:
        `train` and `test` as published: windows (n, steps, 6) float32, and activities (n,), int64: badminton 0,
        running 1, standing 2, walking 3.

    Raises:
        ToolError: aeon is not installed.
    """
    import numpy as np

    windows_by_split = {}
    for split in ("train", "test"):
        x, y = _aeon_datasets().load_basic_motions(split=split)
        labels = np.unique(y, return_inverse=True)[1].astype(np.int64)
        windows_per_recording = 100 // steps
        windows = x.transpose(0, 2, 1)[:, : windows_per_recording * steps].reshape(
            len(x) * windows_per_recording, steps, x.shape[1]
        )
        windows_by_split[split] = windows.astype(np.float32), np.repeat(labels, windows_per_recording)
    return windows_by_split


def odd_motions(steps: int = 25) -> "tuple[Array, Array, Array]":
    """Anomaly detection on `basic_motions`: walking is normal (0), running and badminton are anomalies (1).

    Args:
        steps: window length; a recording has 100 steps.

    Returns:
        windows (n, steps, 6) float32, labels (n,), and the recording of each window as its group.

    Raises:
        ToolError: aeon is not installed.
    """
    import numpy as np

    split_arrays = [basic_motions(steps)[split] for split in ("train", "test")]
    x, y = (np.concatenate(arrays) for arrays in zip(*split_arrays, strict=True))
    recording_indices = np.repeat(np.arange(len(x) * steps // 100), 100 // steps)
    moving_mask = y != 2
    return x[moving_mask], (y[moving_mask] != 3).astype(np.int64), recording_indices[moving_mask]


def _aeon_datasets() -> Any:
    try:
        from aeon import datasets
    except ImportError:
        raise ToolError('these recordings come with the package aeon: pip install "edgepipe[examples]"') from None
    return datasets
