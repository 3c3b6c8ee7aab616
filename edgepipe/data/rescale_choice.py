"""Which `rescale` of a dataset gives a model the values that it expects, found without reading the samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepipe.core.errors import InputError
from edgepipe.core.npy_headers import read_npz_headers
from edgepipe.data.data_spec import DataSpec, FashionSpec, IdxSpec, ImagesSpec, NpzSpec, Rescale, source_path
from edgepipe.tflite.input_expectation import InputExpectation

_PIXEL_MAX = 255.0


@dataclass(frozen=True)
class RescaleChoice:
    """A value of `rescale`, and the range of what it gives."""

    mode: Rescale
    low: float
    high: float


def list_rescale_choices(largest: float = _PIXEL_MAX) -> tuple[RescaleChoice, ...]:
    """Every value of `rescale` for unsigned integers up to `largest`."""
    return RescaleChoice("none", 0.0, largest), RescaleChoice("unit", 0.0, 1.0), RescaleChoice("signed", -1.0, 1.0)


def choose_rescale(expectation: InputExpectation, largest: float = _PIXEL_MAX) -> RescaleChoice | None:
    """The choice that a model expects; None if none gives what it expects."""
    fitting_choices = [choice for choice in list_rescale_choices(largest) if expectation.fits(choice.low, choice.high)]
    return min(fitting_choices, key=lambda choice: expectation.distance(choice.low, choice.high), default=None)


def present_choice(spec: DataSpec, base_folder: Path) -> tuple[RescaleChoice, float] | None:
    """What `rescale` of `spec` gives, and the largest stored integer; None unless it stores unsigned integers."""
    largest = _largest_integer(spec, base_folder)
    if largest is None:
        return None
    return next(choice for choice in list_rescale_choices(largest) if choice.mode == spec.rescale), largest


def _largest_integer(spec: DataSpec, base_folder: Path) -> float | None:
    if isinstance(spec, (ImagesSpec, IdxSpec, FashionSpec)):
        return _PIXEL_MAX
    return largest_of_npz(source_path(spec, base_folder), spec.x) if isinstance(spec, NpzSpec) else None


def largest_of_npz(path: Path, array_name: str) -> float | None:
    """The largest value of the type of the samples in a .npz file; None if they are not unsigned integers."""
    try:
        headers = read_npz_headers(path)
    except InputError:
        return None  # reading the data will report it
    header = headers.get(array_name) or headers.get(f"{array_name}_train")
    return float(np.iinfo(header.dtype).max) if header is not None and header.dtype.kind == "u" else None
