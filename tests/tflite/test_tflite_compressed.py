"""Compressed sizes: those of files that the decompressors give back, and where the levels change."""

import gzip
import zlib

import numpy as np
import pytest
import zstandard

from edgepipe.tflite import compressed_size


def _weights(size: int, share: float) -> bytes:
    random = np.random.RandomState(0)
    return np.where(random.rand(size) < share, 0, random.randint(-127, 128, size)).astype(np.int8).tobytes()


def test_the_sizes_are_those_of_streams_that_unpack() -> None:
    content = _weights(20_000, 0.75)
    found = compressed_size.measure_compression(content)
    packed = zlib.compress(content, 9)
    assert zlib.decompress(packed) == content
    assert found["deflate"].size == len(packed) == len(gzip.compress(content, 9)) - 12  # gzip's frame is 18, zlib's 6
    frame = zstandard.ZstdCompressor(level=19).compress(content)
    assert zstandard.ZstdDecompressor().decompress(frame) == content
    assert found["zstd"].size == len(frame)
    assert found["deflate"].compressor == f"zlib {zlib.ZLIB_RUNTIME_VERSION}, level 9"
    assert found["zstd"].compressor.endswith(", level 19")


@pytest.mark.parametrize(
    ("size", "levels"),
    [(compressed_size.FULL_LEVEL_MAX_BYTES, (9, 19)), (compressed_size.FULL_LEVEL_MAX_BYTES + 1, (6, 9))],
)
def test_large_files_take_lower_levels_and_say_so(size: int, levels: tuple[int, int]) -> None:
    found = compressed_size.measure_compression(bytes(size))
    assert found["deflate"].compressor.endswith(f", level {levels[0]}")
    assert found["zstd"].compressor.endswith(f", level {levels[1]}")


def test_zeros_and_shared_weights_are_what_compresses() -> None:
    dense, pruned = (compressed_size.measure_compression(_weights(20_000, share))["zstd"].size for share in (0.0, 0.75))
    clustered = np.random.RandomState(0).randint(0, 16, 20_000).astype(np.int8).tobytes()
    assert dense > 19_000
    assert pruned < dense / 2
    assert 10_000 <= compressed_size.measure_compression(clustered)["zstd"].size < 10_700  # four bits each, and no less
