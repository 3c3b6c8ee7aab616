"""What `runner.py` prints on a device, checked before anything is made of it."""

import base64
import binascii
import json
import math
import zlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgepipe.core.arrays import Array
from edgepipe.core.artifact import json_digest
from edgepipe.deploy.transport import DeviceError

MAX_ARRAY_BYTES = 1 << 28
SCHEMA_MARK = '{"schema": "edgepipe.runner/1"'


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class DeviceHost(_Part):
    """What identifies a device; `emulator` says what emulates it, and is empty on real hardware."""

    cpu: str
    cores: int
    machine: str
    kernel: str
    bits: int
    python: str
    emulator: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of what identifies it."""
        return json_digest(self.model_dump())

    def text(self) -> str:
        """For example `Raspberry Pi 4 Model B Rev 1.4, 4 cores, aarch64, Linux 6.1.0`."""
        return f"{self.cpu}, {self.cores} cores, {self.machine}, {self.kernel}"


class DeviceRuntime(_Part):
    """The package that ran the model."""

    package: str
    version: str
    numpy: str


class HardwareState(_Part):
    """Governor, frequencies and temperatures at one moment; None or empty where the system does not say."""

    governor: str | None = None
    frequency_hz: tuple[float, ...] = ()
    temperature_c: tuple[float, ...] = ()
    throttling: tuple[str, ...] | None = None


class LatencyPercentiles(_Part):
    """Seconds of one inference."""

    p5: float = Field(gt=0)
    p50: float = Field(gt=0)
    p95: float = Field(gt=0)
    runs: int
    warm_up: int


class EncodedArray(_Part):
    """One output over all golden calls."""

    dtype: Literal["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool",
                   "float16", "float32", "float64", "complex64"]  # fmt: skip
    shape: tuple[int, ...]
    zlib: str

    def decode(self) -> Array:
        """The array.

        Raises:
            ValueError: damaged, or of another size than it says.
        """
        import numpy as np

        size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if min(self.shape, default=1) < 0 or size > MAX_ARRAY_BYTES:
            raise ValueError(f"an output of shape {self.shape}")
        content = zlib.decompressobj().decompress(base64.b64decode(self.zlib, validate=True), size + 1)
        if len(content) != size:
            raise ValueError(f"an output with {len(content)} bytes for shape {self.shape}")
        return np.frombuffer(content, self.dtype).reshape(self.shape)


class RunnerDocument(_Part):
    """The whole document. `missing`: what is not installed; `refused`: why the runtime does not run the model."""

    host: DeviceHost
    before: HardwareState = HardwareState()
    after: HardwareState = HardwareState()
    missing: str = ""
    refused: str = ""
    runtime: DeviceRuntime | None = None
    load_seconds: float = 0.0
    first_seconds: float = 0.0
    outputs: tuple[EncodedArray, ...] = ()
    cores: tuple[int, ...] = ()
    latency: LatencyPercentiles | None = None
    threads: int = 1
    memory: int | None = None
    measured_at: str = ""

    def output_arrays(self, device_name: str) -> list[Array]:
        """The outputs.

        Raises:
            DeviceError: they are damaged.
        """
        try:
            return [encoded.decode() for encoded in self.outputs]
        except (ValueError, binascii.Error, zlib.error) as error:
            raise DeviceError(f"{device_name}: the outputs it sent are damaged: {error}") from None


def parse_document(device_name: str, output: str) -> RunnerDocument:
    """The document in what the runner printed, whatever else was printed around it.

    Raises:
        DeviceError: there is none, or it is not what the runner writes.
    """
    lines = [line for line in output.splitlines() if line.startswith(SCHEMA_MARK)]
    if not lines:
        text = " ".join(output.split())[-300:] or "nothing"
        raise DeviceError(f"{device_name}: the runner gave no result; it printed: {text}")
    try:
        return RunnerDocument.model_validate(json.loads(lines[-1]))
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        problem = str(error)
    raise DeviceError(f"{device_name}: the result of the runner is damaged: {problem}")
