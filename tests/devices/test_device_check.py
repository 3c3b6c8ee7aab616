"""Real models against the shipped profiles, and the operator lists against the packages they come from."""

import re
from pathlib import Path

import pytest

from edgepipe.core.metric import Finding
from edgepipe.devices import builtin_operators, device_profile
from edgepipe.devices.support_check import check_support
from edgepipe.tflite import reader
from edgepipe.tflite.model import BITS

HERE = Path(__file__).parent
FALLS_BACK = {"stm32mp257f", "stm32n6570-dk"}  # weights per channel; software for the softmax


def findings(device: str, model: Path) -> list[Finding]:
    return check_support(device_profile.load(device, HERE), reader.read(model))


@pytest.mark.parametrize("device", device_profile.names())
def test_an_integer_model_runs_everywhere(device: str, models: Path) -> None:
    found = findings(device, models / "int8.tflite")
    assert {finding.rule for finding in found} <= {"npu-fallback"}
    assert device in FALLS_BACK or found == []


def test_a_float_model_is_a_finding_where_only_integers_run(models: Path) -> None:
    assert findings("host", models / "float.tflite") == []
    assert findings("raspberry-pi-4", models / "float.tflite") == []
    found = findings("nucleo-l4r5zi", models / "float.tflite")
    operators = reader.read(models / "float.tflite").operators
    assert [finding.place for finding in found] == [operator.location for operator in operators]
    assert {finding.rule for finding in found} == {"integer-only"}
    assert "is float32" in found[0].observed
    assert found[0].suggestion == "convert to full-integer int8, inputs and outputs included"


def test_an_operator_without_a_kernel_is_named(models: Path) -> None:
    rules = {finding.rule: finding for finding in findings("nucleo-l4r5zi", models / "atan2.tflite")}
    assert rules["operator"].place.startswith("ATAN2 #")
    assert rules["operator"].observed == "tflite-micro 0.dev20261023182759 on nucleo-l4r5zi has no operator ATAN2"
    assert findings("host", models / "atan2.tflite") == []


def test_a_custom_operator_is_a_finding_even_where_all_builtins_run(models: Path) -> None:
    (found,) = findings("host", models / "custom.tflite")
    assert (found.rule, found.place) == ("operator", "Erfc #0")
    assert "needs a runtime built with it" in found.suggestion


def test_what_the_npu_does_not_take_is_said(models: Path) -> None:
    found = findings("ethos-u55-128", models / "atan2.tflite")
    places = {rule: {f.place.split(" ")[0] for f in found if f.rule == rule} for rule in ("operator", "npu-fallback")}
    assert places == {"operator": {"ATAN2"}, "npu-fallback": {"ADD"}}, "what runs nowhere is no fallback"
    float_adds = [f for f in findings("ethos-u55-128", models / "float.tflite") if f.rule == "npu-fallback"]
    assert all("is float32" in finding.observed for finding in float_adds)
    assert len(float_adds) == len(reader.read(models / "float.tflite").operators)


def test_a_type_that_the_runtime_lacks_is_named(models: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "inherit: nucleo-l4r5zi\nname: small\ndescription: d\nsources: [s]\ndtypes: [int16, int32]\n"
    )
    found = check_support(device_profile.load("small.yaml", tmp_path), reader.read(models / "int8.tflite"))
    assert {finding.rule for finding in found} == {"dtype"}
    assert found[0].suggestion == "small takes int16, int32"
    assert "is int8" in found[0].observed


def test_operator_names_are_those_of_the_schema() -> None:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {name for name in vars(BuiltinOperator) if not name.startswith("_")}
    assert names - {"CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES"} == builtin_operators.NAMES


def test_types_are_those_that_the_graph_reader_gives() -> None:
    assert set(device_profile.DType.__args__) <= set(BITS)  # type: ignore[attr-defined]


def test_micro_operators_are_the_kernels_of_the_package() -> None:
    package = pytest.importorskip("tflite_micro", reason="the extra `micro` is not installed")
    (library,) = Path(package.__path__[0]).rglob("_runtime.so")
    kernels = {match.decode() for match in re.findall(rb"Register_([A-Z0-9_]+?)Ev\0", library.read_bytes())}
    device = device_profile.load("nucleo-l4r5zi", HERE)
    assert device.operators is not None
    assert kernels & builtin_operators.NAMES == set(device.operators)


def test_npu_operators_are_those_of_vela(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ethosu.vela", reason="the extra `npu` is not installed")
    import subprocess
    import sys

    subprocess.run(
        [sys.executable, "-m", "ethosu.vela", "--supported-ops-report"], cwd=tmp_path, check=True, capture_output=True
    )
    table = (tmp_path / "SUPPORTED_OPS.md").read_text().split("## Ethos-U85 TFLite Summary")[0]
    npu = device_profile.load("ethos-u55-128", HERE).system.npu
    assert npu is not None
    assert npu.operators is not None
    assert set(re.findall(r"^\| ([A-Z0-9_]+) \| \[", table, re.MULTILINE)) == set(npu.operators)
