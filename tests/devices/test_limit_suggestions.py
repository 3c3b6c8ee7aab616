"""Suggestions for missed limits: a network built to what they say meets the limit, and `check` takes their options."""

import re
from pathlib import Path

import pytest
import yaml
from commands import Command
from tflite_handmade import Op, T, write

import edgepipe
from edgepipe.core.metric import Evidence, Limit, Metric, judge
from edgepipe.core.units import Dimension
from edgepipe.devices.calibration.network_builder import NetworkBuilder
from edgepipe.devices.device_metrics import file_metrics
from edgepipe.devices.limit_suggestions import suggest_for_limit
from edgepipe.tflite.arena_plan import plan_arena
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

WIDTH = 64


def network(folder: Path, width: int) -> Model:
    """Convolutions of so many channels, with a small input and few outputs."""
    builder = NetworkBuilder(1)
    node = builder.conv(builder.input(16, 16, 4), width, 3)
    for _ in range(3):
        node = builder.conv(node, width, 3)
    builder.set_outputs(builder.dense(builder.mean(node), 4))
    path = folder / f"width{width}.tflite"
    path.write_bytes(builder.to_bytes())
    return read(path)


def metric(model: Model, name: str) -> Metric:
    if name == "ram":
        value = plan_arena(model).naive_peak_bytes
        return Metric(name="ram", value=value, unit=Dimension.BYTES, evidence=Evidence.SIMULATED, how="planned")
    return next(metric for metric in file_metrics(model) if metric.name == name)


def suggestion(model: Model, name: str, share: float, **more: object) -> str:
    """What is suggested for a limit at `share` of what the model takes."""
    measured = metric(model, name)
    assert measured.value is not None
    limit = Limit.model_validate(
        {"metric": name, "unit": measured.unit, "bound": "max", "value": measured.value * share, **more}
    )
    return suggest_for_limit(judge(limit, [measured]), model)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("name", ["size", "macs", "parameters", "ram"])
def test_a_network_with_that_many_channels_less_meets_the_limit(name: str, share: float, tmp_path: Path) -> None:
    """Within what input, output and biases take, which do not shrink with the square; and not far below it."""
    model = network(tmp_path, WIDTH)
    match = re.search(r"(\d+) ?% (?:of the channels less|less of that)", suggestion(model, name, share))
    assert match
    smaller = network(tmp_path, round(WIDTH * (1 - int(match[1]) / 100)))
    reached = (metric(smaller, name).value or 0) / (metric(model, name).value or 1)
    assert share - 0.06 < reached < share + 0.06


def test_a_suggested_option_is_one_that_check_takes(tmp_path: Path) -> None:
    model, options = network(tmp_path, WIDTH), []
    for name in ("size", "macs", "parameters", "nonzero_parameters"):
        match = re.search(r"`prune: (\{.+\})`", suggestion(model, name, 0.5))
        assert match
        options.append(yaml.safe_load(match[1]))
    latency = Metric(name="latency", value=0.02, unit=Dimension.SECONDS, evidence=Evidence.ESTIMATED, how="fitted",
                     device="nucleo-l4r5zi", interval=(0.01, 0.03))  # fmt: skip
    limit = Limit(metric="latency", unit=Dimension.SECONDS, bound="max", value=0.0125, device="nucleo-l4r5zi")
    match = re.search(r"`prune: (\{.+\})`", suggest_for_limit(judge(limit, [latency]), model))
    assert match
    options.append(yaml.safe_load(match[1]))
    for option in options:
        edgepipe.check(
            {"name": "p", "model": "edgepipe.zoo:small_cnn", "data": "edgepipe.data:digits", "task": "classification",
             "stages": [{"prune": option}, "convert"]}
        )  # fmt: skip


def _float_model(folder: Path) -> Model:
    tensors = [T("x", (1, 8), "FLOAT32"), T("w", (4, 8), "FLOAT32", data=bytes(128)), T("y", (1, 4), "FLOAT32")]
    return read(
        write(folder / "float.tflite", tensors, [Op("FULLY_CONNECTED", ("x", "w", None), ("y",))], ["x"], ["y"])
    )


def test_a_float_model_becomes_an_integer_one_first(tmp_path: Path) -> None:
    model = _float_model(tmp_path)
    assert suggestion(model, "size", 0.95).startswith("`convert: {scheme: int8}` would save ")
    assert "takes a quarter of that" in suggestion(model, "ram", 0.5)


def test_where_nothing_helps_it_says_so_or_nothing(tmp_path: Path) -> None:
    model = network(tmp_path, 8)
    assert "removing weights cannot meet this" in suggestion(model, "size", 0.01)
    assert suggestion(model, "size", 1.0) == ""
    assert suggestion(model, "size", 2.0, evidence="measured") == ""  # only the evidence is missed
    assert suggestion(model, "macs", 2.0, bound="min") == ""


def test_verify_prints_them(tmp_path: Path, command: Command) -> None:
    model = network(tmp_path, WIDTH)
    ended = command("verify", model.path, "--max", "size=20KiB")
    assert ended.code == 3
    assert "Suggestions, computed and not tried" in ended.out
    assert "% of the channels less (`prune: {granularity: channel, target: {flash: 20.0 KiB}}`)" in ended.out
    assert "Suggestions" not in command("verify", model.path, "--max", "size=2MiB").out
