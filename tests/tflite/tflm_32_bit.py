"""A 32-bit build of TensorFlow Lite Micro: the WebAssembly in the package mcufit, run by Node.js.

It is the benchmark of TensorFlow Lite Micro, and reads these fixed bytes more than an application on a device:

    2012  a table of 100 resource variables of 20 bytes, and its head; an application makes one if its model needs it
     104  what a recording allocator keeps: 16 in the arena's allocator, 88 in the model's
       8  alignment to 16 bytes of the table
    4 or -12  what these shift: the gap in front of the next buffer that is aligned to 16 bytes

That makes 2128, or 2112 where the gap was there anyway. On an ESP32 four networks take 2128 bytes less than this build,
as mcufit's authors found.
"""

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgepipe.tflite.structure_sizes import SIZES_32_BIT

MAX_MODEL_BYTES, MAX_ARENA_BYTES = 2_000_000, 3_000_000  # built into the benchmark
RECORDED_SIZES = SIZES_32_BIT._replace(base=((52, 4), (44, 4), (124, 4)), table_length=100)
FIXED_BYTES = (2128, 2112)

_SCRIPT = """
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
const [library, ...paths] = process.argv.slice(1);
const load = createRequire(library)(library);
for (const path of paths) {
  const lines = [];
  const keep = (line) => lines.push(line);
  const module = await load({ print: keep, printErr: keep });
  module.FS.writeFile("/m.tflite", readFileSync(path));
  try { module.callMain(["/m.tflite"]); } catch { /* emscripten throws at a clean exit too */ }
  console.log(JSON.stringify(lines));
}
process.exit(0);
"""


class Arena(NamedTuple):
    """Bytes that the 32-bit build records; `refusal` is its last words if it does not run the model."""

    head: int
    tail: int
    refusal: str


def missing() -> str:
    """What is missing to run it; empty if nothing is."""
    if importlib.util.find_spec("mcufit") is None:
        return "the package mcufit, with TensorFlow Lite Micro in 32 bits, is not installed"
    return "" if shutil.which("node") else "Node.js (Debian: nodejs) is not installed"


def record(paths: Sequence[Path]) -> list[Arena]:
    """The arena of each model."""
    package = importlib.util.find_spec("mcufit")
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).parent / "wasm" / "tflm.js"
    command = ["node", "--input-type=module", "-e", _SCRIPT, "--", str(library), *map(str, paths)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return [_arena(json.loads(line)) for line in found.stdout.splitlines()]


def _arena(lines: list[str]) -> Arena:
    table = re.search(r"NonPersistent \|\s*(\d+).*?Persistent \|\s*(\d+)", "\n".join(lines), re.DOTALL)
    return Arena(0, 0, "; ".join(lines[-3:])) if table is None else Arena(int(table[1]), int(table[2]), "")
