"""What zeros are worth on each runtime is said where there are many, once for each runtime, and never left out."""

from pathlib import Path
from typing import get_args

import pytest

from edgepipe.devices import device_metrics, device_profile, sparsity_benefit
from edgepipe.devices.device_profile import RuntimeProfile
from edgepipe.tflite import reader

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """The int8 model with three quarters of each kernel overwritten by zeros."""
    import numpy as np

    model = reader.read(models / "int8.tflite")
    content = bytearray(model.content)
    for operator in model:
        kernel = operator.input(1)
        if operator.name in ("CONV_2D", "FULLY_CONNECTED") and kernel is not None:
            start, length = kernel.extent
            values = np.frombuffer(bytes(content[start : start + length]), np.int8).copy()
            values[np.arange(length) % 4 != 0] = 0
            content[start : start + length] = values.tobytes()
    path = tmp_path_factory.mktemp("sparse") / "sparse.tflite"
    path.write_bytes(content)
    return path


def told(path: Path, *devices: str) -> list[str]:
    model = reader.read(path)
    return sparsity_benefit.notes(
        model, [device_profile.load(device, HERE) for device in devices], device_metrics.file_metrics(model)
    )


def test_every_runtime_has_its_say() -> None:
    assert set(sparsity_benefit.BENEFITS) == set(get_args(RuntimeProfile.model_fields["name"].annotation))


def test_one_note_for_each_runtime(sparse: Path) -> None:
    found = [
        note for note in told(sparse, "host", "raspberry-pi-4", "nucleo-l4r5zi", "ethos-u55-128") if "brings" in note
    ]
    assert [note.split(" brings ")[1].split(":")[0] for note in found[:2]] == [
        "litert (host, raspberry-pi-4) no speed",
        "tflite-micro (nucleo-l4r5zi) no speed",
    ]
    assert "vela (ethos-u55-128) flash and memory traffic" in found[2]
    assert "but no MACs" in found[2]
    assert all(note.startswith("7") and "% of the kernels' weights are zero" in note for note in found)


def test_what_compression_saves_is_said(sparse: Path) -> None:
    (note,) = [note for note in told(sparse, "host") if "brings" not in note]
    size, smaller = (device_metrics.file_metrics(reader.read(sparse))[index] for index in (0, 2))
    assert (size.name, smaller.name) == ("size", "size_zstd")
    assert note.startswith(f"compressed, the .tflite takes {smaller.text()} of {size.text()} (size_zstd): zeros and")


def test_a_dense_model_is_not_talked_about(models: Path) -> None:
    assert told(models / "int8.tflite", "host", "ethos-u55-128") == []
