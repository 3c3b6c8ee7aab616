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
from edgepipe.tflite.compiled_file import VELA_CODE
from edgepipe.tflite.model import Model, Operator

CPU_OPERATION_NAME = "Passthrough"
COLUMN_BY_MEMORY = {"SRAM": "Sram", "DRAM": "Dram", "on-chip flash": "OnChipFlash", "off-chip flash": "OffChipFlash"}
_MODEL_STEM = MODEL_FILE.removesuffix(".tflite")
COMPILED_FILE = f"{_MODEL_STEM}_vela.tflite"
_TABLE_PATTERN = re.compile(r'<table name="(\w+)">\n<!\[CDATA\[\n(.*?)\n\]\]>\n</table>', re.DOTALL)
_WARNING_PATTERN = re.compile(
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
        rows_by_table = _parse_tables(
            (folder / f"{_MODEL_STEM}_debug.xml").read_text(encoding="utf-8", errors="replace")
        )
        summary_row = _read_summary(folder / f"{_MODEL_STEM}_summary_{settings.system_config}.csv")
        reason_by_output = _parse_reasons((folder / LOG_FILE).read_text(encoding="utf-8", errors="replace"))
        operator_by_id = _map_operators(rows_by_table["source"], model)
        cpu_operators = _find_cpu_operators(
            rows_by_table["perf"], operator_by_id, model, reader.read(folder / COMPILED_FILE)
        )
        return VelaCompilation(
            version=version,
            settings=settings,
            **_parse_totals(summary_row),
            size=(folder / COMPILED_FILE).stat().st_size,
            subgraphs=1 + max((operator.subgraph_index for operator in model), default=0),
            memories=tuple(_parse_memory(name, summary_row) for name in COLUMN_BY_MEMORY),
            layers=tuple(
                _parse_layer(row, operator_by_id, settings)
                for row in rows_by_table["perf"]
                if row["operator"] != CPU_OPERATION_NAME
            ),
            placements=tuple(
                _build_placement(operator, operator in cpu_operators, reason_by_output) for operator in model
            ),
        )
    except (OSError, KeyError, ValueError, IndexError, StopIteration) as error:
        detail = f"{type(error).__name__}: {error}"
        raise UnknownFormatError(f"Vela {version} wrote tables in an unknown format ({detail})") from None


def _parse_totals(summary_row: TableRow) -> dict[str, Any]:
    return {
        "clock": float(summary_row["core_clock"]),
        "cycles": int(summary_row["cycles_total"]),
        "npu_cycles": int(summary_row["cycles_npu"]),
        "macs": int(summary_row["nn_macs"]),
        "original_weights": int(summary_row["total_original_weights"]),
        "encoded_weights": int(summary_row["total_npu_encoded_weights"]),
    }


def _parse_tables(text: str) -> dict[str, list[TableRow]]:
    return {
        name: _parse_rows(body.splitlines())
        for name, body in _TABLE_PATTERN.findall(text)
        if name in ("source", "perf")
    }


def _parse_rows(lines: list[str]) -> list[TableRow]:
    column_names = next(csv.reader(lines[:1]))
    return [dict(zip(column_names, _split_cells(line, column_names), strict=True)) for line in lines[1:]]


def _split_cells(line: str, column_names: list[str]) -> list[str]:
    name_column = column_names.index("name") if "name" in column_names else len(column_names) - 1
    leading_cells = line.split(",", name_column)
    trailing_cells = leading_cells.pop().rsplit(",", len(column_names) - name_column - 1)
    return [cell.strip('"') for cell in (*leading_cells, *trailing_cells)]


def _read_summary(path: Path) -> TableRow:
    with path.open(newline="", encoding="utf-8") as stream:
        return next(csv.DictReader(stream))


def _parse_reasons(log: str) -> dict[tuple[str, str], str]:
    """Vela's reasons for leaving an operator to the CPU, by Vela's operator name and the output tensor."""
    return {
        (m["operator"], m["ofm"]): "; ".join(m["reason"].splitlines()) for m in _WARNING_PATTERN.finditer(log + "\n")
    }


def _map_operators(source_rows: list[TableRow], model: Model) -> dict[str, Operator]:
    """The operator of the model for each id of the table `source`, which lists the subgraphs one after the other."""
    operators_by_subgraph: dict[int, dict[int, Operator]] = {}
    for operator in model.operators:
        operators_by_subgraph.setdefault(operator.subgraph_index, {})[operator.index] = operator
    operator_by_id: dict[str, Operator] = {}
    uses_by_index: dict[int, int] = {}
    for row in source_rows:
        index = int(row["ext_key"])
        matching_graphs = [graph for graph in operators_by_subgraph.values() if index in graph]
        use_count = uses_by_index.get(index, 0)
        if use_count < len(matching_graphs):
            operator_by_id[row["id"]] = matching_graphs[use_count][index]
        uses_by_index[index] = use_count + 1
    return operator_by_id


def _parse_memory(name: str, summary_row: TableRow) -> VelaMemory:
    column_prefix = name.lower().replace("-", "_").replace(" ", "_")
    return VelaMemory(
        name=name,
        used=round(float(summary_row[f"{column_prefix}_memory_used"]) * _KIB),
        bandwidth=float(summary_row[f"{column_prefix}_bandwidth"]) * _GIB,
        traffic=round(float(summary_row[f"{column_prefix}_total_bytes"])),
        cycles=int(summary_row[f"cycles_{column_prefix}_access"]),
    )


def _parse_layer(row: TableRow, operator_by_id: dict[str, Operator], settings: VelaSettings) -> VelaLayer:
    source_operator = operator_by_id.get(row["source_id"])
    cycles, macs = int(row["op_cycles"]), int(row["mac_count"])
    peak_macs = cycles * int(settings.accelerator.rpartition("-")[2])
    access_cycles_by_memory = {name: int(row.get(f"{column}_ac", "0")) for name, column in COLUMN_BY_MEMORY.items()}
    return VelaLayer(
        operator=source_operator.location if source_operator else "",
        operation=row["operator"],
        cycles=cycles,
        npu_cycles=int(row["npu_cycles"]),
        sram_cycles=access_cycles_by_memory["SRAM"],
        dram_cycles=access_cycles_by_memory["DRAM"],
        on_chip_flash_cycles=access_cycles_by_memory["on-chip flash"],
        off_chip_flash_cycles=access_cycles_by_memory["off-chip flash"],
        macs=macs,
        utilisation=macs / peak_macs if peak_macs else 0.0,
    )


def _find_cpu_operators(
    perf_rows: list[TableRow], operator_by_id: dict[str, Operator], model: Model, compiled_model: Model
) -> frozenset[Operator]:
    """The operators of `model` that Vela left to the CPU; the others run on the NPU or are fused into one that does."""
    compiled_operators = [operator for operator in compiled_model if operator.name != VELA_CODE]
    if any(operator.subgraph_index for operator in model):
        cpu_operators = _match_operators(compiled_operators, model)
    else:
        cpu_operators = frozenset(
            operator_by_id[row["source_id"]] for row in perf_rows if row["operator"] == CPU_OPERATION_NAME
        )
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
    return (
        operator.subgraph_index,
        operator.name,
        tuple(tensor.name for tensor in operator.outputs if tensor is not None),
    )


def _build_placement(operator: Operator, on_cpu: bool, reason_by_output: dict[tuple[str, str], str]) -> VelaPlacement:
    return VelaPlacement(
        place=operator.location,
        operator=operator.name,
        runs_on="CPU" if on_cpu else "NPU",
        reason=_find_reason(operator, reason_by_output) if on_cpu else "",
    )


def _find_reason(operator: Operator, reason_by_output: dict[tuple[str, str], str]) -> str:
    """Vela's reason; it spells some operators differently (ARGMAX), so underscores are ignored."""
    output_names = {tensor.name for tensor in operator.outputs if tensor is not None}
    vela_name = operator.name.replace("_", "")
    exact_reasons = [
        reason
        for (name, ofm), reason in reason_by_output.items()
        if ofm in output_names and name.replace("_", "") == vela_name
    ]
    output_reasons = [reason for (_, ofm), reason in reason_by_output.items() if ofm in output_names]
    return next(iter([*exact_reasons, *output_reasons]), "Vela gives no reason")
