"""The Edge TPU's placement against Coral's published pairs, each judged by what the others teach."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from edgepipe.core.metric import Judgement
from edgepipe.devices import device_profile
from edgepipe.devices.device_metrics import estimate_npu_share
from edgepipe.devices.device_profile import Device
from edgepipe.devices.edgetpu.compiled_pairs import CompiledPair, read_pairs
from edgepipe.devices.edgetpu.mapping_limits import MappingState, Sighting, learn_limits
from edgepipe.devices.operator_placement import Processor
from edgepipe.devices.placement import OpenChoice, place_operators
from edgepipe.devices.support_check import check_support
from edgepipe.tflite.model import Operator, Tensor

PAIRS = {pair.name: pair for pair in read_pairs()}
FAMILIES = (
    "posenet",
    "deeplabv3",
    "mobilenet_v1",
    "deeplab_mobilenet_edgetpu",
    "keras_lstm",
    "movenet",
    "split_concat",
)
# The only ones of a kind: TILE on the Edge TPU, CAST in front of the float interface, and, as a family, 1 x 1 resized.
ONLY_PAIRS = {"deeplab_mobilenet_edgetpu_slim_cityscapes_quant", "movenet_single_pose_lightning_ptq"}
ONLY_FAMILIES = {"deeplabv3"}


@pytest.fixture(scope="module")
def coral() -> Device:
    return device_profile.load("coral-edge-tpu", Path(__file__).parent)


def _npu_indices(
    coral: Device, pair: CompiledPair, teachers: Iterable[CompiledPair], choice: OpenChoice = OpenChoice.LIKELY
) -> set[int]:
    placements = place_operators(coral, pair.model, choice, learn_limits(teachers))
    return {index for index, placement in enumerate(placements) if placement.runs_on is Processor.NPU}


def _mapped_indices(pair: CompiledPair) -> set[int]:
    return {operator.index for operator in pair.model.operators} - pair.cpu_indices


def _family(name: str) -> str:
    return next(family for family in FAMILIES if name.replace("bodypix_mobilenet", "posenet").startswith(family))


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_placed_as_its_compiler_did(name: str, coral: Device) -> None:
    pair = PAIRS[name]
    for choice in OpenChoice:
        assert _npu_indices(coral, pair, PAIRS.values(), choice) == _mapped_indices(pair)


@pytest.mark.parametrize("by_family", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_placed_by_what_the_others_teach(name: str, by_family: bool, coral: Device) -> None:
    pair = PAIRS[name]
    teachers = [
        other for other in PAIRS.values() if (_family(other.name) != _family(name) if by_family else other is not pair)
    ]
    low, high = (_npu_indices(coral, pair, teachers, choice) for choice in (OpenChoice.CPU, OpenChoice.NPU))
    assert low <= _mapped_indices(pair) <= high
    if name not in ONLY_PAIRS and not (by_family and _family(name) in ONLY_FAMILIES):
        assert _npu_indices(coral, pair, teachers) == _mapped_indices(pair)


def test_a_pair_that_no_other_settles_has_an_open_operator(coral: Device) -> None:
    pair = PAIRS["deeplab_mobilenet_edgetpu_slim_cityscapes_quant"]
    limits = learn_limits(other for other in PAIRS.values() if other is not pair)
    open_placements = [p for p in place_operators(coral, pair.model, limits=limits) if p.is_open]
    assert [p.operator_label for p in open_placements] == ["TILE #76"]
    assert "open: TILE is not in Coral's table" in open_placements[0].basis


def test_every_placement_says_what_it_is_known_from(coral: Device) -> None:
    for pair in PAIRS.values():
        for placement in place_operators(coral, pair.model):
            assert placement.basis, (pair.name, placement)


def test_the_share_of_a_settled_model_has_equal_bounds(coral: Device) -> None:
    pair = PAIRS["movenet_single_pose_lightning_ptq"]
    metric = estimate_npu_share(coral, pair.model)
    assert metric.value == pytest.approx(98 / 157)
    assert metric.interval == (metric.value, metric.value)
    assert {finding.judgement for finding in check_support(coral, pair.model)} >= {Judgement.NOT_MET}


def _resize(side: int, factor: int, channels: int, version: int = 3) -> Operator:
    shapes = ((1, side, side, channels), (1, side * factor, side * factor, channels))
    source, target = (Tensor(index, 0, "", shape, "int8", False, 0, None) for index, shape in enumerate(shapes))
    return Operator(0, 0, "RESIZE_BILINEAR", (source,), (target,), 0, version=version)


@pytest.mark.parametrize(
    ("operator", "state", "basis"),
    [
        (_resize(24, 2, 24), MappingState.MAPPED, "in this size or a larger one in movenet"),
        (_resize(33, 16, 19), MappingState.CPU, "in this size or a smaller one in deeplab"),
        (_resize(256, 2, 32), MappingState.CPU, "issues/31"),
        (_resize(64, 8, 1), MappingState.OPEN_MAPPED, "262,144 elements at 8 times the side lies beyond"),
        (
            _resize(24, 2, 24, version=4),
            MappingState.OPEN_MAPPED,
            "version 4 of RESIZE_BILINEAR came with TensorFlow Lite 2.5.0, and",
        ),
    ],
)
def test_sizes_and_versions_between_what_was_seen_are_open(operator: Operator, state: MappingState, basis: str) -> None:
    mapping = learn_limits(PAIRS.values()).judge(operator, is_listed=True)
    assert mapping.state is state
    assert basis in mapping.basis


@pytest.mark.parametrize(
    ("name", "version", "state"),
    [
        ("AVERAGE_POOL_2D", 2, MappingState.MAPPED),  # int8, of 1.14; the pairs have uint8 only
        ("FULLY_CONNECTED", 4, MappingState.MAPPED),
        ("FULLY_CONNECTED", 9, MappingState.OPEN_MAPPED),  # 2.3, newer than what the pairs show
        ("FULLY_CONNECTED", 12, MappingState.CPU),  # 2.17, newer than the compiler
    ],
)
def test_versions_are_judged_by_the_release_that_brought_them(name: str, version: int, state: MappingState) -> None:
    operator = Operator(0, 0, name, (), (), 0, version=version)
    mapping = learn_limits(PAIRS.values()).judge(operator, is_listed=True)
    assert mapping.state is state


def test_learning_counts_what_is_cut_and_not_what_is_behind() -> None:
    limits = learn_limits([PAIRS["deeplabv3_mnv2_pascal_quant"]])
    assert "CONCATENATION" not in limits.cpu_by_name  # behind the resize
    assert Sighting("deeplabv3_mnv2_pascal_quant", 1, (278_784.0, 33.0)) in limits.cpu_by_name["RESIZE_BILINEAR"]
