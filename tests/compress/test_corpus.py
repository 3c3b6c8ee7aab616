"""Models as people write them, against TensorFlow's quantizer, litert-quantizer and what integers can reach.

`benchmarks/integer_fidelity.py` runs the whole corpus; here are the models that stand for their kinds.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe.compress.fidelity import measure_fidelity
from edgepipe.compress.keras_to_tflite import float_model
from edgepipe.compress.quantizer.op_decomposition import decomposed_model, uniform_bit_width
from edgepipe.compress.quantizer.quantization import QuantizationRequest, collect_ranges, quantize_tflite
from edgepipe.compress.quantizer.trained_ranges import TrainedRanges
from edgepipe.core.arrays import Array, Arrays
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "quantizer")]
from corpus import CORPUS
from reference_quantizers import quantize_with_tensorflow
from simulation import simulate_integers

CALIBRATION_SAMPLES = 100
HIGH_SNR = 60.0  # dB; above it, tables of 16-bit kernels show, which the simulation does not have
# a chain of concatenations: each link is copied into the next coarser scale, TensorFlow makes all of them the coarsest
COPIED_CHAINS = {"densenet_block": 3.0}
# a constant of very different numbers for each channel, which MUL takes in one scale only; the simulation has it exact
ONE_SCALE_CONSTANTS = ("normalization",)
# what 8 bits lose is said: the logarithm of a square, columns of very different size
COLLAPSES = ("log_square_spectrogram", "normalization")
CASES = [name for name, case in CORPUS.items() if case.in_ci and not case.float_conversion_note]


@dataclass(frozen=True)
class Comparison:
    """A float model, and samples that did not calibrate."""

    lite: Model
    feeds: list[Array]
    samples: Arrays

    def snr(self, content: bytes, folder: Path) -> float:
        """Signal to noise of the worst output of a model against the float one, in dB."""
        path = folder / "compared.tflite"
        path.write_bytes(content)
        pairs = zip(_outputs(path, self.samples), _outputs(self.lite.path, self.samples), strict=True)
        return min(_snr(output, truth) for output, truth in pairs)

    def quantize(self, scheme: Any) -> bytes:
        """Edgepipe's model."""
        return quantize_tflite(self.lite, QuantizationRequest(scheme, "float32", "float32"), self.feeds).content

    def snr_of_scheme(self, scheme: Any, folder: Path) -> float:
        """That of edgepipe's model."""
        return self.snr(self.quantize(scheme), folder)

    def has_collapsed(self, content: bytes) -> bool:
        """Whether the fidelity gate would raise a finding."""
        return bool(measure_fidelity(self.lite, content, self.samples).findings())

    def snr_of_simulation(self, bits: Any, folder: Path) -> float:
        """That of the float graph with every tensor rounded in its own range."""
        with decomposed_model(self.lite, uniform_bit_width(8)) as lite:
            ranges = collect_ranges(lite, QuantizationRequest("int8"), self.feeds, TrainedRanges()).by_tensor
            return self.snr(simulate_integers(lite.content, ranges, bits), folder)


def _outputs(path: Path, samples: Arrays) -> list[Array]:
    outputs = predict(path, samples, Runtime.BUILTIN).real_values
    arrays = outputs.values() if isinstance(outputs, dict) else [outputs]
    return [np.asarray(array, np.float64) for array in arrays]


def _snr(output: Array, truth: Array) -> float:
    noise = float(np.square(output - truth).sum())
    return 10 * math.log10(float(np.square(truth).sum()) / noise) if noise else math.inf


def compare_case(name: str, folder: Path) -> Comparison:
    case = CORPUS[name]
    with float_model(case.build(), case.samples(), requires_samples=True) as (lite, feeds):
        path = folder / "float.tflite"
        path.write_bytes(lite.content)
    assert feeds is not None
    held_back = {key: feed[CALIBRATION_SAMPLES:] for key, feed in zip(read(path).inputs_by_name, feeds, strict=True)}
    return Comparison(read(path), [feed[:CALIBRATION_SAMPLES] for feed in feeds], held_back)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_integer_model_is_worse(name: str, tmp_path: Path) -> None:
    comparison = compare_case(name, tmp_path)
    own_content = comparison.quantize("int8")
    assert comparison.has_collapsed(own_content) == (name in COLLAPSES)
    own, simulated = comparison.snr(own_content, tmp_path), comparison.snr_of_simulation(8, tmp_path)
    tensorflow_content = quantize_with_tensorflow(comparison.lite.content, comparison.feeds, ("float32", "float32"))
    tensorflow = comparison.snr(tensorflow_content, tmp_path)
    assert comparison.has_collapsed(tensorflow_content) or tensorflow > 0
    assert own >= simulated - 1 or name in ONE_SCALE_CONSTANTS, (own, simulated)
    assert own >= tensorflow - COPIED_CHAINS.get(name, 0.5), (own, tensorflow)
    if tensorflow < simulated - 4:
        assert own >= tensorflow + 3, (own, tensorflow)
    own_16, simulated_16 = (comparison.snr_of_scheme("int16x8", tmp_path), comparison.snr_of_simulation(16, tmp_path))
    assert own_16 >= min(simulated_16 - 1, HIGH_SNR), (own_16, simulated_16)
