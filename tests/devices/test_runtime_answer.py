"""Each runtime judges for itself: what one refuses another may run, and a refusal, a crash or a doubt is not `met`."""

import importlib.util
from pathlib import Path

import pytest
import runtime_models as models
from tflite_handmade import Op, T, write

from edgepipe.commands.profile import profile_model
from edgepipe.commands.verify import Verification, verify
from edgepipe.core.metric import Evidence, Finding, Judgement, Metric
from edgepipe.devices import device_profile, runtime_answer
from edgepipe.tflite import interpreter, tflm_runtime
from edgepipe.tflite.child_process import ChildError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="the extra `micro` is not installed"
)
MCU, STM32AI, CORAL, NPU, PI = "nucleo-l4r5zi", "nucleo-h7a3zi-q", "coral-edge-tpu", "ethos-u55-128", "raspberry-pi-4"

JUDGED: list[tuple[str, models.Build, str, str, str]] = [  # model, device, judgement, a part of the findings' text
    ("relu", models.relu, "host", "met", ""),
    ("relu", models.relu, MCU, "met", ""),
    ("relu", models.relu, PI, "met", ""),
    ("edgetpu", models.custom("edgetpu-custom-op"), CORAL, "met", ""),
    ("edgetpu", models.custom("edgetpu-custom-op"), "host", "not met", "compiled by Google's compiler for the"),
    ("edgetpu", models.custom("edgetpu-custom-op"), MCU, "not met", "has no operator edgetpu-custom-op"),
    ("ethos-u", models.custom("ethos-u"), NPU, "unknown", "do not say in a known way for which accelerator; give"),
    ("ethos-u", models.custom("ethos-u"), CORAL, "not met", "compiled by Vela for an unknown Ethos-U"),
    ("audio", models.audio_front_end, MCU, "met", ""),
    ("audio", models.audio_front_end, "host", "not met", "has no operator SignalWindow"),
    ("mediapipe", models.mediapipe, PI, "met", ""),
    ("mediapipe", models.mediapipe, MCU, "not met", "has no operator Convolution2DTransposeBias"),
    ("flex", models.custom("FlexErfc"), "host", "not met", "which the Flex delegate runs"),
    ("streaming", models.streaming, PI, "met", ""),
    ("streaming", models.streaming, MCU, "met", ""),
    ("streaming", models.streaming, STM32AI, "not met", "has no operator VAR_HANDLE"),
    ("no start", models.streaming_without_start, PI, "met", ""),
    ("no start", models.streaming_without_start, MCU, "met", ""),
    ("bias axis", models.bias_axis, MCU, "met", ""),
    ("bias axis", models.bias_axis, STM32AI, "met", ""),
    ("bias axis", models.bias_axis, "host", "not met", "quantized_dimension must be in range"),
    ("bias axis", models.bias_axis, PI, "not met", "(LiteRT 2"),
    ("uint8", models.old_uint8, PI, "met", ""),
    ("uint8", models.old_uint8, MCU, "not met", "Hybrid models are not supported"),
    ("endless", models.endless, "host", "not met", "the child process crashed with SIGSEGV"),
    ("endless", models.endless, MCU, "not met", "the child process crashed with SIGSEGV"),
    ("split", models.split_into_none, MCU, "met", ""),
    ("split", models.split_into_none, PI, "not met", "the child process crashed with SIG"),
    ("unwritten", models.unwritten, MCU, "not met", "it reads 'nowhere'"),
    ("unwritten", models.unwritten, PI, "not met", "it reads 'nowhere'"),
    ("large crash", models.large_crash, MCU, "not met", "of ram needed, the device has 640.0 KiB"),
    ("large", models.large, MCU, "not met", "of ram needed, the device has 640.0 KiB"),
    ("dilated", models.dilated_with_open_batch, MCU, "not met", "makes a batch of 2 of 1 x 1 x 8 x 4, and the file"),
    ("dilated", models.dilated_with_open_batch, STM32AI, "not met", "SPACE_TO_BATCH_ND #0"),
    ("dilated", models.dilated_with_open_batch, PI, "met", ""),
    ("open image", models.open_image, MCU, "not met", "input 'x' has an open size besides the batch"),
    ("open image", models.open_image, "host", "met", ""),
    ("open batch", models.open_batch, MCU, "met", ""),
    ("loop", models.looping, MCU, "met", ""),
    ("text", models.text_input, "host", "unknown", "input 'x' is string, which edgepipe cannot fill"),
    ("division", models.division, PI, "met", ""),
]  # fmt: skip


def check(path: Path, device: str, *limits: str, base: Path | None = None) -> Verification:
    return verify(path, devices=[device], limits=limits, integer_only=False, base=base)


def find_metric(verification: Verification, name: str, device: str | None) -> Metric:
    return next(m for m in verification.metrics if (m.name, m.device) == (name, device))


@pytest.mark.parametrize(
    ("build", "device", "judgement", "text"),
    [case[1:] for case in JUDGED],
    ids=[f"{name}-{device}" for name, _, device, *_ in JUDGED],
)
def test_the_judgement(build: models.Build, device: str, judgement: str, text: str, tmp_path: Path) -> None:
    verification = check(build(tmp_path / "m.tflite"), device)
    findings_text = "\n".join(map(str, verification.findings))
    assert verification.judgement == judgement, findings_text
    assert bool(verification.findings) == (judgement != "met")
    assert text in findings_text
    assert all(finding.device == device for finding in verification.findings)


LIMITED: list[tuple[models.Build, str, str, str, str]] = [  # model, device, limit, judgement of the limit, reason
    (models.streaming, MCU, "ram=64KiB", "met", ""),
    (models.bias_axis, MCU, "ram=64KiB", "met", ""),
    (models.old_uint8, MCU, "ram=64KiB", "unknown", "TensorFlow Lite Micro refuses the model"),
    (models.large_crash, MCU, "ram=600KiB", "not met", "over the limit"),
    (models.bias_axis, "host", "latency=1s", "unknown", "quantized_dimension"),
    (models.endless, "host", "latency=1s", "unknown", "crashed with SIGSEGV"),
    (models.custom("edgetpu-custom-op"), "host", "latency=1s", "unknown", "see the broken rules"),
    (models.audio_front_end, MCU, "latency=1s", "unknown", "does not cover SignalWindow"),
    (models.looping, MCU, "latency=1s", "unknown", "does not cover WHILE"),
    (models.dilated_with_open_batch, "host", "latency=1s", "met", ""),
    (models.dilated_with_open_batch, PI, "macs=100", "unknown", "convert the model with a batch of 1"),
    (models.dilated_with_open_batch, MCU, "latency=1s", "unknown", "the file does not hold all sizes"),
    (models.dilated_with_open_batch, MCU, "ram=64KiB", "unknown", "the file does not hold all sizes"),
    (models.open_image, "host", "latency=1s", "unknown", "input 'x' has an open size"),
    (models.open_batch, PI, "macs=100", "met", ""),
]


@pytest.mark.parametrize(("build", "device", "limit", "judgement", "reason"), LIMITED)
def test_a_limit_without_a_number_is_unknown(
    build: models.Build, device: str, limit: str, judgement: str, reason: str, tmp_path: Path
) -> None:
    verification = check(build(tmp_path / "m.tflite"), device, limit)
    (verdict,) = verification.verdicts
    assert verdict.judgement == judgement
    assert reason in verdict.reason
    assert verification.met is (judgement == "met" and not verification.findings)


@pytest.mark.parametrize(
    ("build", "judgement"), [(models.relu, "met"), (models.large_crash, "not met"), (models.old_uint8, "unknown")]
)
def test_without_a_device_ram_is_the_arena(build: models.Build, judgement: str, tmp_path: Path) -> None:
    verification = verify(build(tmp_path / "m.tflite"), devices=[], limits=["ram=600KiB"], integer_only=False)
    assert verification.judgement == judgement


def test_numbers_come_from_the_runtime_that_runs_the_model(tmp_path: Path) -> None:
    path = models.bias_axis(tmp_path / "m.tflite")
    mcu = find_metric(check(path, MCU), "ram", MCU)
    assert mcu.evidence is Evidence.SIMULATED
    assert mcu.details["host_64_bit"] == tflm_runtime.measure_arena(path).value
    host = find_metric(check(path, "host"), "latency", "host")
    assert host.evidence is Evidence.UNAVAILABLE
    assert "does not run this model" in host.how


def test_profile_shows_every_device_of_a_model_that_the_host_refuses(tmp_path: Path) -> None:
    profile = profile_model(models.bias_axis(tmp_path / "m.tflite"), ["host", MCU, STM32AI])
    rules_by_device = {result.device: [finding.rule for finding in result.findings] for result in profile.devices}
    assert rules_by_device == {"host": ["runs"], MCU: [], STM32AI: []}


def test_an_operator_that_the_profile_lists_is_an_ability_of_its_runtime(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"inherit: {MCU}\nname: mine\ndescription: d\nsources: [s]\ncustom_operators: [MyOp]\n"
    )
    path = models.custom("MyOp")(tmp_path / "m.tflite")
    verification = check(path, "mine.yaml", base=tmp_path)
    assert verification.met, verification.findings
    assert find_metric(verification, "ram", "mine").evidence is Evidence.ESTIMATED
    assert not check(path, MCU).met


def _answer_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tflm_runtime, "run_on_zeros", fail)
    monkeypatch.setattr(interpreter, "check_runs", fail)


@pytest.mark.parametrize("device", ["host", MCU])
def test_a_time_limit_says_nothing(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_with(ChildError("m.tflite: timed out after 10 s", ""), monkeypatch)
    verification = check(models.relu(tmp_path / "m.tflite"), device)
    assert verification.judgement is Judgement.UNKNOWN
    assert [(f.rule, f.judgement) for f in verification.findings] == [("runs", Judgement.UNKNOWN)]


def test_without_the_package_the_arena_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflm_runtime, "missing_reason", lambda: "the package tflite-micro is not installed")
    small, large = models.relu(tmp_path / "s.tflite"), models.large(tmp_path / "l.tflite")
    verification = check(small, MCU, "ram=64KiB")
    assert verification.judgement is Judgement.UNKNOWN
    ram = find_metric(verification, "ram", MCU)
    assert ram.evidence is Evidence.ESTIMATED
    assert "the package tflite-micro is not installed" in ram.how
    assert check(large, MCU).judgement is Judgement.NOT_MET


def test_a_profile_of_another_runtime_may_take_the_arena(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"inherit: {STM32AI}\nname: mine\ndescription: d\nsources: [s]\n"
        "ram: {evidence: simulated, by: tflite-micro}\n"
    )
    path = models.relu(tmp_path / "m.tflite")
    assert find_metric(check(path, "mine.yaml", base=tmp_path), "ram", "mine").evidence is Evidence.SIMULATED


def test_an_interval_around_the_memory_of_a_device_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"inherit: {STM32AI}\nname: mine\ndescription: d\nsources: [s]\n"
        "system: {memory: {ram: 1180 KiB, flash: 2 MiB, banks: []}}\n"
    )
    (finding,) = check(models.large(tmp_path / "m.tflite"), "mine.yaml", base=tmp_path).findings
    assert (finding.rule, finding.judgement) == ("fits-ram", Judgement.UNKNOWN)


@pytest.mark.slow
def test_custom_operators_are_those_of_the_packages(tmp_path: Path) -> None:
    """A package that has an operator fails on what is inside, or crashes; one that does not says so."""
    for code in sorted(runtime_answer.LITERT_CUSTOM_OPERATORS | runtime_answer.TFLM_CUSTOM_OPERATORS | {"MyOp"}):
        path = write(
            tmp_path / "m.tflite", [T(name, (1, 16), "float32") for name in ("x", "y")],
            [Op("CUSTOM", ("x", "x", "x"), ("y", "y"), custom=code)], ["x"], ["y"],
        )  # fmt: skip
        words = {}
        for name, run in (("litert", interpreter.check_runs), ("tflm", tflm_runtime.run_on_zeros)):
            try:
                run(path)
                words[name] = ""
            except ChildError as error:
                words[name] = str(error)
        has_tflm = "Failed to get registration from op code CUSTOM" not in words["tflm"]
        assert has_tflm is (code in runtime_answer.TFLM_CUSTOM_OPERATORS), (code, words)
        is_delegated = code in ("Convolution2DTransposeBias", "MaxPoolingWithArgmax2D", "MaxUnpooling2D")  # by XNNPACK
        has_litert = "unresolved custom op" not in words["litert"]
        assert (has_litert or is_delegated) is (code in runtime_answer.LITERT_CUSTOM_OPERATORS), (code, words)


@pytest.mark.parametrize(
    ("device", "custom_operators"),
    [("host", runtime_answer.LITERT_CUSTOM_OPERATORS), (MCU, runtime_answer.TFLM_CUSTOM_OPERATORS)],
)
def test_profiles_list_the_custom_operators_of_their_package(device: str, custom_operators: frozenset[str]) -> None:
    assert set(device_profile.load(device, Path()).custom_operators) == custom_operators


def test_a_finding_names_its_device() -> None:
    finding = Finding(rule="runs", place="m.tflite", observed="refused", device="host")
    assert str(finding) == "host: runs: m.tflite: refused"
