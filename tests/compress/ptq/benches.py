"""The small trained networks, ready to be quantized layer by layer."""

from functools import cache
from pathlib import Path

import hard_models as hm

from edgepipe.compress.conversion import classes
from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.quantizer.activation_calibration import calibrate
from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer, build_layerwise_quantizer
from edgepipe.compress.quantizer.quantizable_layers import find_layers
from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.tflite.reader import read


@cache
def bench(which: str, folder: Path) -> LayerwiseQuantizer:
    model = getattr(hm, which)()
    path = folder / f"{which}.tflite"
    path.write_bytes(convert(model, "float32"))
    lite = read(path)
    x = hm.data()[0]
    ranges = calibrate(lite, x[:200], ActivationCalibration()).by_tensor
    return build_layerwise_quantizer(lite, find_layers(lite, classes(model)), ranges, ("int8", "int8"), hm.data()[2])
