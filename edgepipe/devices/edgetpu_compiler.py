"""The Edge TPU compiler, where its vendor's program is on the PATH: what it mapped to the Edge TPU, and what not.

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
from edgepipe.core.metric import Metric, exact, unavailable
from edgepipe.core.units import Dimension

COMPILER = "edgetpu_compiler"
TIMEOUT = 300  # seconds
GET = "Google's Edge TPU compiler is not on the PATH; how to install it: https://coral.ai/docs/edgetpu/compiler/"
# A line of the log's table: the operator, how many there are of it, and what became of them.
_ROW = re.compile(r"^\s*([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)
_MAPPED = "Mapped to Edge TPU"


@dataclass(frozen=True)
class Row:
    """Operators of one kind that met the same fate."""

    operator: str
    count: int
    status: str

    @property
    def mapped(self) -> bool:
        """Whether they run on the Edge TPU."""
        return self.status == _MAPPED


@dataclass(frozen=True)
class Compiled:
    """What the compiler said of a model, and the model it made."""

    version: str
    rows: tuple[Row, ...]
    content: bytes


def available() -> bool:
    """Whether the vendor's compiler is on the PATH."""
    return shutil.which(COMPILER) is not None


def compile_model(model: Path) -> Compiled:
    """Compile `model` in a child process and read its log.

    Raises:
        ToolError: the compiler is not there, refuses the model, or takes longer than five minutes.
    """
    if not available():
        raise ToolError(GET)
    with tempfile.TemporaryDirectory(prefix="edgepipe-coral-") as folder:
        said = _run(model, Path(folder))
        made = Path(folder) / f"{model.stem}_edgetpu.tflite"
        if not made.is_file():
            raise ToolError(f"{COMPILER} made no model of {model}: {said.strip()[-500:]}")
        return Compiled(_version(said), parse(said), made.read_bytes())


def share(model: Path, device: str) -> Metric:
    """The metric `npu_operators`: how many operators of `model` the compiler maps; unavailable without it."""
    if not available():
        return unavailable("npu_operators", Dimension.FRACTION, GET, device)
    try:
        made = compile_model(model)
    except ToolError as error:
        return unavailable("npu_operators", Dimension.FRACTION, str(error), device)
    total = sum(row.count for row in made.rows)
    if not total:
        reason = f"{COMPILER} {made.version} prints its operators in a form unknown here"
        return unavailable("npu_operators", Dimension.FRACTION, reason, device)
    left = ", ".join(f"{row.count} {row.operator} ({row.status})" for row in made.rows if not row.mapped)
    mapped = sum(row.count for row in made.rows if row.mapped)
    how = f"{mapped} of {total} operators, as Edge TPU Compiler {made.version} maps them"
    return exact("npu_operators", mapped / total, Dimension.FRACTION, how + (f"; on the host: {left}" if left else ""),
                 device)  # fmt: skip


def _run(model: Path, folder: Path) -> str:
    command = [COMPILER, "--show_operations", "--out_dir", str(folder), str(model)]
    try:
        done = subprocess.run(
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
    if done.returncode:
        reason = (done.stdout + done.stderr).strip()[-500:]
        raise ToolError(f"{COMPILER} ended with {done.returncode} on {model}: {reason}")
    return done.stdout


def parse(log: str) -> tuple[Row, ...]:
    """The table `Operator Count Status` of the compiler's log."""
    return tuple(Row(name, int(count), status) for name, count, status in _ROW.findall(log))


def _version(log: str) -> str:
    found = re.search(r"Edge TPU Compiler version (\S+)", log)
    return found[1] if found else "of unknown version"
