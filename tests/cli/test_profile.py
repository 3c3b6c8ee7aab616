"""`edgepipe profile`: many devices at once, each number with its evidence, each operator with its place."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command
from tflite_handmade import Op, T, write

from edgepipe.commands import profile as profiling
from edgepipe.core.cache import Cache
from edgepipe.devices import device_profile


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    """A .tflite of one int8 RELU and one ATAN2, which few devices run."""
    tensors = [T(name, (1, 16), scales=(0.1,), zero_points=(0,)) for name in ("x", "y")]
    return write(tmp_path / "relu.tflite", tensors, [Op("RELU", ("x",), ("y",))], ["x"], ["y"])


@pytest.mark.slow
def test_every_device_is_profiled_without_tensorflow_and_vela_once(relu: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    first, second = profiling.profile_model(relu, cache=cache), profiling.profile_model(relu, cache=cache)
    assert [found.device for found in first.devices] == device_profile.device_names()
    assert len(first.devices) >= 24
    assert set(first.seconds) == {"estimates", "Vela", "runs"}
    assert second.seconds["Vela"] < first.seconds["Vela"] / 2
    for found in first.devices:
        assert {"latency", "ram", "flash"} <= {metric.name for metric in found.metrics}
        assert [operator.operator for operator in found.operators] == ["RELU #0"]
        assert all(metric.how for metric in found.metrics)


def test_profile_imports_no_tensorflow(relu: Path) -> None:
    code = (
        "import sys; from edgepipe import api; "
        f"api.profile({str(relu)!r}, devices=['stm32h747i-disco', 'raspberry-pi-4']); "
        "print([name for name in ('tensorflow', 'keras', 'tf_keras') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_estimate_is_told_with_its_interval_and_its_error(relu: Path, command: Command) -> None:
    ended = command("profile", relu, "--device", "stm32h747i-disco", "--json")
    assert ended.code == 0, ended.err
    (device,) = json.loads(ended.out)["devices"]
    latency = next(metric for metric in device["metrics"] if metric["name"] == "latency")
    assert latency["evidence"] == "estimated"
    low, high = latency["interval"]
    assert low < latency["value"] < high
    assert "error on model families not used in the fit: median" in latency["how"]
    assert "EXTRAPOLATES" in latency["how"]  # no fitted model is that small
    assert device["operators"][0]["seconds"] > 0


def test_what_the_npu_leaves_to_the_core_is_named(models: Path, tmp_path: Path, command: Command) -> None:
    ended = command("profile", models / "float.tflite", "--device", "ethos-u55-128", "--device", "coral-edge-tpu",
                    "--cache-dir", tmp_path / "cache")  # fmt: skip
    assert ended.code == 0, ended.err
    assert "Operators on ethos-u55-128" in ended.out
    assert "npu-fallback" in ended.out
    assert "FULLY_CONNECTED #0" in ended.out
    assert "took: " in ended.err


def test_every_operator_is_listed_on_demand(models: Path, command: Command) -> None:
    short = command("profile", models / "int8.tflite", "--device", "stm32h747i-disco")
    whole = command("profile", models / "int8.tflite", "--device", "stm32h747i-disco", "--operators", "--quiet")
    assert "FULLY_CONNECTED" not in short.out
    assert "FULLY_CONNECTED" in whole.out
    assert whole.err == ""


@pytest.mark.skipif(shutil.which("edgetpu_compiler") is not None, reason="the vendor's compiler is here")
def test_without_the_vendors_compiler_the_edge_tpu_share_is_estimated(models: Path, command: Command) -> None:
    ended = command("profile", models / "int8.tflite", "--device", "coral-edge-tpu", "--json")
    result = json.loads(ended.out)["devices"][0]
    share = next(metric for metric in result["metrics"] if metric["name"] == "npu_operators")
    assert share["evidence"] == "estimated"
    assert share["interval"][0] <= share["value"] <= share["interval"][1]
    assert all(operator["basis"] for operator in result["operators"])
    assert "coral.ai/docs/edgetpu/compiler" in share["how"]


@pytest.mark.skipif(shutil.which("edgetpu_compiler") is not None, reason="the vendor's compiler is here")
def test_an_open_placement_is_listed_as_such(tmp_path: Path, command: Command) -> None:
    tensors = [T(name, (1, 4, 4, 4), "int8", scales=(0.1,)) for name in "xyz"]
    operators = [Op("RELU", ("x",), ("y",)), Op("HARD_SWISH", ("y",), ("z",))]
    path = write(tmp_path / "m.tflite", tensors, operators, ["x"], ["z"])
    ended = command("profile", path, "--device", "coral-edge-tpu")
    (swish,) = [line for line in ended.out.splitlines() if line.strip().startswith("HARD_SWISH")]
    assert "estimated, open" in swish
    assert "50.00 % (50.00 % .. 100.00 %)" in ended.out


WRONG = [
    (["gone.tflite"], "gone.tflite: cannot be read"),
    (["--device", "stm32h747i-disko"], "unknown device 'stm32h747i-disko'; did you mean 'stm32h747i-disco'?"),
    (["--device", "mine.yaml"], "mine.yaml: cannot be read"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_wrong_word_is_one_clear_error(relu: Path, command: Command, words: list[str], message: str) -> None:
    ended = command("profile", *([relu] if words[0].startswith("--") else []), *words)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
