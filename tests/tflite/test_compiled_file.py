"""What a .tflite that Vela or the Edge TPU compiler wrote says of itself."""

import struct
from pathlib import Path

import numpy as np
import pytest
from tflite_handmade import Op, T, write

from edgepipe.tflite import reader
from edgepipe.tflite.compiled_file import CompiledFile, read_compiled_file
from edgepipe.tflite.integer_check import check_integer_only


def vela_file(path: Path, commands: bytes, fast: bool = False) -> Path:
    """A file as Vela writes it: commands, weights, scratch memory, the input; a RELU on the core behind it."""
    content = np.frombuffer(commands, np.uint8)
    names = ("commands", "weights", "scratch", "fast" if fast else "scratch", "x")
    tensors = [
        T("commands", content.shape, "uint8", content), T("weights", (96,), "uint8", np.zeros(96, np.uint8)),
        T("scratch", (1024,), "uint8"), T("fast", (512,), "uint8"),
        *(T(name, (1, 8), "int8", scales=(0.1,)) for name in "xyz"),
    ]  # fmt: skip
    operators = [Op("CUSTOM", names, ("y",), custom="ethos-u"), Op("RELU", ("y",), ("z",))]
    return write(path, tensors, operators, ["x"], ["z"])


def commands(configuration: int, tag: bytes = b"COP1", action: int = 0x100001) -> bytes:
    return tag + struct.pack("<III", action, configuration, 0x10066001)


def _read(path: Path) -> CompiledFile:
    compiled_file = read_compiled_file(reader.read(path))
    assert compiled_file is not None
    return compiled_file


@pytest.mark.parametrize(
    ("content", "accelerators"),
    [
        (commands(0x1807), ("ethos-u55-128",)),
        (commands(0x3008), ("ethos-u55-256",)),
        (commands(0x10006009), ("ethos-u65-512",)),
        (commands(0x2000261B), ("ethos-u85-2048",)),
        (commands(0x3000261B), ()),  # a product that does not exist
        (commands(0x1807, tag=b"COP2"), ()),
        (commands(0x1807, action=2), ()),
        (b"COP1", ()),
    ],
)
def test_the_accelerator_is_read_from_the_commands(
    content: bytes, accelerators: tuple[str, ...], tmp_path: Path
) -> None:
    assert _read(vela_file(tmp_path / "m.tflite", content)).accelerators == accelerators


@pytest.mark.parametrize(("fast", "fast_bytes"), [(False, 0), (True, 512)])
def test_memory_and_what_is_left_to_the_core(fast: bool, fast_bytes: int, tmp_path: Path) -> None:
    path = vela_file(tmp_path / "m.tflite", commands(0x1807), fast)
    compiled_file = _read(path)
    assert (compiled_file.scratch_bytes, compiled_file.fast_scratch_bytes) == (1024, fast_bytes)
    assert compiled_file.weight_bytes == 96
    assert [operator.location for operator in compiled_file.cpu_operators] == ["RELU #1"]
    assert compiled_file.text() == "compiled by Vela for ethos-u55-128"
    assert check_integer_only(reader.read(path)) == []


def test_an_edge_tpu_file_says_nothing_of_its_memory(tmp_path: Path) -> None:
    pair = [T(name, (1, 8), "int8", scales=(0.1,)) for name in "xy"]
    operators = [Op("CUSTOM", ("x",), ("y",), custom="edgetpu-custom-op")]
    compiled_file = _read(write(tmp_path / "m.tflite", pair, operators, ["x"], ["y"]))
    assert (compiled_file.accelerators, compiled_file.scratch_bytes) == (("the Edge TPU",), None)


def test_other_custom_operators_are_not_compiled(tmp_path: Path) -> None:
    pair = [T(name, (1, 8), "int8", scales=(0.1,)) for name in "xy"]
    path = write(tmp_path / "m.tflite", pair, [Op("CUSTOM", ("x",), ("y",), custom="SignalWindow")], ["x"], ["y"])
    assert read_compiled_file(reader.read(path)) is None
    assert "arithmetic is unknown" in str(check_integer_only(reader.read(path))[0])
