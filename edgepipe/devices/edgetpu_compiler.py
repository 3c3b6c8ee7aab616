"""Runs the vendor's Edge TPU compiler if it is on the PATH: which operators it mapped, and which it did not.

Google ships it as `edgetpu_compiler` for x86-64 Debian and Ubuntu, outside of PyPI; edgepipe never fetches it.
Source: https://coral.ai/docs/edgetpu/compiler/
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgepipe.core.errors import ToolError
from edgepipe.core.metric import Metric, exact_metric, unavailable_metric
from edgepipe.core.units import Dimension

COMPILER = "edgetpu_compiler"
TIMEOUT = 300  # seconds
INSTALL_HINT = (
    "Google's Edge TPU compiler is not on the PATH; how to install it: https://coral.ai/docs/edgetpu/compiler/"
)
# A row of the log's table: operator, count, status.
_ROW = re.compile(r"^\s*([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)
_MAPPED_STATUS = "Mapped to Edge TPU"


@dataclass(frozen=True)
class MappingRow:
    """Operators of one type with the same mapping status."""

    operator: str
    count: int
    status: str

    @property
    def is_mapped(self) -> bool:
        """Whether they run on the Edge TPU."""
        return self.status == _MAPPED_STATUS


@dataclass(frozen=True)
class EdgeTpuMapping:
    """What the compiler reported on a model, and the compiled model."""

    version: str
    rows: tuple[MappingRow, ...]
    content: bytes


def is_available() -> bool:
    """Whether the vendor's compiler is on the PATH."""
    return shutil.which(COMPILER) is not None


def compile_model(model: Path) -> EdgeTpuMapping:
    """Compile `model` in a child process and read its log.

    Raises:
        ToolError: the compiler is missing, rejects the model, or takes longer than five minutes.
    """
    if not is_available():
        raise ToolError(INSTALL_HINT)
    with tempfile.TemporaryDirectory(prefix="edgepipe-coral-") as folder:
        log = _run(model, Path(folder))
        output_path = Path(folder) / f"{model.stem}_edgetpu.tflite"
        if not output_path.is_file():
            raise ToolError(f"{COMPILER} wrote no model for {model}: {log.strip()[-500:]}")
        return EdgeTpuMapping(_parse_version(log), parse_log(log), output_path.read_bytes())


def npu_share(model: Path, device: str) -> Metric:
    """The metric `npu_operators`: the share of operators the compiler maps; unavailable without the compiler."""
    if not is_available():
        return unavailable_metric("npu_operators", Dimension.FRACTION, INSTALL_HINT, device)
    try:
        mapping = compile_model(model)
    except ToolError as error:
        return unavailable_metric("npu_operators", Dimension.FRACTION, str(error), device)
    total = sum(row.count for row in mapping.rows)
    if not total:
        reason = f"{COMPILER} {mapping.version} prints its operators in an unknown format"
        return unavailable_metric("npu_operators", Dimension.FRACTION, reason, device)
    unmapped_text = ", ".join(f"{row.count} {row.operator} ({row.status})" for row in mapping.rows if not row.is_mapped)
    mapped_count = sum(row.count for row in mapping.rows if row.is_mapped)
    explanation = f"{mapped_count} of {total} operators, as Edge TPU Compiler {mapping.version} maps them"
    explanation += f"; on the host: {unmapped_text}" if unmapped_text else ""
    return exact_metric("npu_operators", mapped_count / total, Dimension.FRACTION, explanation, device)


def _run(model: Path, folder: Path) -> str:
    command = [COMPILER, "--show_operations", "--out_dir", str(folder), str(model)]
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{COMPILER} took longer than {TIMEOUT} s on {model}") from None
    if process.returncode:
        reason = (process.stdout + process.stderr).strip()[-500:]
        raise ToolError(f"{COMPILER} exited with status {process.returncode} on {model}: {reason}")
    return process.stdout


def parse_log(log: str) -> tuple[MappingRow, ...]:
    """The table `Operator Count Status` of the compiler's log."""
    return tuple(MappingRow(name, int(count), status) for name, count, status in _ROW.findall(log))


def _parse_version(log: str) -> str:
    match = re.search(r"Edge TPU Compiler version (\S+)", log)
    return match[1] if match else "of unknown version"
