"""A profile that inherits a board and changes it: each metric follows the change, or says why it is unavailable."""

import math
from pathlib import Path

import pytest

from edgepipe.core.metric import Evidence
from edgepipe.devices import device_profile
from edgepipe.devices.device_metrics import estimate_latency
from edgepipe.devices.device_profile import Device, MetricSource
from edgepipe.tflite import reader

H7 = "stm32h747i-disco"
L4 = "nucleo-l4r5zi"


def load_child(folder: Path, parents: str, text: str) -> Device:
    (folder / "mine.yaml").write_text(f"name: mine\ndescription: d\nsources: [s]\ninherit: {parents}\n{text}\n")
    return device_profile.load("mine.yaml", folder)


def metric_source(device: Device, key: str) -> MetricSource:
    source = getattr(device, key)
    assert isinstance(source, MetricSource)
    return source


KEPT = [
    (L4, "latency", ""),
    (L4, "latency", "system: {clock: 120e6 Hz}"),
    (L4, "latency", "system: {memory: {ram: 128 KiB, flash: 1 MiB, banks: []}}"),
    (L4, "latency", "runtime: {release: tflite-micro==0.dev20230426223714}"),
    (L4, "ram", "system: {clock: 80 MHz, core: Cortex-M33}"),
    ("imx8mp", "latency", "system: {cores: 2}"),
    ("ethos-u55-128", "latency", "system: {npu: {macs_per_cycle: 64, vela: {accelerator: ethos-u55-64}}}"),
    ("ethos-u55-128", "latency", "system: {npu: {clock: 250 MHz}}"),  # read by Vela's estimate
    ("host", "latency", "runtime: {threads: 2}"),  # measured with them
    (H7, "flash", "system: {clock: 200 MHz, memory: {flash: 1 MiB}}"),
    ("[nucleo-l4r5zi, runtimes/x-cube-ai-10, fits/nucleo-l4r5zi-x-cube-ai-10]", "latency", ""),
]

SCALED = [  # parents, changes, clock of the fit over the clock here, error in the logarithm
    (L4, "system: {clock: 80 MHz}", 120 / 80, 0.2),
    (L4, "system: {clock: 115 MHz}", 120 / 115, math.log(120 / 115)),
    ("imx8mp", "system: {clock: 1 GHz}", 1.8, 0.3),
    ("pixel-3", "system: {clock: 5 GHz}", 0.5, 0.3),
    ("[systems/nucleo-l4r5zi, runtimes/tflite-micro-cmsis-nn, fits/nucleo-l4r5zi-microtvm]",
     "system: {clock: 60 MHz}", 2.0, 0.2),
    ("[systems/arduino-nano-33-ble, runtimes/tflite-micro-cmsis-nn, fits/nucleo-l4r5zi-microtvm]",
     "", 120 / 64, 0.2),
    ("arduino-nano-33-ble", "system: {clock: 32 MHz}", 120 / 32, math.hypot(0.2, 0.3)),
]  # fmt: skip

LOST = [
    (L4, "latency", "system: {core: Cortex-M33}", "system.core is Cortex-M33 instead of Cortex-M4F"),
    (L4, "latency", "system: {clock: null}", "system.clock is not stated instead of 120 MHz"),
    (L4, "latency", "runtime: {kernels: null}", "runtime.kernels is not stated instead of CMSIS-NN"),
    (L4, "ram", "runtime: {name: x-cube-ai}", "runtime.name is x-cube-ai instead of tflite-micro"),
    (L4, "latency", "system: {npu: {name: N1, operators: all, dtypes: [int8]}}", "system.npu is N1 instead of none"),
    ("[nucleo-l4r5zi, systems/rp2040-pico]", "latency", "", "system.core is Cortex-M0+ instead of Cortex-M4F"),
    ("[nucleo-l4r5zi, runtimes/tflite-micro-esp-nn]\nlatency: {evidence: unavailable, reason: none}", "latency", "",
     "none"),
    ("imx8mp-4-threads", "latency", "system: {cores: 2}", "system.cores is 2, fewer than threads instead of 4"),
    ("imx8mp", "latency", "runtime: {threads: 2}", "runtime.threads is 2 instead of 1"),
    ("stm32n6570-dk", "latency", "system: {clock: 400 MHz}", "system.clock is 400 MHz instead of 800 MHz"),
    ("stm32n6570-dk", "latency", "system: {npu: {clock: 800 MHz}}", "system.npu.clock is 800 MHz instead of 1000 MHz"),
    ("stm32n6570-dk", "latency", "system: {npu: {operators: [CONV_2D]}}", "system.npu.operators is a list of 1"),
    ("imx8mp-npu", "latency", "system: {npu: null}", "system.npu is none instead of"),
    (H7, "latency", "system: {memory: {banks: []}}", "system.memory.banks (caches) is not stated instead of 16.0 KiB"),
    (H7, "flash", "runtime: {version: 11.0.0}", "runtime.version is 11.0.0 instead of 10.0.0"),
    (H7, "ram", "runtime: {version: 11.0.0}", "runtime.version is 11.0.0 instead of 10.0.0"),
    ("ethos-u55-128", "latency", "system: {npu: {macs_per_cycle: 64}}", "npu.macs_per_cycle is 64 instead of 128"),
    ("host", "latency", "system: {core: Cortex-A53}", "system.core is Cortex-A53 instead of"),
    ("arduino-nano-33-ble", "latency", "system: {core: Cortex-M0}", "system.core is Cortex-M0 instead of Cortex-M4F"),
]  # fmt: skip


@pytest.mark.parametrize(("parents", "key", "changes"), KEPT)
def test_what_a_metric_does_not_depend_on_leaves_it(tmp_path: Path, parents: str, key: str, changes: str) -> None:
    source = metric_source(load_child(tmp_path, parents, changes), key)
    assert (source.evidence is not Evidence.UNAVAILABLE, source.by != "transfer") == (True, True)


@pytest.mark.parametrize(("parents", "changes", "ratio", "error"), SCALED)
def test_a_latency_bound_by_cycles_follows_the_clock(
    tmp_path: Path, parents: str, changes: str, ratio: float, error: float
) -> None:
    device = load_child(tmp_path, parents, changes)
    transfer = device.latency.transfer
    assert transfer is not None
    assert transfer.fit is not None
    assert device.system.clock is not None
    assert transfer.fit.clock / device.system.clock == pytest.approx(ratio)
    assert transfer.scale == 1.0
    assert transfer.error == pytest.approx(error)
    assert "nothing was measured at" in transfer.source


@pytest.mark.parametrize(("parents", "key", "changes", "reason"), LOST)
def test_what_a_metric_depends_on_makes_it_unavailable(
    tmp_path: Path, parents: str, key: str, changes: str, reason: str
) -> None:
    source = metric_source(load_child(tmp_path, parents, changes), key)
    assert source.evidence is Evidence.UNAVAILABLE
    assert reason in (source.reason or "")


def test_a_metric_stated_anew_belongs_to_the_profile_that_states_it(tmp_path: Path) -> None:
    latency = (
        "latency: {evidence: estimated, by: transfer, transfer: {device: imx8mp, error: 0.3, points: 0, source: s}}"
    )
    device = load_child(tmp_path, "raspberry-pi-4", f"system: {{core: Cortex-A53, clock: 900 MHz}}\n{latency}")
    assert device.latency.transfer is not None
    assert (device.latency.transfer.source, device.latency.transfer.error) == ("s", 0.3)


def test_a_grandchild_is_compared_with_the_board_that_was_measured(tmp_path: Path) -> None:
    load_child(tmp_path, L4, "system: {clock: 80 MHz}")
    (tmp_path / "next.yaml").write_text(
        "name: next\ndescription: d\nsources: [s]\ninherit: mine\nsystem: {clock: 40 MHz}\n"
    )
    transfer = device_profile.load("next.yaml", tmp_path).latency.transfer
    assert transfer is not None
    assert (transfer.device, transfer.fit is not None and transfer.fit.clock) == (L4, 120e6)


def test_a_transfer_from_a_child_uses_the_fit_at_the_clock_it_was_measured_at(tmp_path: Path) -> None:
    load_child(tmp_path, L4, "system: {clock: 80 MHz}")
    (tmp_path / "other.yaml").write_text(
        "name: other\ndescription: d\nsources: [s]\ninherit: [systems/rp2040-pico, runtimes/tflite-micro-cmsis-nn]\n"
        "latency: {evidence: estimated, by: transfer, transfer: {device: mine, error: 0.3, points: 0, source: s}}\n"
    )
    transfer = device_profile.load("other.yaml", tmp_path, (tmp_path,)).latency.transfer
    assert transfer is not None
    assert transfer.fit is not None
    assert (transfer.fit.clock, transfer.error) == (120e6, 0.3)


def test_a_parent_that_is_invalid_alone_gives_no_metric(tmp_path: Path) -> None:
    text = f"name: mine\ndescription: d\nsources: [s]\ninherit: {L4}\nlatency: {{evidence: measured, by: host}}\n"
    (tmp_path / "mine.yaml").write_text(f"{text}system: {{clock: fast}}\n")
    (tmp_path / "fixed.yaml").write_text(
        "name: fixed\ndescription: d\nsources: [s]\ninherit: mine\nsystem: {clock: 40 MHz}\n"
    )
    latency = device_profile.load("fixed.yaml", tmp_path).latency
    assert "'mine' does not hold here: that profile is not valid by itself" in (latency.reason or "")


def test_the_latency_of_a_model_follows_the_clock_with_a_wider_interval(tmp_path: Path, models: Path) -> None:
    board = device_profile.load(L4, Path())
    slower = load_child(tmp_path, L4, "system: {clock: 80 MHz, memory: {ram: 128 KiB, flash: 1 MiB, banks: []}}")
    model = reader.read(models / "int8.tflite")
    fast, slow = (estimate_latency(device, model) for device in (board, slower))
    assert fast.value is not None
    assert slow.value == pytest.approx(1.5 * fast.value)
    assert fast.interval is not None
    assert slow.interval is not None
    assert slow.interval[1] / slow.interval[0] > fast.interval[1] / fast.interval[0]
    assert f"transferred from {L4} by clock" in slow.how
    assert "nothing was measured at 80 MHz, only at 120 MHz" in slow.how
