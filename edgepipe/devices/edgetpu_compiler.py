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

COMPILER_COMMAND = "edgetpu_compiler"
TIMEOUT_SECONDS = 300  # seconds
INSTALL_HINT = (
    "Google's Edge TPU compiler is not on the PATH; how to install it: https://coral.ai/docs/edgetpu/compiler/"
)
# A row of the log's table: operator, count, status.
_ROW_PATTERN = re.compile(r"^\s*([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)
_MAPPED_STATUS = "Mapped to Edge TPU"


@dataclass(frozen=True)
class MappingRow:
    """Operators of one type with the same mapping status."""

    operator_name: str
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
    return shutil.which(COMPILER_COMMAND) is not None


def compile_model(model_path: Path) -> EdgeTpuMapping:
    """Compile `model` in a child process and read its log.

    Raises:
        ToolError: the compiler is missing, rejects the model, or takes longer than five minutes.
    """
    if not is_available():
        raise ToolError(INSTALL_HINT)
    with tempfile.TemporaryDirectory(prefix="edgepipe-coral-") as folder:
        log = _run_compiler(model_path, Path(folder))
        output_path = Path(folder) / f"{model_path.stem}_edgetpu.tflite"
        if not output_path.is_file():
            raise ToolError(f"{COMPILER_COMMAND} wrote no model for {model_path}: {log.strip()[-500:]}")
        return EdgeTpuMapping(_parse_version(log), parse_mapping_rows(log), output_path.read_bytes())


def npu_share_metric(model_path: Path, device: str) -> Metric:
    """The metric `npu_operators`: the share of operators the compiler maps; unavailable without the compiler."""
    if not is_available():
        return unavailable_metric("npu_operators", Dimension.FRACTION, INSTALL_HINT, device)
    try:
        mapping = compile_model(model_path)
    except ToolError as error:
        return unavailable_metric("npu_operators", Dimension.FRACTION, str(error), device)
    operator_count = sum(row.count for row in mapping.rows)
    if not operator_count:
        reason = f"{COMPILER_COMMAND} {mapping.version} prints its operators in an unknown format"
        return unavailable_metric("npu_operators", Dimension.FRACTION, reason, device)
    unmapped_text = ", ".join(
        f"{row.count} {row.operator_name} ({row.status})" for row in mapping.rows if not row.is_mapped
    )
    mapped_count = sum(row.count for row in mapping.rows if row.is_mapped)
    explanation = f"{mapped_count} of {operator_count} operators, as Edge TPU Compiler {mapping.version} maps them"
    explanation += f"; on the host: {unmapped_text}" if unmapped_text else ""
    return exact_metric("npu_operators", mapped_count / operator_count, Dimension.FRACTION, explanation, device)


def _run_compiler(model_path: Path, folder: Path) -> str:
    command = [COMPILER_COMMAND, "--show_operations", "--out_dir", str(folder), str(model_path)]
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{COMPILER_COMMAND} took longer than {TIMEOUT_SECONDS} s on {model_path}") from None
    if process.returncode:
        reason = (process.stdout + process.stderr).strip()[-500:]
        raise ToolError(f"{COMPILER_COMMAND} exited with status {process.returncode} on {model_path}: {reason}")
    return process.stdout


def parse_mapping_rows(log: str) -> tuple[MappingRow, ...]:
    """The table `Operator Count Status` of the compiler's log."""
    return tuple(MappingRow(name, int(count), status) for name, count, status in _ROW_PATTERN.findall(log))


def _parse_version(log: str) -> str:
    match = re.search(r"Edge TPU Compiler version (\S+)", log)
    return match[1] if match else "of unknown version"
