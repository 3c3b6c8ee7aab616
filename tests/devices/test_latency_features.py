"""Features counted from shapes, compared with counts by hand and with known models."""

from pathlib import Path

import numpy as np
import pytest
from tflite_handmade import Op, T, write

from edgepipe.devices.latency import operator_features
from edgepipe.devices.latency.feature_names import FEATURE_DESCRIPTIONS, ChannelTile
from edgepipe.tflite import reader
from edgepipe.tflite.model import Model


def _conv(folder: Path, kernel: tuple[int, int, int, int], input_shape: tuple[int, int, int]) -> Model:
    """A stride-1 convolution with SAME padding: kernel (out, height, width, in) on (height, width, in)."""
    weights = T("w", kernel, data=np.ones(kernel, np.int8), scales=(0.1,), zero_points=(0,))
    bias = T("b", kernel[:1], "int32", data=np.zeros(kernel[0], np.int32), scales=(0.1,), zero_points=(0,))
    x = T("x", (1, *input_shape), scales=(0.1,), zero_points=(0,))
    y = T("y", (1, *input_shape[:2], kernel[0]), scales=(0.1,), zero_points=(0,))
    path = write(folder / "conv.tflite", [x, weights, bias, y], [Op("CONV_2D", ("x", "w", "b"), ("y",))], ["x"], ["y"])
    return reader.read(path)


CONVOLUTIONS = [
    # kernel, input shape, expected features besides outputs (64 x filters), one operator and its activations
    ((16, 1, 1, 8), (8, 8, 8), {"pointwise_macs": 8192, "conv_macs": 8192, "weights": 144}),
    ((16, 3, 3, 8), (8, 8, 8), {"kernel_macs": 73728, "conv_macs": 73728, "patch_elements": 4608, "weights": 1168}),
    (
        (16, 3, 3, 3),
        (8, 8, 3),
        {"kernel_macs": 27648, "first_macs": 27648, "first_outputs": 1024, "patch_elements": 1728, "weights": 448},
    ),
]


@pytest.mark.parametrize(("kernel", "input_shape", "expected_features"), CONVOLUTIONS)
def test_a_convolution_by_hand(
    tmp_path: Path, kernel: tuple[int, ...], input_shape: tuple[int, ...], expected_features: dict
) -> None:
    features = operator_features.sum_features(_conv(tmp_path, kernel, input_shape))
    outputs = 64 * kernel[0]
    common_features = {
        "inference": 1,
        "operators": 1,
        "conv_outputs": outputs,
        "activations": 64 * input_shape[-1] + outputs,
    }
    assert {name: amount for name, amount in features.items() if amount} == {**common_features, **expected_features}


def test_a_1x1_convolution_on_one_position_is_a_dense_layer(tmp_path: Path) -> None:
    features = operator_features.sum_features(_conv(tmp_path, (16, 1, 1, 8), (1, 1, 8)))
    assert features["dense_macs"] == 128
    assert features["pointwise_macs"] == features["conv_outputs"] == 0


@pytest.mark.parametrize(("channels", "filters", "padded_macs"), [(8, 16, 16 * 8), (9, 16, 16 * 16), (3, 17, 32 * 8)])
def test_a_matrix_unit_computes_whole_tiles(tmp_path: Path, channels: int, filters: int, padded_macs: int) -> None:
    model = _conv(tmp_path, (filters, 1, 1, channels), (8, 8, channels))
    assert operator_features.sum_features(model, ChannelTile(16, 8))["conv_macs"] == 64 * padded_macs


@pytest.mark.parametrize(("on_chip", "spilled_weights"), [(None, 0), (2000, 0), (1168, 0), (1167, 1168)])
def test_weights_that_do_not_fit_the_chip_are_spilled(
    tmp_path: Path, on_chip: int | None, spilled_weights: int
) -> None:
    model = _conv(tmp_path, (16, 3, 3, 8), (8, 8, 8))
    assert operator_features.sum_features(model, on_chip_weights=on_chip)["spilled_weights"] == spilled_weights


def test_constant_folded_operators_cost_nothing(tmp_path: Path) -> None:
    tensors = [
        *(T(name, (1, 4), scales=(0.1,), zero_points=(0,)) for name in ("x", "y", "z")),
        T("shape", (2,), "int32"), T("begin", (1,), "int32", data=np.zeros(1, np.int32)),
        T("size", (1,), "int32", data=np.ones(1, np.int32)), T("part", (1,), "int32"),
        T("known", (1, 4), data=np.ones((1, 4), np.int8), scales=(0.1,), zero_points=(0,)),
        T("sum", (1, 4), scales=(0.1,), zero_points=(0,)),
    ]  # fmt: skip
    ops = [
        Op("SHAPE", ("x",), ("shape",)),
        Op("SLICE", ("shape", "begin", "size"), ("part",)),  # of a shape: known
        Op("ADD", ("known", "known"), ("sum",)),  # of constants: known
        Op("RESHAPE", ("x", "shape"), ("y",)),  # moves no byte
        Op("ADD", ("y", "sum"), ("z",)),
    ]
    model = reader.read(write(tmp_path / "fold.tflite", tensors, ops, ["x"], ["z"]))
    assert [operator.location for operator, _ in operator_features.iter_features(model)] == ["ADD #4"]
    assert operator_features.sum_features(model)["arithmetic_outputs"] == 4


def test_every_operator_of_a_model_adds_to_its_features(models: Path) -> None:
    model = reader.read(models / "int8.tflite")
    total_features = operator_features.sum_features(model)
    summed_features = dict.fromkeys(FEATURE_DESCRIPTIONS, 0.0)
    for _, features in operator_features.iter_features(model):
        assert set(features) <= set(FEATURE_DESCRIPTIONS)
        for name, amount in features.items():
            summed_features[name] += amount
    assert total_features == {**summed_features, "inference": 1.0}
    products = ("pointwise_macs", "kernel_macs", "depthwise_macs", "dense_macs")
    assert sum(total_features[name] for name in products) == model.macs
