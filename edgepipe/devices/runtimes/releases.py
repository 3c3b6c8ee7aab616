"""Releases of runtimes: their names as users write them, and which of the tried ones stand for them."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

from edgepipe.core.errors import InputError, did_you_mean

# packages that carry TensorFlow Lite under the numbers of TensorFlow's own releases
TENSORFLOW_PACKAGES = ("tflite-runtime", "tensorflow", "tensorflow-cpu", "tensorflow-lite")
PACKAGES = (*TENSORFLOW_PACKAGES, "ai-edge-litert", "litert", "tflite-micro")
SYNONYMS = {"litert": "ai-edge-litert"}
MICRO = "tflite-micro"
DATE_DIGITS = 8  # of a snapshot of TensorFlow Lite Micro, such as 20231010
EXAMPLE = "tflite-runtime==2.14, litert==1.0 or tflite-micro==2023-10-10"


@final
@dataclass(frozen=True)
class Release:
    """One release of a package; `numbers` order the releases of a family."""

    package: str
    version: str

    @property
    def family(self) -> str:
        """Packages of one family have the same kernels under the same numbers."""
        return "tensorflow" if self.package in TENSORFLOW_PACKAGES else self.package

    @property
    def numbers(self) -> tuple[int, ...]:
        """For comparing with other releases of the family."""
        return tuple(int(part) for part in self.version.split("."))

    def is_part_of(self, series: "Release") -> bool:
        """Whether it is `series`, whose version may leave its last numbers open."""
        return self.family == series.family and self.numbers[: len(series.numbers)] == series.numbers

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def parse_release(text: str) -> Release:
    """A release as in `tflite-runtime==2.14`, `tflite-runtime 2.14` or `tflite-micro==2023-10-10`.

    Raises:
        InputError: an unknown package, or no version.
    """
    package, _, version = re.sub(r"\s*==\s*|\s+", " ", text.strip()).partition(" ")
    if package not in PACKAGES:
        raise InputError(f"runtime '{text}': unknown package '{package}'{did_you_mean(package, PACKAGES)}")
    digits = version.removeprefix("0.dev").replace("-", "")[:DATE_DIGITS] if package == MICRO else version
    is_valid = bool(re.fullmatch(r"\d{4}|\d{6}|\d{8}" if package == MICRO else r"\d+(\.\d+)*", digits))
    if not is_valid:
        wanted_text = "the date of a snapshot" if package == MICRO else "numbers with points between them"
        raise InputError(f"runtime '{text}': the version must be {wanted_text}; for example {EXAMPLE}")
    return Release(SYNONYMS.get(package, package), _open_date(digits) if package == MICRO else digits)


def _open_date(digits: str) -> str:
    """Year, month and day as numbers that are compared one by one: `2023.10.10`."""
    return ".".join(part for part in (digits[:4], digits[4:6], digits[6:8]) if part)


def standing_releases(release: Release, tried_releases: Collection[Release]) -> Sequence[Release]:
    """The tried releases that stand for `release`: itself, else the nearest ones before and after it.

    What both neighbours do, a release between them does too.
    """
    family = sorted((tried for tried in tried_releases if tried.family == release.family), key=lambda r: r.numbers)
    same = [tried for tried in family if tried.is_part_of(release)]
    if same:
        return [next((tried for tried in same if tried.package == release.package), same[-1])]
    before = [tried for tried in family if tried.numbers < release.numbers][-1:]
    after = [tried for tried in family if tried.numbers > release.numbers][:1]
    return [*before, *after]
