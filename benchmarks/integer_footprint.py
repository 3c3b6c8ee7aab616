"""Footprint of int8 models by edgepipe and by TensorFlow: `python benchmarks/integer_footprint.py [NAME..]`.

The 14 families of `families.py` and the architectures of the zoo, random weights, the same float .tflite and samples
for both. Prints a Markdown table: operators, bytes of the planned arena, bytes of the file, and cycles on an
Ethos-U55-128 by Vela, each with its ratio to TensorFlow's; `on the CPU` counts the operators that Vela leaves there.
`-` means that a quantizer fails or leaves operators in float, or that Vela refuses its model.
"""

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "compress" / "quantizer"), str(ROOT / "benchmarks")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from families import SIZES  # noqa: E402
from reference_quantizers import quantize_with_tensorflow  # noqa: E402

from edgepipe import zoo  # noqa: E402
from edgepipe.compress.keras_to_tflite import float_model  # noqa: E402
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite  # noqa: E402
from edgepipe.devices import device_profile  # noqa: E402
from edgepipe.devices.vela import vela_metrics  # noqa: E402
from edgepipe.models.perturb import perturb  # noqa: E402
from edgepipe.tflite.arena_plan import plan_arena  # noqa: E402
from edgepipe.tflite.integer_check import check_integer_only  # noqa: E402
from edgepipe.tflite.reader import read  # noqa: E402
from edgepipe.zoo.published_footprints import FOOTPRINT_CASES  # noqa: E402

DEVICE = "ethos-u55-128"
SAMPLES = 16
MAX_PIXELS = 100 * 100  # of the zoo's inputs; the larger ones are the same networks again
INTERFACE = ("int8", "int8")
COLUMNS = ("model", "operators", "arena", "file", "cycles", "on the CPU")


@dataclass(frozen=True)
class Footprint:
    """What one integer model costs; None where it is not known."""

    operators: int
    arena: int
    size: int
    cycles: int | None
    fallbacks: int | None


def main() -> None:
    """Print the table."""
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name, build in _models():
        if not sys.argv[1:] or any(word in name for word in sys.argv[1:]):
            keras.utils.set_random_seed(0)
            print("| " + " | ".join([name, *_cells(build())]) + " |", flush=True)
            keras.backend.clear_session()


def _models() -> Iterator[tuple[str, Callable[[], Any]]]:
    for family, size in SIZES.items():
        build = getattr(keras.applications, family)
        yield family, functools.partial(build, weights=None, input_shape=(size, size, 3), classes=10)
    for name, shape, classes, options in FOOTPRINT_CASES:
        if np.prod(shape[:2]) <= MAX_PIXELS:
            title = " ".join([name, "x".join(map(str, shape)), *map(str, options.values())])
            yield (
                title,
                functools.partial(getattr(zoo, name), input_shape=shape, **_class_arguments(classes), **options),
            )


def _class_arguments(classes: int | None) -> dict[str, int]:
    return {} if classes is None else {"classes": classes}


def _cells(model: Any) -> list[str]:
    """Edgepipe's numbers, each with its ratio to TensorFlow's."""
    perturb(model)
    shape = tuple(model.inputs[0].shape[1:])
    scale = 255 if any(type(layer).__name__ == "Rescaling" for layer in model.layers) else 1
    samples = scale * np.random.default_rng(0).random((SAMPLES, *shape), np.float32)
    with float_model(model, samples, requires_samples=True) as (lite, feeds), tempfile.TemporaryDirectory() as folder:
        assert feeds is not None
        ours = _measure(quantize_tflite(lite, QuantizationRequest(), feeds).content, Path(folder))
        stock = _measure_stock(lite.content, feeds, Path(folder))
    names = ("operators", "arena", "size", "cycles")
    return [
        *(_ratio_text(ours, stock, name) for name in names),
        f"{_text(ours.fallbacks if ours else None)} ({_fallback_text(stock)})",
    ]


def _measure_stock(content: bytes, feeds: list[Any], folder: Path) -> Footprint | None:
    try:
        return _measure(quantize_with_tensorflow(content, feeds, INTERFACE), folder)
    except (RuntimeError, ValueError):
        return None


def _measure(content: bytes, folder: Path) -> Footprint | None:
    path = folder / "measured.tflite"
    path.write_bytes(content)
    lite = read(path)
    if check_integer_only(lite):
        return None
    compilation = vela_metrics.analyze(lite, device_profile.load(DEVICE, ROOT)).compilation
    return Footprint(
        len(lite.operators),
        plan_arena(lite).peak_bytes,
        len(content),
        None if compilation is None else compilation.cycles,
        None if compilation is None else len(compilation.fallback_placements),
    )


def _ratio_text(ours: Footprint | None, stock: Footprint | None, name: str) -> str:
    value = None if ours is None else getattr(ours, name)
    reference = None if stock is None else getattr(stock, name)
    return f"{_text(value)} ({value / reference:.3f})" if value and reference else f"{_text(value)} (-)"


def _text(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _fallback_text(footprint: Footprint | None) -> str:
    return "-" if footprint is None else _text(footprint.fallbacks)


if __name__ == "__main__":
    main()
