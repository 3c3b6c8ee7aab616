"""What zero or shared weights gain on each runtime, as notes for models with many of them."""

from edgepipe.core import units
from edgepipe.core.metric import Metric
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import Device
from edgepipe.tflite.compressed_size import compressed_weight_share
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import weight_sparsity

NOTABLE_SPARSITY = 0.2  # share of zeros from which a user may expect a benefit
NOTABLE_COMPRESSION = 0.75  # compressed share of the weights at most; a plain int8 model reaches 0.9

# Keyed by the runtime name of a device profile.
# litert: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/delegates/xnnpack/README.md, "Sparse
#   Inference"; libLiteRt.so of ai-edge-litert 2.3.0 holds sparse kernels (spmm) for f16 and f32, none for integers.
# tflite-micro: no sparse kernel, and no DENSIFY (issue 491 there); EdgeMark measured no gain on a NUCLEO-L4R5ZI,
#   https://aminhasanpour.github.io/EdgeMark/results/TFLM_pruning_and_clustering
# x-cube-ai, neural-art: ST Edge AI Core documentation, stedgeai-dc.st.com, describes weight compression to save flash
#   in float dense layers, and no sparse kernel.
# openvx: VeriSilicon's OpenVX compiler stores kernels compressed (NXP AN12964 on its warm-up, i.MX Machine Learning
#   User's Guide); neither NXP nor ST publishes a gain in time.
# edgetpu: https://coral.ai/docs/edgetpu/models-intro/ does not mention sparsity, and its compiler has no such option.
# vela: Gekov 2023, "Benefit of pruning and clustering a neural network before deploying on Arm Ethos-U NPU", developer
#   .arm.com; Arm's notebook on pruning in pytorch/executorch (pull request 15851) on 2:4 and the Ethos-U85.
BENEFIT_BY_RUNTIME = {
    "litert": "no speed: XNNPACK computes them like any other weight (its sparse kernels take no int8, only 1x1 "
    "convolutions in float, in TFLite's sparse encoding, which edgepipe does not write)",
    "tflite-micro": "no speed: its kernels compute them like any other weight",
    "x-cube-ai": "no speed: ST documents no kernel that skips them",
    "neural-art": "no speed: ST documents no unit that skips them",
    "openvx": "memory traffic at most, because its compiler stores kernels compressed; no gain in time is published",
    "edgetpu": "no speed: Google documents no way to skip them",
    "vela": "flash and memory traffic, because Vela compresses weights, but no MACs: time only in layers that wait for "
    "memory (an Ethos-U85 skips zeros of the pattern 2:4)",
}


def benefit_notes(model: Model, devices: list[Device], size_metrics: list[Metric]) -> list[str]:
    """One note per runtime of `devices` if `model` has many zeros, and one on what compression saves.

    `size_metrics` must include `size` and `size_zstd`.
    """
    return [
        *_sparsity_notes(model, devices),
        *_compression_notes(model, {metric.name: metric.text() for metric in size_metrics}),
    ]


def _sparsity_notes(model: Model, devices: list[Device]) -> list[str]:
    layer_sparsities = weight_sparsity(model)
    elements, zeros = sum(layer.elements for layer in layer_sparsities), sum(layer.zeros for layer in layer_sparsities)
    if zeros <= NOTABLE_SPARSITY * elements:
        return []
    device_names_by_runtime: dict[str, list[str]] = {}
    for device in devices:
        device_names_by_runtime.setdefault(device.runtime.name, []).append(device.name)
    zero_share_text = units.show(zeros / elements, Dimension.FRACTION)
    return [
        f"{zero_share_text} of the kernels' weights are zero, which brings {runtime} ({', '.join(names)}) "
        f"{BENEFIT_BY_RUNTIME[runtime]}"
        for runtime, names in device_names_by_runtime.items()
    ]


def _compression_notes(model: Model, size_text_by_metric: dict[str, str]) -> list[str]:
    if compressed_weight_share(model) > NOTABLE_COMPRESSION:
        return []
    return [
        f"compressed, the .tflite takes {size_text_by_metric['size_zstd']} of {size_text_by_metric['size']} "
        "(size_zstd): zeros and shared weights "
        "save flash and bytes over the air only where the file is stored or sent compressed, and it is unpacked to run"
    ]
