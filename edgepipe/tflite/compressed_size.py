"""The compressed size of a .tflite: what it takes where it is stored or sent compressed, and unpacked to run.

A .tflite stores zeros and values that many weights share like any others: only compression saves their bytes.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from edgepipe.tflite.model import Model

FULL_LEVEL_MAX_BYTES = 2 << 20  # the highest levels take seconds for each MiB of sparse weights


@dataclass(frozen=True)
class CompressedSize:
    """Bytes of a whole file after lossless compression, and what compressed it."""

    size: int
    compressor: str


def deflate_size(content: bytes) -> CompressedSize:
    """DEFLATE (RFC 1951), as in zip and gzip, with zlib's wrapping of six bytes (RFC 1950)."""
    level = 9 if len(content) <= FULL_LEVEL_MAX_BYTES else 6
    return CompressedSize(len(zlib.compress(content, level)), f"zlib {zlib.ZLIB_RUNTIME_VERSION}, level {level}")


def zstd_size(content: bytes) -> CompressedSize:
    """Zstandard (RFC 8878)."""
    import zstandard

    level = 19 if len(content) <= FULL_LEVEL_MAX_BYTES else 9
    size = len(zstandard.ZstdCompressor(level=level).compress(content))
    return CompressedSize(size, f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}, level {level}")


def measure_compression(content: bytes) -> dict[str, CompressedSize]:
    """Each compression of `content` by name; files over 2 MiB at lower levels, as `compressor` says."""
    with ThreadPoolExecutor() as pool:  # both release the GIL
        futures = {"deflate": pool.submit(deflate_size, content), "zstd": pool.submit(zstd_size, content)}
        return {name: future.result() for name, future in futures.items()}


def compressed_weight_share(model: Model) -> float:
    """Compressed size (zlib, level 6) of all weights and biases as a share of their bytes: 1 if nothing is saved."""
    byte_extents = [tensor.byte_extent for tensor in model.parameter_tensors]
    content = b"".join(model.content[start : start + length] for start, length in byte_extents)
    return min(1.0, len(zlib.compress(content, 6)) / len(content)) if content else 1.0
