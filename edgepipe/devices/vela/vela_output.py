"""Reads what Vela wrote: its debug database, its summary, and its log.

The database (`--enable-debug-db`) is a file of tables as comma-separated text. Two of them matter:

- source: the operators of the model; `ext_key` is the operator's index in the .tflite
- perf: what became of them, in order of execution; `source_id` points to source, `Passthrough` is left to the CPU

A name may hold commas and quotes, so the columns behind `name` are counted from the right. Of a model with several
subgraphs (loops, branches) perf holds only the last one: there the compiled model tells what was left to the CPU. It
always has the last word: what stands in it beside command streams is held against what the tables say.
"""

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

from edgepipe.core.errors import InputError
from edgepipe.devices.vela.vela_result import Compiled, Layer, Memory, Placement, Settings
from edgepipe.devices.vela.vela_worker import LOG, MODEL
from edgepipe.tflite import reader
from edgepipe.tflite.model import Model, Operator

CPU = "Passthrough"
STREAM = "ethos-u"  # the custom operator that holds commands for the NPU
MEMORIES = {"SRAM": "Sram", "DRAM": "Dram", "on-chip flash": "OnChipFlash", "off-chip flash": "OffChipFlash"}
_STEM = MODEL.removesuffix(".tflite")
COMPILED = f"{_STEM}_vela.tflite"
_TABLE = re.compile(r'<table name="(\w+)">\n<!\[CDATA\[\n(.*?)\n\]\]>\n</table>', re.DOTALL)
_WARNING = re.compile(
    r"^Warning \(supported operators\) operator: (?P<operator>[^,]+), ofm: '(?P<ofm>.*?)'\nReason: (?P<reason>.*?)\n$",
    re.MULTILINE | re.DOTALL,
)
_KIB, _GIB = 2**10, 2**30
Row = dict[str, str]


class UnknownFormatError(InputError):
    """Vela wrote something else than the version that this was written for."""


def read(folder: Path, model: Model, settings: Settings, version: str) -> Compiled:
    """What Vela told about `model`, from the files it wrote to `folder`.

    Raises:
        UnknownFormatError: the files are not what Vela 5.2.0 writes.
    """
    try:
        tables = _tables((folder / f"{_STEM}_debug.xml").read_text(encoding="utf-8", errors="replace"))
        summary = _summary(folder / f"{_STEM}_summary_{settings.system_config}.csv")
        reasons = _reasons((folder / LOG).read_text(encoding="utf-8", errors="replace"))
        origins = _origins(tables["source"], model)
        left = _left(tables["perf"], origins, model, reader.read(folder / COMPILED))
        return Compiled(
            version=version,
            settings=settings,
            **_totals(summary),
            size=(folder / COMPILED).stat().st_size,
            subgraphs=1 + max((operator.subgraph for operator in model), default=0),
            memories=tuple(_memory(name, summary) for name in MEMORIES),
            layers=tuple(_layer(row, origins, settings) for row in tables["perf"] if row["operator"] != CPU),
            placements=tuple(_placement(operator, operator in left, reasons) for operator in model),
        )
    except (OSError, KeyError, ValueError, IndexError, StopIteration) as error:
        what = f"{type(error).__name__}: {error}"
        raise UnknownFormatError(f"Vela {version} wrote tables in a form unknown here ({what})") from None


def _totals(summary: Row) -> dict[str, Any]:
    return {
        "clock": float(summary["core_clock"]),
        "cycles": int(summary["cycles_total"]),
        "npu_cycles": int(summary["cycles_npu"]),
        "macs": int(summary["nn_macs"]),
        "original_weights": int(summary["total_original_weights"]),
        "encoded_weights": int(summary["total_npu_encoded_weights"]),
    }


def _tables(text: str) -> dict[str, list[Row]]:
    return {name: _rows(body.splitlines()) for name, body in _TABLE.findall(text) if name in ("source", "perf")}


def _rows(lines: list[str]) -> list[Row]:
    header = next(csv.reader(lines[:1]))
    return [dict(zip(header, _cells(line, header), strict=True)) for line in lines[1:]]


def _cells(line: str, header: list[str]) -> list[str]:
    before = header.index("name") if "name" in header else len(header) - 1
    first = line.split(",", before)
    last = first.pop().rsplit(",", len(header) - before - 1)
    return [cell.strip('"') for cell in (*first, *last)]


def _summary(path: Path) -> Row:
    with path.open(newline="", encoding="utf-8") as stream:
        return next(csv.DictReader(stream))


def _reasons(log: str) -> dict[tuple[str, str], str]:
    """Vela's reasons for leaving an operator to the CPU, by the operator's name in its words and its output."""
    return {(m["operator"], m["ofm"]): "; ".join(m["reason"].splitlines()) for m in _WARNING.finditer(log + "\n")}


def _origins(source: list[Row], model: Model) -> dict[str, Operator]:
    """The operator of the model for each id of the table `source`, which holds the subgraphs one after the other."""
    subgraphs: dict[int, dict[int, Operator]] = {}
    for operator in model.operators:
        subgraphs.setdefault(operator.subgraph, {})[operator.index] = operator
    found: dict[str, Operator] = {}
    taken: dict[int, int] = {}
    for row in source:
        index = int(row["ext_key"])
        holding = [graph for graph in subgraphs.values() if index in graph]
        place = taken.get(index, 0)
        if place < len(holding):
            found[row["id"]] = holding[place][index]
        taken[index] = place + 1
    return found


def _memory(name: str, summary: Row) -> Memory:
    key = name.lower().replace("-", "_").replace(" ", "_")
    return Memory(
        name=name,
        used=round(float(summary[f"{key}_memory_used"]) * _KIB),
        bandwidth=float(summary[f"{key}_bandwidth"]) * _GIB,
        traffic=round(float(summary[f"{key}_total_bytes"])),
        cycles=int(summary[f"cycles_{key}_access"]),
    )


def _layer(row: Row, operators: dict[str, Operator], settings: Settings) -> Layer:
    origin = operators.get(row["source_id"])
    cycles, macs = int(row["op_cycles"]), int(row["mac_count"])
    most = cycles * int(settings.accelerator.rpartition("-")[2])
    access = {name: int(row.get(f"{column}_ac", "0")) for name, column in MEMORIES.items()}
    return Layer(
        operator=origin.place if origin else "",
        operation=row["operator"],
        cycles=cycles,
        npu_cycles=int(row["npu_cycles"]),
        sram_cycles=access["SRAM"],
        dram_cycles=access["DRAM"],
        on_chip_flash_cycles=access["on-chip flash"],
        off_chip_flash_cycles=access["off-chip flash"],
        macs=macs,
        utilisation=macs / most if most else 0.0,
    )


def _left(perf: list[Row], origins: dict[str, Operator], model: Model, compiled: Model) -> frozenset[Operator]:
    """The operators of `model` that Vela left to the CPU; the others run on the NPU or were folded into what does."""
    there = [operator for operator in compiled if operator.name != STREAM]
    if any(operator.subgraph for operator in model):
        found = _matched(there, model)
    else:
        found = frozenset(origins[row["source_id"]] for row in perf if row["operator"] == CPU)
    told, seen = (Counter(operator.name for operator in side) for side in (found, there))
    if told != seen:
        raise ValueError(f"its tables leave {dict(told)} to the CPU, the compiled model {dict(seen)}")
    return found


def _matched(there: list[Operator], model: Model) -> frozenset[Operator]:
    """The operators of `model` with the names and outputs of those of the compiled model."""
    waiting = Counter(_signature(operator) for operator in there)
    found = set()
    for operator in model:
        if waiting[_signature(operator)] > 0:
            waiting[_signature(operator)] -= 1
            found.add(operator)
    return frozenset(found)


def _signature(operator: Operator) -> tuple[int, str, tuple[str, ...]]:
    return operator.subgraph, operator.name, tuple(tensor.name for tensor in operator.outputs if tensor is not None)


def _placement(operator: Operator, on_cpu: bool, reasons: dict[tuple[str, str], str]) -> Placement:
    return Placement(
        place=operator.place,
        operator=operator.name,
        runs_on="CPU" if on_cpu else "NPU",
        reason=_reason(operator, reasons) if on_cpu else "",
    )


def _reason(operator: Operator, reasons: dict[tuple[str, str], str]) -> str:
    """Vela's reason; it spells some operators otherwise (ARGMAX), so the underscores do not count."""
    outputs = {tensor.name for tensor in operator.outputs if tensor is not None}
    plain = operator.name.replace("_", "")
    said = [reason for (name, ofm), reason in reasons.items() if ofm in outputs and name.replace("_", "") == plain]
    near = [reason for (_, ofm), reason in reasons.items() if ofm in outputs]
    return next(iter([*said, *near]), "Vela gives no reason")
