"""Where operators run, why, and what would change it: on converted models that violate one rule each."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from edgepipe.core.errors import ToolError
from edgepipe.core.metric import Judgement
from edgepipe.devices import device_profile, edgetpu_compiler, memory_estimate
from edgepipe.devices.accelerator_rules import RULE_BY_NAME
from edgepipe.devices.device_profile import RuleName
from edgepipe.devices.operator_placement import Processor
from edgepipe.devices.placement import REPLACEMENTS_BY_OPERATOR, place_operators, suggest_replacement
from edgepipe.devices.support_check import check_support
from edgepipe.tflite import reader
from edgepipe.tflite.arena_plan import plan_arena
from edgepipe.tflite.model import Model

FOLDER = Path(__file__).parent
ModelConverter = Callable[..., Model]


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> ModelConverter:
    """Converts a function of one tensor; with `int8`, fully quantized."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("placed")

    def convert_function(
        function: Callable[[Any], Any], shape: tuple[int | None, ...] = (1, 8, 8, 4), int8: bool = False
    ) -> Model:
        concrete_function = tf.function(function).get_concrete_function(tf.TensorSpec(shape))
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete_function])
        if int8:
            fixed_shape = tuple(size or 1 for size in shape)
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([np.random.randn(*fixed_shape).astype("f4")] for _ in range(4))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        file = folder / f"{len(list(folder.iterdir()))}.tflite"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected", UserWarning)
            file.write_bytes(converter.convert())
        return reader.read(file)

    return convert_function


def tf_() -> Any:
    import tensorflow as tf

    return tf


def kernel(*shape: int) -> Any:
    return tf_().constant(np.linspace(-1, 1, int(np.prod(shape))).reshape(shape), tf_().float32)


VIOLATIONS = {  # rule: a model that violates it, its input shape, part of the reason
    "static-shapes": (lambda x: tf_().nn.elu(x), (1, None, 8, 4), "1 x ? x 8 x 4"),
    "batch-one": (lambda x: tf_().nn.elu(x), (2, 8), "2 x 8"),
    "constant-parameters": (
        lambda x: tf_().nn.conv2d(x, tf_().reshape(x[0, 0, 0], (1, 1, 4, 1)), 1, "SAME"), (1, 8, 8, 4), "is computed"
    ),
    "three-dimensions": (lambda x: tf_().nn.elu(x), (2, 8, 8, 4), "2 x 8 x 8 x 4"),
    "plain-activation": (lambda x: tf_().nn.relu(tf_().nn.max_pool2d(x, 2, 2, "SAME")), (1, 8, 8, 4), "RELU is fused"),
    "equal-dilation": (
        lambda x: tf_().nn.conv2d(x, kernel(3, 3, 4, 4), 1, "SAME", dilations=[1, 2, 1, 1]), (1, 8, 8, 4), "2 x 1"
    ),
    "one-row": (lambda x: tf_().matmul(x, kernel(4, 5)), (3, 4), "3 x 5"),
    "zero-padding": (lambda x: tf_().concat([x, kernel(1, 8, 8, 4)], -1), (1, 8, 8, 4), "is not all zeros"),
    "softmax-size": (lambda x: tf_().nn.softmax(x), (3, 5), "3 x 5"),
    "keeps-batch": (lambda x: tf_().reduce_mean(x, [0]), (1, 8, 8, 4), "axis 0"),
    "mean-depth": (lambda x: tf_().reduce_mean(x, [3]), (1, 8, 8, 6), "1 x 8 x 8 x 6"),
    "unit-strides": (lambda x: x[:, ::2], (1, 8, 8, 4), "strides 1 x 2"),
    "prelu-per-channel": (
        lambda x: tf_().nn.relu(x) + -kernel(8, 8, 4) * tf_().nn.relu(-x), (1, 8, 8, 4), "8 x 8 x 4"
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_rule_reports_violations_only(name: str, convert: ModelConverter) -> None:
    function, shape, fragment = VIOLATIONS[name]
    model = convert(function, shape)
    violations = [RULE_BY_NAME[name].describe_violation(model, operator) for operator in model.operators]
    assert any(fragment in violation for violation in violations), (violations, model.operator_counts)
    valid_model = convert(
        lambda x: tf_().nn.softmax(tf_().reshape(tf_().nn.conv2d(x, kernel(3, 3, 4, 4), 2, "SAME"), (1, -1)))
    )
    assert [RULE_BY_NAME[name].describe_violation(valid_model, operator) for operator in valid_model.operators] == [
        ""
    ] * len(valid_model.operators)


def test_weights_per_channel_go_to_the_gpu(convert: ModelConverter) -> None:
    model = convert(lambda x: tf_().nn.conv2d(x, kernel(3, 3, 4, 4), 1, "SAME"), int8=True)
    placements = place_operators(device_profile.load("stm32mp257f", FOLDER), model)
    (conv,) = [p for p in placements if p.operator_label.startswith("CONV_2D")]
    assert (conv.runs_on, conv.rule_name) == (Processor.GPU, "per-tensor")
    assert "has 4 scales" in conv.reason
    assert conv.suggestion == "quantize weights per tensor, not per channel"
    assert {p.runs_on for p in place_operators(device_profile.load("imx8mp-npu", FOLDER), model)} == {Processor.NPU}


def test_profiles_and_rules_agree_on_names() -> None:
    assert set(get_args(RuleName)) == set(RULE_BY_NAME)
    assert set(VIOLATIONS) | {"per-tensor"} == set(RULE_BY_NAME)
    for rule in RULE_BY_NAME.values():
        assert "{" not in rule.text
        assert rule.suggestion


def test_hard_swish_and_its_dependents_leave_the_edge_tpu(convert: ModelConverter) -> None:
    def network(x: Any) -> Any:
        tf = tf_()
        x = tf.nn.conv2d(x, kernel(3, 3, 4, 4), 1, "SAME")
        x = x * tf.nn.relu6(x + 3.0) * (1 / 6)
        return tf.nn.relu(tf.nn.conv2d(x, kernel(3, 3, 4, 4), 1, "SAME"))

    model = convert(network, int8=True)
    device = device_profile.load("coral-edge-tpu", FOLDER)
    placement_by_operator = {
        p.operator_label.split(" ")[0]: p for p in place_operators(device, model) if p.runs_on is not Processor.NPU
    }
    assert "HARD_SWISH" in placement_by_operator, model.operator_counts
    swish = placement_by_operator["HARD_SWISH"]
    assert (swish.runs_on, swish.rule_name) == (Processor.CPU, "npu-mapping")
    assert "HARD_SWISH likely runs on the host CPU instead of the Edge TPU: open: HARD_SWISH is not in" in swish.reason
    assert swish.is_open
    assert swish.suggestion == "use ReLU6 in place of hard-swish"
    assert placement_by_operator["CONV_2D"].rule_name == "behind"
    first_placement = place_operators(device, model)[0]
    assert first_placement.runs_on is Processor.NPU
    (finding,) = check_support(device, model)
    assert finding.judgement is Judgement.UNKNOWN
    assert "1 operator downstream runs" in finding.observed or "operators downstream run there too" in finding.observed


def test_floats_stay_on_the_core_and_int8_is_proposed(models: Path) -> None:
    placements = place_operators(device_profile.load("stm32n6570-dk", FOLDER), reader.read(models / "float.tflite"))
    assert {p.runs_on for p in placements} == {Processor.CPU}
    assert any("convert to full-integer int8" in p.suggestion for p in placements)


def test_an_operator_that_runs_nowhere(models: Path) -> None:
    for device in ("nucleo-l4r5zi", "stm32h747i-disco", "stm32n6570-dk"):
        placements = place_operators(device_profile.load(device, FOLDER), reader.read(models / "atan2.tflite"))
        (atan2,) = [p for p in placements if p.operator_label.startswith("ATAN2")]
        assert (atan2.runs_on, atan2.rule_name) == (Processor.UNSUPPORTED, "operator"), device
        assert f"on {device} has no operator ATAN2" in atan2.reason


def test_dynamic_shapes_are_unsupported_on_a_microcontroller(convert: ModelConverter) -> None:
    placements = place_operators(
        device_profile.load("rp2040-pico", FOLDER), convert(lambda x: tf_().nn.relu(x), (1, None))
    )
    open_batch_model = convert(lambda x: tf_().nn.relu(x), (None, 8))
    assert Processor.UNSUPPORTED not in {
        p.runs_on for p in place_operators(device_profile.load("rp2040-pico", FOLDER), open_batch_model)
    }
    assert any(
        p.runs_on is Processor.UNSUPPORTED and "a batch of 1 and a fixed input shape" in p.suggestion
        for p in placements
    )


def test_padded_channels_are_reported(convert: ModelConverter, tmp_path: Path) -> None:
    text = "inherit: stm32n6570-dk\nname: n\ndescription: d\nsystem: {npu: {channels: 16}}\n"
    (tmp_path / "n.yaml").write_text(text)
    placements = place_operators(
        device_profile.load("n.yaml", tmp_path),
        convert(lambda x: tf_().nn.conv2d(x, kernel(3, 3, 4, 5), 1, "SAME"), int8=True),
    )
    (conv,) = [p for p in placements if p.operator_label.startswith("CONV_2D")]
    assert (conv.runs_on, conv.suggestion) == (Processor.NPU, "16 channels cost the same as 5")
    assert "68.75 % are padding" in conv.reason


@pytest.mark.parametrize("name", REPLACEMENTS_BY_OPERATOR)
def test_replacements_are_known_operators(name: str, models: Path) -> None:
    from edgepipe.devices import builtin_operators

    assert name in builtin_operators.OPERATOR_NAMES
    assert all(replacement in builtin_operators.OPERATOR_NAMES for replacement, _ in REPLACEMENTS_BY_OPERATOR[name])
    model = reader.read(models / "atan2.tflite")
    assert suggest_replacement(model, model.operators[0], ("RELU",)).startswith("replace its layer")


LOG = """\
Edge TPU Compiler version 16.0.384591198
Operator                       Count      Status

CONV_2D                        35         Mapped to Edge TPU
HARD_SWISH                     2          Operation not supported
SOFTMAX                        1          Operation is otherwise supported, but not mapped
"""


def test_the_compilers_log_is_read() -> None:
    rows = edgetpu_compiler.parse_mapping_rows(LOG)
    assert [(row.operator_name, row.count, row.is_mapped) for row in rows] == [
        ("CONV_2D", 35, True), ("HARD_SWISH", 2, False), ("SOFTMAX", 1, False)
    ]  # fmt: skip


def test_the_compiler_runs_if_it_is_installed(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not edgetpu_compiler.is_available()
    with pytest.raises(ToolError, match=r"not on the PATH.*coral\.ai/docs/edgetpu/compiler"):
        edgetpu_compiler.compile_model(models / "int8.tflite")
    program = tmp_path / edgetpu_compiler.COMPILER_COMMAND  # replaces the vendor's, which no package has
    program.write_text(f"#!/bin/sh\necho '{LOG}'\necho made > \"$3/int8_edgetpu.tflite\"\n")
    program.chmod(0o755)
    mapping = edgetpu_compiler.compile_model(models / "int8.tflite")
    assert (mapping.version, len(mapping.rows), mapping.content) == ("16.0.384591198", 3, b"made\n")
    program.write_text("#!/bin/sh\necho 'Invalid model' >&2\nexit 1\n")
    with pytest.raises(ToolError, match=r"exited with status 1 on .*: Invalid model"):
        edgetpu_compiler.compile_model(models / "int8.tflite")


def test_ram_and_flash_are_estimated_with_their_interval(models: Path) -> None:
    model = reader.read(models / "int8.tflite")
    device = device_profile.load("stm32h747i-disco", FOLDER)
    live_bytes = plan_arena(model).naive_peak_bytes
    assert live_bytes >= max(t.bytes for t in model.tensors if not t.is_constant)
    ram = memory_estimate.estimate_ram(device.ram, model, device.name)
    expected_ram = 0.676 * live_bytes + 4487 + 227 * len(model.operators)
    assert ram.value == pytest.approx(expected_ram)
    assert ram.interval == pytest.approx((0.81 * expected_ram, 1.71 * expected_ram))
    flash = memory_estimate.estimate_flash(device.flash, model, device.name)
    constants = sum(t.bytes for t in model.tensors if t.is_constant)
    assert flash.interval is not None
    assert constants < flash.interval[0] < (flash.value or 0) < flash.interval[1]
