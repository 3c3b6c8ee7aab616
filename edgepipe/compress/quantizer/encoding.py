"""How real numbers are stored in an integer tensor: bits, scale and zero point."""

from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.kernel_requirements import BitWidth
from edgepipe.core.arrays import Array

MIN_RANGE = 1e-30  # width of a range; no kernel runs with a scale of zero
HALFWAY_TOLERANCE = 0.1  # steps by which the middle of a range may differ from zero


@final
@dataclass(frozen=True)
class Encoding:
    """A real number is `scale * (code - zero_point)`; codes are signed integers of `bits`."""

    bits: BitWidth
    scale: float  # real units of one step
    zero_point: int

    @property
    def real_limits(self) -> ActivationRange:
        """The least and the largest real number that has a code."""
        code_min = -(2 ** (self.bits - 1))
        return (code_min - self.zero_point) * self.scale, (-code_min - 1 - self.zero_point) * self.scale

    def covers(self, activation_range: ActivationRange) -> bool:
        """Whether the range fits without saturation, up to half a step."""
        low, high = self.real_limits
        return low - self.scale / 2 <= activation_range[0] and activation_range[1] <= high + self.scale / 2

    def encode(self, array: Array) -> Array:
        """The codes of real numbers: rounded to the nearest, saturated."""
        code_min = -(2 ** (self.bits - 1))
        codes = np.rint(array / self.scale) + self.zero_point
        return np.clip(codes, code_min, -code_min - 1).astype(np.int8 if self.bits == 8 else np.int16)


def choose_computed_encoding(activation_range: ActivationRange, bits: BitWidth, symmetric: bool = False) -> Encoding:
    """As `choose_encoding`, for a tensor that an operator computes.

    In a range from -a to a, zero lies halfway between two of 256 codes. An image of codes 0 to 255 that is shifted to
    it (x / 127.5 - 1) would lie halfway everywhere, and be rounded to one side: half a step of bias that no average
    removes. The range gets 254 steps then, so that zero has a code.
    """
    encoding = choose_encoding(activation_range, bits, symmetric)
    low, high = min(activation_range[0], 0.0), max(activation_range[1], 0.0)
    is_centred = abs(low + high) < HALFWAY_TOLERANCE * encoding.scale
    if bits == 16 or symmetric or not is_centred:
        return encoding
    return Encoding(bits, float(np.float32(max(-low, high, MIN_RANGE) / 127)), 0)


def choose_encoding(activation_range: ActivationRange, bits: BitWidth, symmetric: bool = False) -> Encoding:
    """The encoding of a range, zero included: asymmetric in 8 bits unless `symmetric`; 16-bit kernels require it."""
    low, high = min(activation_range[0], 0.0), max(activation_range[1], 0.0)
    if bits == 16 or symmetric:
        return Encoding(bits, float(np.float32(max(-low, high, MIN_RANGE) / (2 ** (bits - 1) - 1))), 0)
    scale = float(np.float32(max(high - low, MIN_RANGE) / 255))
    return Encoding(bits, scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))
