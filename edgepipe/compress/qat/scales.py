"""Scale and zero point of fake-quantized tensors, as TFLite stores them."""

from dataclasses import dataclass

import numpy as np

from edgepipe.compress.qat.quantizers import FixedRangeQuantizer
from edgepipe.models.keras_types import TfKerasLayer


@dataclass(frozen=True)
class QuantizedRange:
    """Scale and zero point of a fake-quantized tensor, as TFLite stores them for int8."""

    scale: float
    zero_point: int


def read_fake_quant_range(layer: TfKerasLayer) -> QuantizedRange:
    """The range of a fake-quant layer, nudged so that zero is exact.

    Computed in float32, as in tensorflow/core/kernels/fake_quant_ops_functor.h.
    """
    quantizer = layer.quantizer
    if isinstance(quantizer, FixedRangeQuantizer):
        low, high = np.float32(quantizer.init_min), np.float32(quantizer.init_max)
    else:
        low, high = (np.float32(layer.quantizer_vars[name].numpy()) for name in ("min_var", "max_var"))
    scale = (high - low) / np.float32(255)
    zero_point = np.clip(np.floor(-low / scale + np.float32(0.5)), 0, 255)
    return QuantizedRange(float(scale), int(zero_point) - 128)
