"""Signal to noise of the whole corpus: edgepipe's integer models, TensorFlow's, litert-quantizer's, and the bound.

    python benchmarks/integer_fidelity.py [NAME..]     the models of tests/compress/corpus whose name contains a NAME
    python benchmarks/integer_fidelity.py --write      all of them, into docs/fidelity.md

Prints a Markdown table and a summary; ratios in dB against the float model, on samples that did not calibrate. The
bound is the float graph with every tensor rounded in its own range. `-` means that the quantizer fails or leaves
operators in float.
"""

import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
HEAD = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
PAGE = TESTS.parent / "docs" / "fidelity.md"
MARKER = "<!-- measured -->"
MAX_LOSS = 0.5  # dB below the better of the two other quantizers
MAX_GAP = 1.0  # dB below the bound


@dataclass(frozen=True)
class FidelityRow:
    """Signal-to-noise ratios of one model in dB; None where a quantizer fails or leaves operators in float."""

    name: str
    int8: float
    tensorflow: float | None
    litert_quantizer: float | None
    bound: float
    int16x8: float
    bound_of_16_bits: float

    @property
    def reference(self) -> float:
        """The better of the two other quantizers; minus infinity if both fail."""
        return max(
            (ratio for ratio in (self.tensorflow, self.litert_quantizer) if ratio is not None), default=-math.inf
        )

    def markdown(self) -> str:
        """The row of a table."""
        ratios = dataclasses.astuple(self)[1:]
        cells = (self.name, *("-" if ratio is None else f"{ratio:.1f}" for ratio in ratios))
        return "| " + " | ".join(cells) + " |"


def measure(name: str, folder: Path) -> FidelityRow:
    """One row of the table."""
    comparison = comparison_module.compare_case(name, folder)
    lite, feeds = comparison.lite, comparison.feeds

    def by_litert() -> bytes:
        ranges = calibrate(lite, dict(zip(lite.inputs_by_name, feeds, strict=True)), ActivationCalibration()).by_tensor
        recipe = [*recipes.scheme_recipe("int8"), *recipes.io_rules(*FLOAT_INTERFACE)]
        return quantize_with_litert(lite.content, ranges, recipe)

    return FidelityRow(
        name,
        comparison.snr_of_scheme("int8", folder),
        _reference_snr(comparison, lambda: quantize_with_tensorflow(lite.content, feeds, FLOAT_INTERFACE), folder),
        _reference_snr(comparison, by_litert, folder),
        comparison.snr_of_simulation(8, folder),
        comparison.snr_of_scheme("int16x8", folder),
        comparison.snr_of_simulation(16, folder),
    )


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


def summary(rows: list[FidelityRow]) -> str:
    """How the models compare, and those that are below."""
    compared = [row for row in rows if row.reference > -math.inf]
    return "\n".join(
        [
            f"Of {len(rows)} models, TensorFlow's quantizer makes {_count(rows, 'tensorflow')} integer throughout, "
            f"litert-quantizer {_count(rows, 'litert_quantizer')}, edgepipe {len(rows)}.",
            "",
            f"- More than {MAX_LOSS:g} dB below the better of the two in int8: "
            f"{_names_text(row for row in compared if row.int8 < row.reference - MAX_LOSS)}.",
            f"- More than {MAX_GAP:g} dB below the bound in int8: "
            f"{_names_text(row for row in rows if row.int8 < row.bound - MAX_GAP)}.",
            f"- More than {MAX_GAP:g} dB below the bound in int16x8, and below {comparison_module.HIGH_SNR:g} dB: "
            f"{_names_text(row for row in rows if _is_below_16_bits(row))}.",
            f"- At least 3 dB better than both in int8: {sum(row.int8 >= row.reference + 3 for row in compared)}.",
        ]
    )


def _count(rows: list[FidelityRow], field: str) -> int:
    return sum(getattr(row, field) is not None for row in rows)


def _is_below_16_bits(row: FidelityRow) -> bool:
    return row.int16x8 < min(row.bound_of_16_bits - MAX_GAP, comparison_module.HIGH_SNR)


def _names_text(rows: Iterable[FidelityRow]) -> str:
    names = [f"`{row.name}`" for row in rows]
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def main() -> None:
    """Print the table and its summary; with `--write`, write both to the page."""
    words = [word for word in sys.argv[1:] if word != "--write"]
    rows = []
    print(HEAD)
    for name, case in CORPUS.items():
        if case.float_conversion_note or (words and not any(word in name for word in words)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder)))
        print(rows[-1].markdown(), flush=True)
    print(f"\n{summary(rows)}")
    if "--write" in sys.argv:
        head, marker, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
        table = "\n".join([HEAD, *(row.markdown() for row in rows)])
        PAGE.write_text(f"{head}{marker}\n\n{summary(rows)}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
