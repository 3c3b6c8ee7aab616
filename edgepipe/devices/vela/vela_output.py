"""Reads Vela's output files: its debug database, its summary and its log.

The database (`--enable-debug-db`) is a file of tables as comma-separated text. Two of them matter:

- source: the operators of the model; `ext_key` is the operator's index in the .tflite
- perf: the compiled operations in execution order; `source_id` points to source, `Passthrough` stays on the CPU

A name may contain commas and quotes, so the columns after `name` are counted from the right. If a model has several
subgraphs (loops, branches), perf only has the last one; the operators on the CPU are then read from the compiled model.
In all cases the operators besides command streams in the compiled model must match the tables.
"""

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

from edgepipe.core.errors import InputError
from edgepipe.devices.vela.vela_result import VelaCompilation, VelaLayer, VelaMemory, VelaPlacement, VelaSettings
from edgepipe.devices.vela.vela_worker import LOG_FILE, MODEL_FILE
from edgepipe.tflite import reader
from edgepipe.tflite.model import Model, Operator

CPU_OPERATION = "Passthrough"
COMMAND_STREAM = "ethos-u"  # the custom operator that holds commands for the NPU
COLUMN_BY_MEMORY = {"SRAM": "Sram", "DRAM": "Dram", "on-chip flash": "OnChipFlash", "off-chip flash": "OffChipFlash"}
_STEM = MODEL_FILE.removesuffix(".tflite")
COMPILED_FILE = f"{_STEM}_vela.tflite"
_TABLE = re.compile(r'<table name="(\w+)">\n<!\[CDATA\[\n(.*?)\n\]\]>\n</table>', re.DOTALL)
_WARNING = re.compile(
    r"^Warning \(supported operators\) operator: (?P<operator>[^,]+), ofm: '(?P<ofm>.*?)'\nReason: (?P<reason>.*?)\n$",
    re.MULTILINE | re.DOTALL,
)
_KIB, _GIB = 2**10, 2**30
TableRow = dict[str, str]


class UnknownFormatError(InputError):
    """Vela's output differs from that of the supported version."""


def read(folder: Path, model: Model, settings: VelaSettings, version: str) -> VelaCompilation:
    """Vela's results for `model`, from the files it wrote.

    Args:
        folder: Vela's output folder, with the compiled model and the log.
        model: the model that was compiled.
        settings: the settings it was compiled with.
        version: of the package ethos-u-vela.

    Raises:
        UnknownFormatError: the files are not what Vela 5.2.0 writes.
    """
    try:
        rows_by_table = _parse_tables((folder / f"{_STEM}_debug.xml").read_text(encoding="utf-8", errors="replace"))
        summary = _read_summary(folder / f"{_STEM}_summary_{settings.system_config}.csv")
        reasons = _parse_reasons((folder / LOG_FILE).read_text(encoding="utf-8", errors="replace"))
        operator_by_id = _map_operators(rows_by_table["source"], model)
        cpu_operators = _find_cpu_operators(
            rows_by_table["perf"], operator_by_id, model, reader.read(folder / COMPILED_FILE)
        )
        return VelaCompilation(
            version=version,
            settings=settings,
            **_parse_totals(summary),
            size=(folder / COMPILED_FILE).stat().st_size,
            subgraphs=1 + max((operator.subgraph for operator in model), default=0),
            memories=tuple(_parse_memory(name, summary) for name in COLUMN_BY_MEMORY),
            layers=tuple(
                _parse_layer(row, operator_by_id, settings)
                for row in rows_by_table["perf"]
                if row["operator"] != CPU_OPERATION
            ),
            placements=tuple(_build_placement(operator, operator in cpu_operators, reasons) for operator in model),
        )
    except (OSError, KeyError, ValueError, IndexError, StopIteration) as error:
        detail = f"{type(error).__name__}: {error}"
        raise UnknownFormatError(f"Vela {version} wrote tables in an unknown format ({detail})") from None


def _parse_totals(summary: TableRow) -> dict[str, Any]:
    return {
        "clock": float(summary["core_clock"]),
        "cycles": int(summary["cycles_total"]),
        "npu_cycles": int(summary["cycles_npu"]),
        "macs": int(summary["nn_macs"]),
        "original_weights": int(summary["total_original_weights"]),
        "encoded_weights": int(summary["total_npu_encoded_weights"]),
    }


def _parse_tables(text: str) -> dict[str, list[TableRow]]:
    return {name: _parse_rows(body.splitlines()) for name, body in _TABLE.findall(text) if name in ("source", "perf")}


def _parse_rows(lines: list[str]) -> list[TableRow]:
    header = next(csv.reader(lines[:1]))
    return [dict(zip(header, _split_cells(line, header), strict=True)) for line in lines[1:]]


def _split_cells(line: str, header: list[str]) -> list[str]:
    name_column = header.index("name") if "name" in header else len(header) - 1
    leading_cells = line.split(",", name_column)
    trailing_cells = leading_cells.pop().rsplit(",", len(header) - name_column - 1)
    return [cell.strip('"') for cell in (*leading_cells, *trailing_cells)]


def _read_summary(path: Path) -> TableRow:
    with path.open(newline="", encoding="utf-8") as stream:
        return next(csv.DictReader(stream))


def _parse_reasons(log: str) -> dict[tuple[str, str], str]:
    """Vela's reasons for leaving an operator to the CPU, by Vela's operator name and the output tensor."""
    return {(m["operator"], m["ofm"]): "; ".join(m["reason"].splitlines()) for m in _WARNING.finditer(log + "\n")}


def _map_operators(source: list[TableRow], model: Model) -> dict[str, Operator]:
    """The operator of the model for each id of the table `source`, which lists the subgraphs one after the other."""
    subgraphs: dict[int, dict[int, Operator]] = {}
    for operator in model.operators:
        subgraphs.setdefault(operator.subgraph, {})[operator.index] = operator
    operator_by_id: dict[str, Operator] = {}
    uses_by_index: dict[int, int] = {}
    for row in source:
        index = int(row["ext_key"])
        matching_graphs = [graph for graph in subgraphs.values() if index in graph]
        position = uses_by_index.get(index, 0)
        if position < len(matching_graphs):
            operator_by_id[row["id"]] = matching_graphs[position][index]
        uses_by_index[index] = position + 1
    return operator_by_id


def _parse_memory(name: str, summary: TableRow) -> VelaMemory:
    key = name.lower().replace("-", "_").replace(" ", "_")
    return VelaMemory(
        name=name,
        used=round(float(summary[f"{key}_memory_used"]) * _KIB),
        bandwidth=float(summary[f"{key}_bandwidth"]) * _GIB,
        traffic=round(float(summary[f"{key}_total_bytes"])),
        cycles=int(summary[f"cycles_{key}_access"]),
    )


def _parse_layer(row: TableRow, operator_by_id: dict[str, Operator], settings: VelaSettings) -> VelaLayer:
    origin = operator_by_id.get(row["source_id"])
    cycles, macs = int(row["op_cycles"]), int(row["mac_count"])
    peak_macs = cycles * int(settings.accelerator.rpartition("-")[2])
    access_cycles = {name: int(row.get(f"{column}_ac", "0")) for name, column in COLUMN_BY_MEMORY.items()}
    return VelaLayer(
        operator=origin.location if origin else "",
        operation=row["operator"],
        cycles=cycles,
        npu_cycles=int(row["npu_cycles"]),
        sram_cycles=access_cycles["SRAM"],
        dram_cycles=access_cycles["DRAM"],
        on_chip_flash_cycles=access_cycles["on-chip flash"],
        off_chip_flash_cycles=access_cycles["off-chip flash"],
        macs=macs,
        utilisation=macs / peak_macs if peak_macs else 0.0,
    )


def _find_cpu_operators(
    perf: list[TableRow], operator_by_id: dict[str, Operator], model: Model, compiled_model: Model
) -> frozenset[Operator]:
    """The operators of `model` that Vela left to the CPU; the others run on the NPU or are fused into one that does."""
    compiled_operators = [operator for operator in compiled_model if operator.name != COMMAND_STREAM]
    if any(operator.subgraph for operator in model):
        cpu_operators = _match_operators(compiled_operators, model)
    else:
        cpu_operators = frozenset(operator_by_id[row["source_id"]] for row in perf if row["operator"] == CPU_OPERATION)
    table_counts, compiled_counts = (
        Counter(operator.name for operator in operators) for operators in (cpu_operators, compiled_operators)
    )
    if table_counts != compiled_counts:
        raise ValueError(f"on the CPU: tables {dict(table_counts)}, compiled model {dict(compiled_counts)}")
    return cpu_operators


def _match_operators(compiled_operators: list[Operator], model: Model) -> frozenset[Operator]:
    """The operators of `model` with the same names and outputs as those of the compiled model."""
    unmatched_counts = Counter(_operator_key(operator) for operator in compiled_operators)
    matched_operators = set()
    for operator in model:
        if unmatched_counts[_operator_key(operator)] > 0:
            unmatched_counts[_operator_key(operator)] -= 1
            matched_operators.add(operator)
    return frozenset(matched_operators)


def _operator_key(operator: Operator) -> tuple[int, str, tuple[str, ...]]:
    return operator.subgraph, operator.name, tuple(tensor.name for tensor in operator.outputs if tensor is not None)


def _build_placement(operator: Operator, on_cpu: bool, reasons: dict[tuple[str, str], str]) -> VelaPlacement:
    return VelaPlacement(
        place=operator.location,
        operator=operator.name,
        runs_on="CPU" if on_cpu else "NPU",
        reason=_find_reason(operator, reasons) if on_cpu else "",
    )


def _find_reason(operator: Operator, reasons: dict[tuple[str, str], str]) -> str:
    """Vela's reason; it spells some operators differently (ARGMAX), so underscores are ignored."""
    outputs = {tensor.name for tensor in operator.outputs if tensor is not None}
    vela_name = operator.name.replace("_", "")
    exact_reasons = [
        reason for (name, ofm), reason in reasons.items() if ofm in outputs and name.replace("_", "") == vela_name
    ]
    output_reasons = [reason for (_, ofm), reason in reasons.items() if ofm in outputs]
    return next(iter([*exact_reasons, *output_reasons]), "Vela gives no reason")
