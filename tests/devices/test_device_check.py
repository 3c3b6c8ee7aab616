"""Checks real models against the shipped profiles, and the operator lists against their packages."""

import re
from pathlib import Path

import pytest

from edgepipe.core.metric import Finding
from edgepipe.devices import builtin_operators, device_profile
from edgepipe.devices.support_check import check_support
from edgepipe.tflite import reader
from edgepipe.tflite.model import BITS_BY_DTYPE

FOLDER = Path(__file__).parent
FALLBACK_DEVICES = {"stm32mp257f", "stm32n6570-dk"}  # per-channel weights; softmax in software


def check_model(device: str, model: Path) -> list[Finding]:
    return check_support(device_profile.load(device, FOLDER), reader.read(model))


@pytest.mark.parametrize("device", device_profile.device_names())
def test_an_integer_model_runs_everywhere(device: str, models: Path) -> None:
    findings = check_model(device, models / "int8.tflite")
    assert {finding.rule for finding in findings} <= {"npu-fallback"}
    assert device in FALLBACK_DEVICES or findings == []


def test_a_float_model_is_a_finding_where_only_integers_run(models: Path) -> None:
    assert check_model("host", models / "float.tflite") == []
    assert check_model("raspberry-pi-4", models / "float.tflite") == []
    findings = check_model("nucleo-l4r5zi", models / "float.tflite")
    operators = reader.read(models / "float.tflite").operators
    assert [finding.place for finding in findings] == [operator.location for operator in operators]
    assert {finding.rule for finding in findings} == {"integer-only"}
    assert "is float32" in findings[0].observed
    assert findings[0].suggestion == "convert to full-integer int8, inputs and outputs included"


def test_an_operator_without_a_kernel_is_named(models: Path) -> None:
    finding_by_rule = {finding.rule: finding for finding in check_model("nucleo-l4r5zi", models / "atan2.tflite")}
    assert finding_by_rule["operator"].place.startswith("ATAN2 #")
    assert (
        finding_by_rule["operator"].observed
        == "tflite-micro 0.dev20261023182759 on nucleo-l4r5zi has no operator ATAN2"
    )
    assert check_model("host", models / "atan2.tflite") == []


def test_a_custom_operator_is_a_finding_even_where_all_builtins_run(models: Path) -> None:
    (finding,) = check_model("host", models / "custom.tflite")
    assert (finding.rule, finding.place) == ("operator", "Erfc #0")
    assert "needs a runtime built with it" in finding.suggestion


def test_operators_that_the_npu_does_not_support_are_reported(models: Path) -> None:
    findings = check_model("ethos-u55-128", models / "atan2.tflite")
    operators_by_rule = {
        rule: {f.place.split(" ")[0] for f in findings if f.rule == rule} for rule in ("operator", "npu-fallback")
    }
    assert operators_by_rule == {"operator": {"ATAN2"}, "npu-fallback": {"ADD"}}, "what runs nowhere is no fallback"
    float_findings = [f for f in check_model("ethos-u55-128", models / "float.tflite") if f.rule == "npu-fallback"]
    assert all("is float32" in finding.observed for finding in float_findings)
    assert len(float_findings) == len(reader.read(models / "float.tflite").operators)


def test_a_type_that_the_runtime_lacks_is_named(models: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "inherit: nucleo-l4r5zi\nname: small\ndescription: d\nsources: [s]\ndtypes: [int16, int32]\n"
    )
    findings = check_support(device_profile.load("small.yaml", tmp_path), reader.read(models / "int8.tflite"))
    assert {finding.rule for finding in findings} == {"dtype"}
    assert findings[0].suggestion == "small takes int16, int32"
    assert "is int8" in findings[0].observed


def test_operator_names_are_those_of_the_schema() -> None:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {name for name in vars(BuiltinOperator) if not name.startswith("_")}
    assert names - {"CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES"} == builtin_operators.OPERATOR_NAMES


def test_types_are_those_that_the_graph_reader_gives() -> None:
    assert set(device_profile.DType.__args__) <= set(reader.dtype_by_code().values())  # type: ignore[attr-defined]
    assert set(BITS_BY_DTYPE) <= set(reader.dtype_by_code().values())


def test_micro_operators_are_the_kernels_of_the_package() -> None:
    package = pytest.importorskip("tflite_micro", reason="the extra `micro` is not installed")
    (library,) = Path(package.__path__[0]).rglob("_runtime.so")
    kernels = {match.decode() for match in re.findall(rb"Register_([A-Z0-9_]+?)Ev\0", library.read_bytes())}
    device = device_profile.load("nucleo-l4r5zi", FOLDER)
    assert device.operators is not None
    assert kernels & builtin_operators.OPERATOR_NAMES == set(device.operators)


def test_npu_operators_are_those_of_vela(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ethosu.vela", reason="the extra `npu` is not installed")
    import subprocess
    import sys

    subprocess.run(
        [sys.executable, "-m", "ethosu.vela", "--supported-ops-report"], cwd=tmp_path, check=True, capture_output=True
    )
    table = (tmp_path / "SUPPORTED_OPS.md").read_text().split("## Ethos-U85 TFLite Summary")[0]
    npu = device_profile.load("ethos-u55-128", FOLDER).system.npu
    assert npu is not None
    assert npu.operators is not None
    assert set(re.findall(r"^\| ([A-Z0-9_]+) \| \[", table, re.MULTILINE)) == set(npu.operators)
