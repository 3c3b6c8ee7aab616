"""Files that a compiler has been through, on the device that they are for and on others."""

from pathlib import Path

import pytest
import vela_models
from tflite_handmade import Op, T, write

from edgepipe.commands.profile import DeviceProfileResult, profile_model
from edgepipe.core.cache import Cache
from edgepipe.core.metric import Evidence, Finding, Judgement, Metric
from edgepipe.devices import device_profile
from edgepipe.devices.vela.vela_compiler import compile_model, device_settings
from edgepipe.tflite import reader


def _profile(path: Path, device: str) -> DeviceProfileResult:
    (result,) = profile_model(path, [device], base=path.parent).devices
    return result


def _metric(result: DeviceProfileResult, name: str) -> Metric:
    return next(metric for metric in result.metrics if metric.name == name)


def _vela_finding(result: DeviceProfileResult) -> Finding:
    return next(finding for finding in result.findings if finding.rule == "vela")


def _compile(source: Path, device: str, folder: Path) -> Path:
    settings = device_settings(device_profile.load(device, folder))
    assert settings is not None
    path = folder / f"{device}.tflite"
    path.write_bytes(compile_model(reader.read(source), settings, Cache(folder / "cache")).content)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two operators for an Ethos-U, each before one for the core."""
    return vela_models.chain(tmp_path / "mixed.tflite", ["RELU", "LOG_SOFTMAX", "LOGISTIC", "LOG_SOFTMAX"])


@pytest.mark.slow
@pytest.mark.parametrize("device", ["ethos-u55-128", "ethos-u65-256", "ethos-u85-256"])
def test_a_compiled_file_has_the_memory_that_vela_reported(device: str, models: Path, tmp_path: Path) -> None:
    pytest.importorskip("ethosu.vela", reason="the extra `npu` is not installed")
    source = models / "int8.tflite"
    before, after = _profile(source, device), _profile(_compile(source, device, tmp_path), device)
    assert after.findings == ()
    for name in ("ram", "flash"):
        assert _metric(after, name).value == _metric(before, name).value
    share = _metric(after, "npu_operators")
    assert (share.value, share.evidence) == (1.0, Evidence.EXACT)
    assert "holds no times" in _metric(after, "latency").how
    assert {operator.evidence for operator in after.operators} == {Evidence.EXACT}


@pytest.mark.slow
def test_what_vela_left_is_a_finding_and_its_number_unknown(mixed: Path, tmp_path: Path) -> None:
    pytest.importorskip("ethosu.vela", reason="the extra `npu` is not installed")
    result = _profile(_compile(mixed, "ethos-u55-128", tmp_path), "ethos-u55-128")
    assert [(operator.operator.split()[0], operator.runs_on) for operator in result.operators] == [
        *(("ethos-u", "NPU"), ("LOG_SOFTMAX", "CPU"), ("ethos-u", "NPU"), ("LOG_SOFTMAX", "CPU")),
    ]
    assert all("compiled by Vela for ethos-u55-128" in operator.basis for operator in result.operators)
    assert [f.rule for f in result.findings].count("npu-fallback") == 2
    assert "how many operators were compiled is not in it" in _metric(result, "npu_operators").how


@pytest.mark.slow
@pytest.mark.parametrize("device", ["ethos-u55-256", "ethos-u65-256"])
def test_a_file_for_another_accelerator_is_a_finding(device: str, models: Path, tmp_path: Path) -> None:
    pytest.importorskip("ethosu.vela", reason="the extra `npu` is not installed")
    result = _profile(_compile(models / "int8.tflite", "ethos-u55-128", tmp_path), device)
    finding = _vela_finding(result)
    assert finding.judgement is Judgement.NOT_MET
    assert finding.observed == f"the file is compiled by Vela for ethos-u55-128, not for {device}"
    assert {operator.runs_on for operator in result.operators} == {"unsupported"}


def _edge_tpu_file(path: Path) -> Path:
    tensors = [T(name, (1, 4, 4, 4), "int8", scales=(0.1,)) for name in "xyz"]
    operators = [Op("CUSTOM", ("x",), ("y",), custom="edgetpu-custom-op"), Op("RELU", ("y",), ("z",))]
    return write(path, tensors, operators, ["x"], ["z"])


def test_an_edge_tpu_file_runs_what_it_holds_where_it_says(tmp_path: Path) -> None:
    result = _profile(_edge_tpu_file(tmp_path / "m.tflite"), "coral-edge-tpu")
    assert [operator.runs_on for operator in result.operators] == [
        "NPU",
        "CPU",
    ]  # the compiler left a RELU, which it has
    assert [finding.rule for finding in result.findings] == ["npu-fallback"]
    assert result.findings[0].observed == "Google's compiler left it on the host CPU"


def test_an_edge_tpu_file_is_not_for_an_ethos(tmp_path: Path) -> None:
    finding = _vela_finding(_profile(_edge_tpu_file(tmp_path / "m.tflite"), "ethos-u55-128"))
    assert finding.observed == "the file is compiled by Google's compiler for the Edge TPU, not for ethos-u55-128"
    assert finding.judgement is Judgement.NOT_MET
