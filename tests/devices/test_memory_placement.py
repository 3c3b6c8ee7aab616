"""Where activations and model land, what crosses from on-chip to off-chip memory, and the code beside the model."""

from pathlib import Path

import numpy as np
import pytest
from runtime_models import HALF, options
from tflite_handmade import Op, T, write

from edgepipe.commands import verify
from edgepipe.core.errors import ConfigError
from edgepipe.core.metric import Evidence, Finding, Judgement, Limit, Metric
from edgepipe.core.units import Dimension
from edgepipe.devices import device_metrics, device_profile
from edgepipe.devices.device_metrics import DeviceMetrics
from edgepipe.devices.device_profile import Device, MemoryBank
from edgepipe.devices.memory_placement import find_place, sum_on_chip
from edgepipe.tflite import reader
from edgepipe.tflite.model import Model

KIB = 1024
BANKS = tuple(
    MemoryBank.model_validate({"name": name, "kind": kind, "size": f"{size} KiB", "external": external})
    for name, kind, size, external in (
        ("cache", "cache", 64, False),
        ("DTCM", "ram", 100, False),
        ("SRAM", "ram", 300, False),
        ("PSRAM", "ram", 8000, True),
        ("flash", "flash", 1000, False),
    )
)


def relu_model(folder: Path, elements: int) -> Model:
    """An arena of twice `elements` bytes."""
    tensors = [T(name, (1, elements), **HALF) for name in ("x", "y")]
    return reader.read(write(folder / "relu.tflite", tensors, [Op("RELU", ("x",), ("y",))], ["x"], ["y"]))


def dense_model(folder: Path, kib: int) -> Model:
    """A file with `kib` of weights."""
    weights = np.ones((64, kib * KIB // 64), np.int8)
    tensors = [
        T("x", (1, weights.shape[1]), **HALF),
        T("w", weights.shape, data=weights, **HALF),
        T("y", (1, 64), **HALF),
    ]
    dense = Op("FULLY_CONNECTED", ("x", "w", None), ("y",), options("FullyConnectedOptions"), version=4)
    return reader.read(write(folder / "dense.tflite", tensors, [dense], ["x"], ["y"]))


def child(folder: Path, parent: str, text: str = "") -> Device:
    (folder / "mine.yaml").write_text(f"name: mine\ndescription: d\nsources: [s]\ninherit: {parent}\n{text}\n")
    return device_profile.load("mine.yaml", folder)


def find(gathered: DeviceMetrics, rule: str) -> Finding | None:
    return next((finding for finding in gathered.findings if finding.rule == rule), None)


def metric_of(gathered: DeviceMetrics, name: str) -> Metric:
    return next(metric for metric in gathered.metrics if metric.name == name)


def limit(metric: str, value: float, device: str = "mine") -> Limit:
    return Limit(metric=metric, unit=Dimension.BYTES, bound="max", value=value, device=device)


@pytest.mark.parametrize(
    ("kind", "needed_kib", "text", "crosses"),
    [
        ("ram", 90, "DTCM", False),
        ("ram", 110, "SRAM", False),
        ("ram", 390, "DTCM and SRAM together", False),
        ("ram", 410, "PSRAM", True),
        ("ram", 9000, None, None),
        ("flash", 900, "flash", False),
        ("flash", 1100, None, None),
    ],
)
def test_the_first_memory_that_holds_it(kind: str, needed_kib: int, text: str | None, crosses: bool | None) -> None:
    place = find_place(BANKS, kind, needed_kib * KIB)
    assert (place and place.text, place and place.crosses) == (text, crosses)


def test_a_device_with_off_chip_memory_alone_crosses_nothing() -> None:
    place = find_place(BANKS[3:4], "ram", 410 * KIB)
    assert place is not None
    assert not place.crosses


def test_banks_go_from_the_fastest_to_the_slowest(tmp_path: Path) -> None:
    banks = "[{name: P, kind: ram, size: 8 MiB, external: true}, {name: S, kind: ram, size: 1 MiB}]"
    with pytest.raises(ConfigError, match="'S' is on-chip and belongs before 'P'"):
        child(tmp_path, "esp32-s3", f"system: {{memory: {{banks: {banks}}}}}")


def test_an_arena_in_psram_is_a_finding(tmp_path: Path) -> None:
    device, model = device_profile.load("esp32-s3", Path()), relu_model(tmp_path, 800 * KIB)
    gathered = device_metrics.gather(model, [device])
    finding = find(gathered, "external-memory")
    assert finding is not None
    assert finding.judgement is Judgement.NOT_MET
    assert "512.0 KiB are on-chip: the activations land in Octo-SPI PSRAM, off-chip" in finding.observed
    assert metric_of(gathered, "ram").how.endswith("; the activations in Octo-SPI PSRAM, off-chip")
    assert metric_of(gathered, "ram").details["memory"] == "Octo-SPI PSRAM"
    assert metric_of(gathered, "flash").how.endswith("; the model in Quad-SPI flash")


def test_an_arena_in_sram_is_none(tmp_path: Path) -> None:
    gathered = device_metrics.gather(relu_model(tmp_path, 100 * KIB), [device_profile.load("esp32-s3", Path())])
    assert find(gathered, "external-memory") is None
    assert metric_of(gathered, "ram").how.endswith("; the activations in SRAM")


@pytest.mark.parametrize(
    ("profile", "limits", "allowed_by"),
    [
        ("system: {memory: {allow_external: true}}", [], "the profile"),
        ("", [limit("ram", 2048 * KIB)], "the budget"),
        ("", [limit("ram", 1000 * KIB)], None),  # not met
        ("", [limit("ram", 2048 * KIB, "other")], None),
        ("", [limit("flash", 2048 * KIB)], None),
    ],
)
def test_off_chip_memory_is_allowed_by_profile_or_budget(
    tmp_path: Path, profile: str, limits: list[Limit], allowed_by: str | None
) -> None:
    device = child(tmp_path, "esp32-s3", profile)
    gathered = device_metrics.gather(relu_model(tmp_path, 800 * KIB), [device], limits)
    assert (find(gathered, "external-memory") is None) == (allowed_by is not None)
    assert any(f"off-chip; {allowed_by} allows it" in note for note in gathered.notes) == (allowed_by is not None)


def test_an_estimate_that_may_cross_is_unknown(tmp_path: Path) -> None:
    banks = "[{name: S, kind: ram, size: 1 MiB}, {name: P, kind: ram, size: 8 MiB, external: true}]"
    device = child(tmp_path, "nucleo-l4r5zi-x-cube-ai", f"system: {{memory: {{ram: 8 MiB, banks: {banks}}}}}")
    gathered = device_metrics.gather(relu_model(tmp_path, 700 * KIB), [device])  # 0.94 MiB, 0.76 to 1.6
    finding = find(gathered, "external-memory")
    assert finding is not None
    assert finding.judgement is Judgement.UNKNOWN
    assert "may land in P" in finding.observed


@pytest.mark.parametrize(("kib", "is_outside"), [(1200, True), (10, False)])
def test_a_latency_with_off_chip_activations_is_outside_of_the_fit(tmp_path: Path, kib: int, is_outside: bool) -> None:
    device = device_profile.load("stm32h747i-disco", Path())
    latency = metric_of(device_metrics.gather(relu_model(tmp_path, kib * KIB), [device]), "latency")
    assert ("the activations land in SDRAM, off-chip, which the fit does not know" in latency.how) == is_outside


@pytest.mark.parametrize(
    ("parent", "profile", "kib", "judgement"),
    [
        ("arduino-nano-33-ble", "", 700, None),
        (
            "arduino-nano-33-ble",
            "",
            1010,
            Judgement.NOT_MET,
        ),  # 1010 KiB in 1 MiB, with an interpreter of 20 KiB or more
        ("arduino-nano-33-ble", "", 960, Judgement.UNKNOWN),
        ("arduino-nano-33-ble", "runtime: {code: 40 KiB}", 960, None),
        ("arduino-nano-33-ble", "runtime: {code: 80 KiB}", 960, Judgement.NOT_MET),
        ("arduino-nano-33-ble", "flash: {evidence: exact, by: file}", 960, Judgement.UNKNOWN),
        ("arduino-nano-33-ble", "flash: {evidence: exact, by: file}", 800, None),
        ("arduino-nano-33-ble", "flash: {evidence: exact, by: file}\nruntime: {code: 40 KiB}", 960, None),
        ("arduino-nano-33-ble", "flash: {evidence: exact, by: file}\nruntime: {code: 80 KiB}", 960, Judgement.NOT_MET),
        ("nucleo-l4r5zi-x-cube-ai", "system: {memory: {flash: 1 MiB}}", 960, Judgement.UNKNOWN),
        ("nucleo-l4r5zi-x-cube-ai", "system: {memory: {flash: 1 MiB}}", 1000, Judgement.NOT_MET),
    ],
)
def test_the_code_of_the_runtime_counts(
    tmp_path: Path, parent: str, profile: str, kib: int, judgement: Judgement | None
) -> None:
    gathered = device_metrics.gather(dense_model(tmp_path, kib), [child(tmp_path, parent, profile)])
    finding = find(gathered, "fits-flash")
    assert (finding and finding.judgement) == judgement


def test_flash_says_what_is_the_model_and_what_is_code(tmp_path: Path) -> None:
    model = dense_model(tmp_path, 100)
    estimated = metric_of(device_metrics.gather(model, [child(tmp_path, "arduino-nano-33-ble")]), "flash")
    stated_device = child(tmp_path, "arduino-nano-33-ble", "runtime: {code: 40 KiB}")
    stated = metric_of(device_metrics.gather(model, [stated_device]), "flash")
    assert (estimated.evidence, stated.evidence) == (Evidence.ESTIMATED, Evidence.EXACT)
    assert estimated.interval is not None
    assert model.bytes + 10 * KIB < estimated.interval[0] < model.bytes + 40 * KIB < estimated.interval[1]
    assert "1 kind of operators" in estimated.how
    assert stated.value == model.bytes + 40 * KIB


def test_verify_takes_its_limits_as_permission_and_says_so(tmp_path: Path) -> None:
    path = relu_model(tmp_path, 800 * KIB).path
    allowed = verify.verify(path, devices=["esp32-s3"], limits=["ram=2MiB"], integer_only=True)
    assert allowed.met
    assert [note for note in allowed.notes if "off-chip; the budget allows it" in note]
    assert not verify.verify(path, devices=["esp32-s3"], limits=[], integer_only=True).met


def test_what_is_on_chip_is_the_sum_of_its_banks() -> None:
    assert [sum_on_chip(BANKS, kind) for kind in ("ram", "flash")] == [400 * KIB, 1000 * KIB]
    assert sum_on_chip(BANKS[3:4], "ram") == 0
