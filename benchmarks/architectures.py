"""Architectures of the zoo on real data, float against full int8: `python benchmarks/architectures.py [NAME ..]`.

Three seeds each: trained in float, then converted by calibration (post-training) and after quantization-aware training
of a quarter of the epochs. Every int8 model is proven to have no float operator. The test split is read once a way.
The digits are scikit-learn's, Fashion-MNIST is Debian's dataset-fashion-mnist (see docs/data.md), the vowels are
JapaneseVowels from the package aeon.
"""

import sys
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import networks
import numpy as np
from quantization import accuracy, lite, ours, trained

from edgepipe import zoo
from edgepipe.data import recordings
from edgepipe.models.bridge import bridge
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read

SEEDS = 3


def vowels() -> networks.Data:
    """Nine speakers, windows of 29 x 12: 216 utterances to train, 54 to validate, 370 to test."""
    found = recordings.japanese_vowels()
    x, y = found["train"]
    chosen = np.random.default_rng(0).permutation(len(x))
    fit, validation = chosen[:216], chosen[216:]
    return networks.Data((x[fit], y[fit]), (x[validation], y[validation]), found["test"])


Made = Callable[[tuple[int, ...]], Any]


def _of(name: str, classes: int) -> Made:
    return lambda shape: getattr(zoo, name)(input_shape=shape, classes=classes)


WORK: dict[str, tuple[Made, Callable[[], networks.Data], int]] = {
    "digits, attention": (_of("attention", 10), networks.digits, 40),
    "fashion, attention": (_of("attention", 10), lambda: networks.fashion(28, 12_000), 12),
    "vowels, attention": (_of("attention", 9), vowels, 80),
    "vowels, temporal_cnn": (_of("temporal_cnn", 9), vowels, 80),
    "fashion, ds_cnn": (_of("ds_cnn", 10), lambda: networks.fashion(28, 12_000), 8),
}


def measure(name: str) -> None:
    """One line a way: the accuracy of each seed in per cent, their mean, and the loss against float in points."""
    build, source, epochs = WORK[name]
    data = source()
    rows = [_ways(build, data, epochs, seed) for seed in range(SEEDS)]
    for way in rows[0]:
        values = [row[way] for row in rows]
        lost = np.mean([row["float"] - row[way] for row in rows])
        shown = " ".join(f"{value:.2f}" for value in values)
        print(f"| {name} | {way} | {shown} | {np.mean(values):.2f} | {lost:.2f} |", flush=True)


def _ways(build: Made, data: networks.Data, epochs: int, seed: int) -> dict[str, float]:
    model = trained(build, data, epochs, seed)
    x, y = data.test
    found = {"float": accuracy(model.predict(x, verbose=0).argmax(axis=1), y)}
    trained_on = ours(bridge(model).model, data, max(1, epochs // 4))
    for way, source in {"calibrated int8": model, "quantization-aware int8": trained_on}.items():
        with TemporaryDirectory() as folder:
            path = lite(source, data, folder)
            assert check_integer_only(read(path)) == []
            found[way] = accuracy(np.asarray(predict(path, x).real_values).argmax(axis=1), y)
    print(f"seed {seed}: {found}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    for wanted in sys.argv[1:] or WORK:
        measure(wanted)
