"""Models with many zeros get one note per runtime on what zeros gain there."""

from pathlib import Path
from typing import get_args

import pytest

from edgepipe.devices import device_metrics, device_profile, sparsity_benefit
from edgepipe.devices.device_profile import RuntimeProfile
from edgepipe.tflite import reader

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def sparse_model(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """The int8 model with three quarters of each kernel overwritten by zeros."""
    import numpy as np

    model = reader.read(models / "int8.tflite")
    content = bytearray(model.content)
    for operator in model:
        kernel = operator.input(1)
        if operator.name in ("CONV_2D", "FULLY_CONNECTED") and kernel is not None:
            start, length = kernel.byte_extent
            weights = np.frombuffer(bytes(content[start : start + length]), np.int8).copy()
            weights[np.arange(length) % 4 != 0] = 0
            content[start : start + length] = weights.tobytes()
    path = tmp_path_factory.mktemp("sparse") / "sparse.tflite"
    path.write_bytes(content)
    return path


def sparsity_notes(path: Path, *devices: str) -> list[str]:
    model = reader.read(path)
    return sparsity_benefit.benefit_notes(
        model, [device_profile.load(device, FOLDER) for device in devices], device_metrics.file_metrics(model)
    )


def test_every_runtime_has_a_benefit_text() -> None:
    assert set(sparsity_benefit.BENEFIT_BY_RUNTIME) == set(get_args(RuntimeProfile.model_fields["name"].annotation))


def test_one_note_for_each_runtime(sparse_model: Path) -> None:
    runtime_notes = [
        note
        for note in sparsity_notes(sparse_model, "host", "raspberry-pi-4", "nucleo-l4r5zi", "ethos-u55-128")
        if "brings" in note
    ]
    assert [note.split(" brings ")[1].split(":")[0] for note in runtime_notes[:2]] == [
        "litert (host, raspberry-pi-4) no speed",
        "tflite-micro (nucleo-l4r5zi) no speed",
    ]
    assert "vela (ethos-u55-128) flash and memory traffic" in runtime_notes[2]
    assert "but no MACs" in runtime_notes[2]
    assert all(note.startswith("7") and "% of the kernels' weights are zero" in note for note in runtime_notes)


def test_compression_savings_are_reported(sparse_model: Path) -> None:
    (note,) = [note for note in sparsity_notes(sparse_model, "host") if "brings" not in note]
    size, compressed_size = (device_metrics.file_metrics(reader.read(sparse_model))[index] for index in (0, 2))
    assert (size.name, compressed_size.name) == ("size", "size_zstd")
    assert note.startswith(
        f"compressed, the .tflite takes {compressed_size.text()} of {size.text()} (size_zstd): zeros and"
    )


def test_a_dense_model_gets_no_note(models: Path) -> None:
    assert sparsity_notes(models / "int8.tflite", "host", "ethos-u55-128") == []
