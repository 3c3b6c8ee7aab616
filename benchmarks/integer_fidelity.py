"""Signal to noise of the whole corpus: edgepipe's integer models, TensorFlow's, litert-quantizer's, and the bound.

    python benchmarks/integer_fidelity.py [NAME..]     the models of tests/compress/corpus whose name contains a NAME

Prints a Markdown table; ratios in dB against the float model, on samples that did not calibrate. The bound is the float
graph with every tensor rounded in its own range. `-` means that the quantizer fails or leaves operators in float.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path += [str(TESTS / "compress"), str(TESTS / "compress" / "quantizer"), str(TESTS.parent)]

import test_corpus as comparison_module  # noqa: E402
from corpus import CORPUS  # noqa: E402
from reference_quantizers import quantize_with_litert, quantize_with_tensorflow  # noqa: E402

from edgepipe.compress.quantizer import recipes  # noqa: E402
from edgepipe.compress.quantizer.activation_calibration import calibrate  # noqa: E402
from edgepipe.compress.schemes import ActivationCalibration  # noqa: E402
from edgepipe.core.errors import EdgepipeError  # noqa: E402
from edgepipe.models.native_stderr import capture_stderr  # noqa: E402
from edgepipe.tflite.integer_check import check_integer_only  # noqa: E402
from edgepipe.tflite.reader import read  # noqa: E402

FLOAT_INTERFACE = ("float32", "float32")
COLUMNS = ("model", "int8", "TensorFlow", "litert-quantizer", "bound", "int16x8", "bound of 16 bits")


def measure(name: str, folder: Path) -> list[str]:
    """One row of the table."""
    comparison = comparison_module.compare_case(name, folder)
    names = comparison.lite.inputs_by_name
    samples = dict(zip(names, comparison.feeds, strict=True))

    def by_litert() -> bytes:
        ranges = calibrate(comparison.lite, samples, ActivationCalibration()).by_tensor
        recipe = [*recipes.scheme_recipe("int8"), *recipes.io_rules(*FLOAT_INTERFACE)]
        return quantize_with_litert(comparison.lite.content, ranges, recipe)

    references = [
        lambda: quantize_with_tensorflow(comparison.lite.content, comparison.feeds, FLOAT_INTERFACE),
        by_litert,
    ]
    cells = [comparison.snr_of_scheme("int8", folder)]
    cells += [_reference_snr(comparison, build, folder) for build in references]
    cells += [comparison.snr_of_simulation(8, folder), comparison.snr_of_scheme("int16x8", folder)]
    cells += [comparison.snr_of_simulation(16, folder)]
    return [name, *("-" if cell is None else f"{cell:.1f}" for cell in cells)]


def _reference_snr(comparison: Any, build: Callable[[], bytes], folder: Path) -> float | None:
    """Signal to noise of a reference's model; None if it fails or is not integer throughout."""
    try:
        with capture_stderr():
            content = build()
        path = folder / "reference.tflite"
        path.write_bytes(content)
        if check_integer_only(read(path), allow_float_interface=True):
            return None
        return float(comparison.snr(content, folder))
    except (EdgepipeError, RuntimeError, ValueError):
        return None


def main() -> None:
    """Print the table."""
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name, case in CORPUS.items():
        if case.float_conversion_note or (sys.argv[1:] and not any(word in name for word in sys.argv[1:])):
            continue
        with tempfile.TemporaryDirectory() as folder:
            print("| " + " | ".join(measure(name, Path(folder))) + " |", flush=True)


if __name__ == "__main__":
    main()
