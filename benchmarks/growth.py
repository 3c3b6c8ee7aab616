"""CPU time and memory of commands against the size of what they read: near linear, or refused with the limit.

`python benchmarks/growth.py [COMMAND ..]` prints the table of SECURITY.md.
"""

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from tflite_handmade import Op, T, write  # noqa: E402

COUNTS = (10, 1000, 20_000, 100_000)
BOARD = (ROOT / "devices" / "nucleo-l4r5zi.yaml").read_text().replace("name: nucleo-l4r5zi", "name: board")


def _model(folder: Path, count: int) -> None:
    names = [f"t{index}" for index in range(count + 1)]
    operators = [Op("ADD", (a, a), (b,)) for a, b in itertools.pairwise(names)]
    write(folder / "m.tflite", [T(name, (1, 4), "float32") for name in names], operators, names[:1], names[-1:])


def _pipeline(folder: Path, count: int) -> None:
    stages = "".join(f"  - prune: {{as: p{index}, sparsity: 0.5}}\n" for index in range(count))
    head = "name: p\nmodel: edgepipe.zoo:small_cnn\ndata: edgepipe.data:digits\ntask: classification\n"
    (folder / "p.yaml").write_text(f"{head}stages:\n{stages}")


def _device(folder: Path, count: int) -> None:
    operators = ", ".join(f"OPERATOR_{index}" for index in range(count))
    (folder / "board.yaml").write_text(f"{BOARD}# {operators}\n")


def _samples(folder: Path, count: int) -> None:
    np.savez(folder / "d.npz", x=np.zeros((count, 64), "f4"), y=np.arange(count) % 4)


def _table(folder: Path, count: int) -> None:
    lines = ("".join(f"{index},{row},{'ab'[row % 2]}\n" for index in range(count // 10)) for row in range(10))
    (folder / "t.csv").write_text("x,z,label\n" + "".join(lines))


COMMANDS: dict[str, tuple[Callable[[Path, int], None], str, list[str]]] = {
    "inspect": (_model, "operators", ["inspect", "m.tflite"]),
    "verify": (_model, "operators", ["verify", "m.tflite", "--device", "nucleo-l4r5zi", "--integer-only"]),
    "check": (_pipeline, "stages", ["check", "p.yaml"]),
    "device show": (_device, "names", ["device", "show", "./board.yaml"]),
    "data, .npz": (_samples, "samples", ["data", "{npz: d.npz}"]),
    "data, .csv": (_table, "rows", ["data", "{csv: t.csv, label: label}"]),
}


def measure(arguments: list[str], folder: Path) -> str:
    """CPU seconds and peak memory of a command, or that it was refused."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "edgepipe", *arguments]
    with subprocess.Popen(line, cwd=folder, env=environment, stdout=-3, stderr=-3) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    refusal = "refused, " if process.returncode == 2 else ""
    return f"{refusal}{usage.ru_utime + usage.ru_stime:.1f} s, {usage.ru_maxrss >> 10} MiB"


def main() -> None:
    """Print the table."""
    print(f"| command | of | {' | '.join(f'{count:,}' for count in COUNTS)} |\n|---|---|{'---|' * len(COUNTS)}")
    for title, (write_input, unit, arguments) in COMMANDS.items():
        if title not in (sys.argv[1:] or COMMANDS):
            continue
        cells = []
        for count in COUNTS:
            with tempfile.TemporaryDirectory() as folder:
                write_input(Path(folder), count)
                cells.append(measure(arguments, Path(folder)))
        print(f"| `{title}` | {unit} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
