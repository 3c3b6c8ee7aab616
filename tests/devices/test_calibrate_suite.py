"""The calibration suite: valid models, byte-identical everywhere."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgepipe.devices.calibration.suite import SUITE_GROUPS, Effort, SuiteCase, build_suite
from edgepipe.tflite import reader
from edgepipe.tflite.interpreter import Runtime, Session, run_on_zeros
from edgepipe.tflite.model import Model

SEED = 7
QUICK = build_suite(Effort.QUICK, SEED)
ON_TFLM = (
    "conv_1x1",
    "conv_3x3",
    "depthwise",
    "fully_connected",
    "add_same",
    "max_pool",
    "classifier",
)


def _first_case(group: str) -> SuiteCase:
    return next(case for case in QUICK if case.group == group)


def _model(case: SuiteCase, folder: Path) -> Model:
    path = folder / f"{case.name}.tflite"
    path.write_bytes(case.model_bytes(SEED))
    return reader.read(path)


def test_bytes_follow_from_the_seed() -> None:
    rebuilt_suite = {case.name: case for case in build_suite(Effort.QUICK, SEED)}
    for group in SUITE_GROUPS:
        case = _first_case(group.name)
        assert rebuilt_suite[case.name].model_bytes(SEED) == case.model_bytes(SEED)
    conv = _first_case("conv_3x3")
    assert conv.model_bytes(SEED) != conv.model_bytes(SEED + 1)  # other weights
    assert {case.name for case in build_suite(Effort.QUICK, SEED + 1)} != {case.name for case in QUICK}  # other shapes


def test_the_quick_suite_is_part_of_the_full_one() -> None:
    full_names = {case.name for case in build_suite(Effort.FULL, SEED)}
    assert {case.name for case in QUICK} < full_names
    assert len(QUICK) == len({case.name for case in QUICK})
    assert len(full_names) > 2 * len(QUICK) > 2 * 300


def test_each_group_is_there_and_every_model_runs(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for case in QUICK:
        model = _model(case, tmp_path)
        run_on_zeros(model, Runtime.XNNPACK, 1)
        counts[case.group] += 1
        assert {tensor.dtype for tensor in model.tensors} <= {"int8", "int32", "uint8", "float32"}
        assert model.macs <= 400e6, "a model that takes long spoils a quick calibration"
    assert set(counts) == {group.name for group in SUITE_GROUPS}
    assert all(counts[group.name] > 0.7 * group.quick_count for group in SUITE_GROUPS)


@pytest.mark.parametrize("group", [group.name for group in SUITE_GROUPS if not group.is_composite])
def test_reference_and_delegate_kernels_agree(group: str, tmp_path: Path) -> None:
    """Scales and zero points are valid only if delegate and reference give the same numbers.

    This does not hold for composites: a flipped rounding grows through the random weights.
    """
    model = _model(_first_case(group), tmp_path)
    random = np.random.default_rng(0)
    inputs = [random.uniform(-100, 100, t.shape).astype(t.dtype) for t in model.inputs]
    outputs_by_runtime = []
    for runtime in (Runtime.REFERENCE, Runtime.XNNPACK):
        session = Session(model, runtime, 1)
        interpreter = session.open_interpreter([tensor.shape for tensor in model.inputs])
        outputs_by_runtime.append([array.astype(np.float64) for array in session.invoke(interpreter, inputs)])
    for reference, delegate, tensor in zip(*outputs_by_runtime, model.outputs, strict=True):
        unit = 0.05 if tensor.dtype == "float32" else 1
        difference = np.abs(reference - delegate) / unit
        assert difference.max() <= 2, f"{group}: {difference.max()} units in the last place apart"


def test_weights_are_quantized_per_channel(tmp_path: Path) -> None:
    for group, axis in (("conv_3x3", 0), ("depthwise", 3)):
        weights = _model(_first_case(group), tmp_path).operators[0].input(1)
        assert weights is not None
        assert weights.quantization is not None
        assert (weights.quantization.axis, len(weights.quantization.scales)) == (axis, weights.shape[axis])


@pytest.mark.parametrize("group", ON_TFLM)
def test_tflite_micro_runs_the_models(group: str, tmp_path: Path) -> None:
    pytest.importorskip("tflite_micro")
    from edgepipe.tflite import tflm_runtime

    arena = tflm_runtime.measure_arena(_model(_first_case(group), tmp_path).path)
    assert arena.value, arena.how
