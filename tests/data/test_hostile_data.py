"""Data files that claim far more than they hold: one line, and no memory is taken for it."""

import gzip
import io
import re
import struct
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import Command

from edgepipe.core import archives
from edgepipe.core.errors import InputError
from edgepipe.core.npy_headers import read_npz_headers
from edgepipe.data import idx, npz, sample_files
from edgepipe.data.audio import MAX_RATE, MIN_RATE, read
from edgepipe.data.data_spec import AudioSpec, NpzSpec


def _npy(shape: tuple[int, ...], dtype: str = "<f4", content: bytes = b"\0" * 64) -> bytes:
    """A .npy whose header claims `shape`, whatever follows it."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


def _npz(path: Path, member: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", member)


def _bomb(path: Path) -> None:
    """A true array of zeros, packed a thousand times."""
    count = archives.SMALL_BYTES + 2**24
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        member.write(_npy((count,), "|u1", b""))
        for _ in range(count // 2**24):
            member.write(bytes(2**24))


def _npy_text(header: str) -> bytes:
    """A .npy whose header is any text."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 64


NPZ_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "TiB in one dimension": (lambda path: _npz(path, _npy((2**40,))), "claims float32 of shape (1099511627776,)"),
    "TiB in many": (lambda path: _npz(path, _npy((2**10,) * 4)), "4,398,046,511,104 bytes; "),
    "TiB of text": (lambda path: _npz(path, _npy((2,), "<U99999999")), "claims <U99999999 of shape (2,)"),
    "a little more than there is": (lambda path: _npz(path, _npy((200,))), "800 bytes; 192 are stored"),
    "TiB, deflated": (lambda path: _npz(path, _npy((2**40,)), zipfile.ZIP_DEFLATED), "claims float32"),
    "a bomb": (_bomb, "claim to unpack to 272.0 MiB"),
    "another method": (lambda path: _npz(path, _npy((4,)), zipfile.ZIP_LZMA), "packed by method 14"),
    "an unclosed header": (lambda path: _npz(path, _npy_text("{'descr': '<f4',\n")), "its header is not one of NumPy"),
    "an indented header": (lambda path: _npz(path, _npy_text("a\n  b\n c")), "truncated or damaged .npy"),
    "a deep header": (lambda path: _npz(path, _npy_text("{'descr': " + "[" * 3000)), "truncated or damaged .npy"),
    "an unhashable header": (lambda path: _npz(path, _npy_text("{[]: 1, 'shape': ()}")), "not one of NumPy"),
    "no array": (lambda path: _npz(path, b"nothing"), "array 'x' is no array; is this really a .npz file?"),
}


@pytest.mark.parametrize("case", NPZ_FILES)
def test_an_npz_is_believed_after_it_was_checked(case: str, tmp_path: Path) -> None:
    """As data of a pipeline, as samples of a command, and by `init`."""
    write, message = NPZ_FILES[case]
    path = tmp_path / "data.npz"
    write(path)
    for reader in (lambda: npz.read(path, NpzSpec(npz=str(path))), lambda: sample_files.read(path)):
        with pytest.raises(InputError) as raised:
            reader()
        assert message in str(raised.value)
    with pytest.raises(InputError) as raised:
        read_npz_headers(path)
    assert message in str(raised.value)


@pytest.mark.parametrize("shape", [(2**40,), (2**10,) * 4, (2**31, 2**31), (40,)])
def test_an_npy_is_believed_after_it_was_checked(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    path.write_bytes(_npy(shape, content=b""))
    with pytest.raises(InputError, match=f"claims float32 of shape {re.escape(str(shape))}"):
        sample_files.read(path)


def test_small_zeros_may_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.zeros((4, 2**20), np.float32))
    assert path.stat().st_size * archives.MAX_EXPANSION < 2**24
    assert npz.read(path, NpzSpec(npz=str(path)))


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(struct.pack(">4BIII", 0, 0, 8, 3, 2**12, 2**10, 2**10))
        for _ in range(archives.SMALL_BYTES // 2**24 + 1):
            stream.write(bytes(2**24))
    with pytest.raises(InputError, match=r"claim to unpack to 25[67]\.0 MiB"):
        idx.read_file(path)


def _write_wave(path: Path, rate: int, channels: int = 1) -> None:
    samples = np.random.default_rng(0).integers(-999, 999, 16_000, np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


@pytest.mark.parametrize("rate", [1, 10, MIN_RATE - 1, MAX_RATE + 1, 2**31 - 1])
def test_a_recording_of_an_absurd_rate_is_not_used(rate: int, tmp_path: Path) -> None:
    """At 1 Hz, 16,000 samples would be four hours and a half."""
    for number in range(6):
        _write_wave(tmp_path / "ab"[number % 2] / f"{number}.wav", 16_000)
    _write_wave(tmp_path / "a" / "absurd.wav", rate)
    with pytest.raises(InputError, match=rf"absurd\.wav.*claims {rate:,} samples a second"):
        read(tmp_path, AudioSpec(audio=str(tmp_path)))


@pytest.mark.parametrize("count", [4097, 200_000])
def test_a_table_of_absurdly_many_columns(count: int, tmp_path: Path, command: Command) -> None:
    (tmp_path / "t.csv").write_text(",".join(f"c{index}" for index in range(count)) + "\n")
    ended = command("data", f"{{csv: {tmp_path / 't.csv'}, label: c0}}")
    assert (ended.code, ended.out) == (2, "")
    assert "columns; at most 4,096 are read" in ended.err
