"""The small trained networks, ready to be quantized layer by layer."""

from functools import cache
from pathlib import Path

import hard_models as hm

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.quantizer.activation_calibration import calibrate
from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer, build_layerwise_quantizer
from edgepipe.compress.quantizer.quantizable_layers import find_layers
from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.compress.source_model import map_layer_classes
from edgepipe.tflite.reader import read


@cache
def trained_quantizer(name: str, folder: Path) -> LayerwiseQuantizer:
    """The network `name` of `hard_models`, with int8 inputs and outputs."""
    model = getattr(hm, name)()
    path = folder / f"{name}.tflite"
    path.write_bytes(convert(model, "float32"))
    lite = read(path)
    x = hm.data()[0]
    ranges = calibrate(lite, x[:200], ActivationCalibration()).by_tensor
    layers = find_layers(lite, map_layer_classes(model))
    return build_layerwise_quantizer(lite, layers, ranges, ("int8", "int8"), hm.data()[2])
