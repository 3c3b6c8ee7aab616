"""The content of a .tflite as tables and as JSON: `edgepipe inspect`."""

from pydantic import Field

from edgepipe.core import units
from edgepipe.core.errors import InputError
from edgepipe.core.escape import json_text
from edgepipe.core.metric import Metric, Record
from edgepipe.core.units import Dimension
from edgepipe.render.report_tables import TextTable
from edgepipe.tflite.arena_plan import ALIGNMENT, ArenaBuffer, ArenaPlan
from edgepipe.tflite.compiled_file import read_compiled_file
from edgepipe.tflite.compressed_size import measure_compression
from edgepipe.tflite.dead_channels import DeadChannels, count_filters, find_dead_channels
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.metadata import Preprocessing, read_preprocessing
from edgepipe.tflite.minimum_runtimes import first_release, minimum_runtime
from edgepipe.tflite.model import Model, Operator, OptionValue, Subgraph, Tensor
from edgepipe.tflite.split_outputs import SplitOutput, read_split_outputs
from edgepipe.tflite.stream_ports import StreamPorts, read_stream_ports
from edgepipe.tflite.tflm_memory import TflmMemory, plan_memory

MAX_SHOWN_TENSORS = 8  # tensors of a kind that are listed in a table


class TensorRecord(Record):
    """A tensor as `inspect --json` gives it."""

    index: int
    subgraph: int
    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...] = Field(description="the shape, with -1 where it may be resized")
    dtype: str
    constant: bool
    variable: bool
    sparse: bool
    bytes: int
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int | None = Field(default=None, description="of the scales, if there are several")


class OperatorRecord(Record):
    """An operator as `inspect --json` gives it."""

    index: int
    subgraph: int
    name: str
    version: int = Field(description="of the kernel that it asks for")
    custom: bool
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    input_tensors: tuple[int | None, ...] = Field(description="their indices in the subgraph")
    output_tensors: tuple[int | None, ...]
    options: dict[str, OptionValue]
    macs: int
    parameters: int
    bytes_read: int = Field(description="of activations and variables")
    constant_bytes: int = Field(description="of weights and other constants that it reads")
    bytes_written: int


class SubgraphRecord(Record):
    """A subgraph: how much of the model is in it."""

    index: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: int
    tensors: int
    macs: int


class SignatureRecord(Record):
    """A named entry point, with the tensor of each named input and output."""

    key: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


class BufferRecord(Record):
    """A buffer of the planned arena, in use from step `first` to `last`, both inclusive."""

    name: str
    kind: str = Field(description="input, output, activation, scratch, or unused by any operator")
    subgraph: int
    tensor: int | None = Field(description="its index in the subgraph; null for scratch memory")
    bytes: int
    size: int = Field(description="bytes, rounded up to the alignment")
    offset: int
    first: int
    last: int
    first_operator: str | None
    last_operator: str | None


class StepRecord(Record):
    """A step of the plan: the operator that runs, and the bytes alive then."""

    operator: str | None = Field(description="null where a subgraph begins")
    live_bytes: int = Field(description="of tensors, without alignment and gaps")
    scratch_bytes: int


class TailRecord(Record):
    """The tail of the arena, behind the planned part, where TensorFlow Lite Micro keeps its own structures."""

    bytes: int = Field(description="on 64 bits")
    parts: dict[str, int]
    unknown: tuple[str, ...] = Field(description="operators whose kernels' data is left out")
    bytes_32_bit: int
    interval_32_bit: tuple[int, int] = Field(description="wider than a point if kernels' data is left out")


class MemoryRecord(Record):
    """The memory plan; without one `reason` says why."""

    reason: str
    alignment: int = ALIGNMENT
    planned_peak: int | None = None
    naive_peak: int | None = None
    least_arena: int | None = Field(default=None, description="bytes in which the model can be allocated, on 64 bits")
    least_arena_32_bit: int | None = None
    peak_operator: str | None = None
    peak_tensors: tuple[str, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    buffers: tuple[BufferRecord, ...] = ()
    tail: TailRecord


class RunRecord(Record):
    """The result of running the model on this host, in a child process."""

    litert: str = Field(description="empty if it runs, else why not")
    tflite_micro: Metric


class CompiledRecord(Record):
    """What a compiler for an accelerator made of the model."""

    compiler: str
    accelerators: tuple[str, ...] = Field(description="empty: the file does not say it in a known way")
    accelerator_operators: tuple[str, ...]
    cpu_operators: tuple[str, ...] = Field(description="which the compiler left to the core")
    scratch_bytes: int | None = Field(description="activations as Vela places them; null: not readable")
    fast_scratch_bytes: int = Field(description="those in a faster memory of its own")
    weight_bytes: int


class ModelRecord(Record):
    """The document that `inspect --json` prints."""

    format: str = Field(default="edgepipe.inspect/1", serialization_alias="schema")
    path: str
    bytes: int
    size_deflate: int
    size_zstd: int
    macs: int | None = Field(description="null: unknown, see `open_sizes`")
    open_sizes: str = Field(default="", description="why the file does not hold all sizes; empty if it does")
    uncounted: tuple[str, ...]
    parameters: int
    zero_parameters: int
    integer_only: bool
    operator_counts: dict[str, int]
    dtype_census: dict[str, int]
    filters: int = Field(description="of all convolutions and dense layers with constant weights")
    dead_channels: tuple[DeadChannels, ...]
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    subgraphs: tuple[SubgraphRecord, ...]
    signatures: tuple[SignatureRecord, ...]
    operators: tuple[OperatorRecord, ...]
    tensors: tuple[TensorRecord, ...]
    memory: MemoryRecord
    runs: RunRecord | None = Field(default=None, description="with --run")
    preprocessing: Preprocessing | None = Field(default=None, description="what samples go through before the model")
    preprocessing_error: str = Field(default="", description="why what the file says of it cannot be read")
    streaming: StreamPorts | None = Field(default=None, description="which outputs are states of the next call")
    split_outputs: tuple[SplitOutput, ...] = Field(default=(), description="outputs that hold parts of one")
    compiled: CompiledRecord | None = Field(default=None, description="by Vela or the Edge TPU compiler")


def build_record(model: Model, run_record: RunRecord | None = None) -> ModelRecord:
    """The content of a model as the document that `inspect --json` prints."""
    compression_by_name = measure_compression(model.content)
    preprocessing, read_error = _read_preprocessing(model)
    return ModelRecord(
        path=str(model.path),
        bytes=model.bytes,
        size_deflate=compression_by_name["deflate"].size,
        size_zstd=compression_by_name["zstd"].size,
        macs=None if model.open_size_reason else model.macs,
        open_sizes=model.open_size_reason,
        uncounted=model.uncounted_operator_names,
        parameters=model.parameters,
        zero_parameters=model.zero_parameters,
        integer_only=not check_integer_only(model),
        operator_counts=dict(model.operator_counts),
        dtype_census=dict(model.dtype_counts),
        filters=count_filters(model),
        dead_channels=tuple(find_dead_channels(model)),
        inputs=tuple(_tensor_record(tensor) for tensor in model.inputs),
        outputs=tuple(_tensor_record(tensor) for tensor in model.outputs),
        subgraphs=tuple(_subgraph_record(graph) for graph in model.subgraphs),
        signatures=tuple(
            SignatureRecord(key=s.key, subgraph=s.subgraph_index, inputs=s.inputs, outputs=s.outputs)
            for s in model.signatures
        ),
        operators=tuple(_operator_record(operator) for operator in model.operators),
        tensors=tuple(_tensor_record(tensor) for tensor in model.used_tensors),
        memory=_memory_record(plan_memory(model)),
        runs=run_record,
        preprocessing=preprocessing,
        preprocessing_error=read_error,
        streaming=read_stream_ports(model),
        split_outputs=read_split_outputs(model),
        compiled=_compiled_record(model),
    )


def _compiled_record(model: Model) -> CompiledRecord | None:
    compiled_file = read_compiled_file(model)
    if compiled_file is None:
        return None
    return CompiledRecord(
        compiler=compiled_file.compiler, accelerators=compiled_file.accelerators,
        accelerator_operators=tuple(operator.location for operator in compiled_file.accelerator_operators),
        cpu_operators=tuple(operator.location for operator in compiled_file.cpu_operators),
        scratch_bytes=compiled_file.scratch_bytes, fast_scratch_bytes=compiled_file.fast_scratch_bytes,
        weight_bytes=compiled_file.weight_bytes,
    )  # fmt: skip


def _read_preprocessing(model: Model) -> tuple[Preprocessing | None, str]:
    try:
        return read_preprocessing(model), ""
    except InputError as error:
        return None, str(error)


def run_model(model: Model) -> RunRecord:
    """Run `model` once on zeros in LiteRT and in TensorFlow Lite Micro, each in a child process."""
    from edgepipe.tflite import interpreter, tflm_runtime

    try:
        interpreter.check_runs(model.path)
        refusal = ""
    except InputError as error:
        refusal = str(error)
    return RunRecord(litert=refusal, tflite_micro=tflm_runtime.measure_arena(model.path))


def _tensor_record(tensor: Tensor) -> TensorRecord:
    qparams = tensor.quantization
    return TensorRecord(
        index=tensor.index, subgraph=tensor.subgraph_index, name=tensor.name, shape=tensor.shape,
        signature=tensor.shape_signature, dtype=tensor.dtype, constant=tensor.is_constant, variable=tensor.is_variable,
        sparse=tensor.is_sparse, bytes=tensor.bytes,
        scales=qparams.scales if qparams else (), zero_points=qparams.zero_points if qparams else (),
        axis=qparams.axis if qparams and qparams.is_per_axis else None,
    )  # fmt: skip


def _operator_record(operator: Operator) -> OperatorRecord:
    tensor_lists = (operator.inputs, operator.outputs)
    tensor_names = [tuple(t.name if t else None for t in side) for side in tensor_lists]
    tensor_indices = [tuple(t.index if t else None for t in side) for side in tensor_lists]
    return OperatorRecord(
        index=operator.index, subgraph=operator.subgraph_index, name=operator.name, version=operator.version,
        custom=operator.is_custom,
        inputs=tensor_names[0], outputs=tensor_names[1],
        input_tensors=tensor_indices[0], output_tensors=tensor_indices[1],
        options=operator.options, macs=operator.macs, parameters=operator.parameters,
        bytes_read=operator.bytes_read, constant_bytes=operator.constant_bytes, bytes_written=operator.bytes_written,
    )  # fmt: skip


def _subgraph_record(subgraph: Subgraph) -> SubgraphRecord:
    return SubgraphRecord(
        index=subgraph.index, name=subgraph.name, inputs=tuple(t.name for t in subgraph.inputs),
        outputs=tuple(t.name for t in subgraph.outputs),
        operators=len(subgraph.operators), tensors=len(subgraph.tensors),
        macs=sum(operator.macs for operator in subgraph.operators),
    )  # fmt: skip


def _memory_record(tflm_memory: TflmMemory) -> MemoryRecord:
    tail = tflm_memory.arena_tail
    tail_record = TailRecord(
        bytes=tail.total_bytes, parts=tail.bytes_by_use, unknown=tail.unknown_operators,
        bytes_32_bit=tail.total_bytes_32_bit, interval_32_bit=tail.interval_32_bit,
    )  # fmt: skip
    plan = tflm_memory.arena_plan
    if plan is None:
        return MemoryRecord(reason=tflm_memory.missing_plan_reason, tail=tail_record)
    return MemoryRecord(
        reason="",
        planned_peak=plan.peak_bytes,
        naive_peak=plan.naive_peak_bytes,
        least_arena=tflm_memory.least_bytes,
        least_arena_32_bit=tflm_memory.least_bytes_32_bit,
        peak_operator=_step_operator(plan, plan.peak_step),
        peak_tensors=tuple(buffer.name for buffer in plan.buffers_at_peak),
        steps=tuple(
            StepRecord(operator=_step_operator(plan, step), live_bytes=live, scratch_bytes=scratch)
            for step, (live, scratch) in enumerate(
                zip(plan.live_bytes_by_step, plan.scratch_bytes_by_step, strict=True)
            )
        ),
        buffers=tuple(_buffer_record(plan, buffer) for buffer in plan.buffers),
        tail=tail_record,
    )


def _buffer_record(plan: ArenaPlan, buffer: ArenaBuffer) -> BufferRecord:
    return BufferRecord(
        name=buffer.name, kind=buffer.kind, subgraph=buffer.subgraph_index, tensor=buffer.tensor_index,
        bytes=buffer.size, size=buffer.aligned_size, offset=buffer.offset,
        first=buffer.first_step, last=buffer.last_step,
        first_operator=_step_operator(plan, buffer.first_step), last_operator=_step_operator(plan, buffer.last_step),
    )  # fmt: skip


def _step_operator(plan: ArenaPlan, step: int) -> str | None:
    operator = plan.step_operators[step] if step >= 0 else None
    return operator.location if operator is not None else None


def document(model: Model, run_record: RunRecord | None = None) -> str:
    """The same as one JSON document."""
    return json_text(build_record(model, run_record).model_dump(mode="json", by_alias=True))


def tables(model: Model, run_record: RunRecord | None = None) -> list[TextTable]:
    """The tables that `inspect` prints."""
    tflm_memory = plan_memory(model)
    all_tables = [
        _summary_table(model),
        _structure_table(model),
        _preprocessing_table(model),
        _operators_table(model),
        _dead_channels_table(model),
        _memory_table(tflm_memory),
        *_peak_tables(tflm_memory),
    ]
    return [
        table for table in (*all_tables, *([] if run_record is None else [_runtimes_table(run_record)])) if table.rows
    ]


def _summary_table(model: Model) -> TextTable:
    float_findings = check_integer_only(model)
    parameters_text = f"{model.parameters:,} ({model.parameters - model.zero_parameters:,} non-zero)"
    integer_text = "every operator and tensor"
    if float_findings:
        count_text = units.plural(len(float_findings), "operator or tensor", "operators or tensors")
        integer_text = f"no, {count_text} in float; the first: {float_findings[0]}"
    rows = [
        ("size", units.show(model.bytes, Dimension.BYTES)),
        *(
            (f"size, {name}", f"{units.show(compression.size, Dimension.BYTES)} ({compression.compressor})")
            for name, compression in measure_compression(model.content).items()
        ),
        *_compiled_rows(model),
        ("MACs", _describe_macs(model)),
        ("parameters", parameters_text),
        ("tensors", ", ".join(f"{number} {dtype}" for dtype, number in sorted(model.dtype_counts.items()))),
        ("integer", integer_text),
        *([("first release", _describe_first_release(model))] if model.operators else []),
        *((f"input '{name}'", _describe_tensor(tensor)) for name, tensor in model.inputs_by_name.items()),
        *((f"output '{name}'", _describe_tensor(tensor)) for name, tensor in model.outputs_by_name.items()),
    ]
    return TextTable(str(model.path), ("property", "value"), tuple(rows))


def _compiled_rows(model: Model) -> list[tuple[str, str]]:
    """What a compiler made of the model: for what, what runs where, in how much memory."""
    compiled_file = read_compiled_file(model)
    if compiled_file is None:
        return []
    counts = [len(compiled_file.accelerator_operators), len(compiled_file.cpu_operators)]
    rows = [
        ("compiled", compiled_file.text().removeprefix("compiled ")),
        ("runs there", f"{units.plural(counts[0], 'operator')}, of how many is not in the file"),
        ("runs on the core", units.plural(counts[1], "operator")),
    ]
    if compiled_file.scratch_bytes is None:
        return rows
    sizes = {
        "scratch memory": compiled_file.scratch_bytes,
        "fast scratch memory": compiled_file.fast_scratch_bytes,
        "compiled weights": compiled_file.weight_bytes,
    }
    return rows + [(name, units.show(size, Dimension.BYTES)) for name, size in sizes.items() if size]


def _describe_first_release(model: Model) -> str:
    """The first release of TensorFlow Lite that has all operators in their versions, and which of them need it."""
    release = minimum_runtime((operator.name, operator.version) for operator in model.operators)
    if not release:
        return "unknown: TensorFlow Lite's table has none of these operators"
    versions = {op.name: op.version for op in model.operators if first_release(op.name, op.version) == release}
    names_text = ", ".join(f"{name} version {version}" for name, version in sorted(versions.items()))
    return f"TensorFlow Lite {release}, for {names_text}"


def _describe_macs(model: Model) -> str:
    if model.open_size_reason:
        return f"unknown, {model.macs:,} with 1 for each open size: {model.open_size_reason}"
    uncounted_names = ", ".join(model.uncounted_operator_names)
    return f"{model.macs:,}" + (f" (not counted: {uncounted_names})" if uncounted_names else "")


def _structure_table(model: Model) -> TextTable:
    """Subgraphs if there are several, signatures, and tensors of special kinds."""
    subgraphs = model.subgraphs if len(model.subgraphs) > 1 else ()
    tensors_by_kind = {
        "variables": model.variable_tensors,
        "sparse": model.sparse_tensors,
        "packed": model.packed_tensors,
    }
    rows = [
        *((f"subgraph {graph.index}", _describe_subgraph(graph)) for graph in subgraphs),
        *((f"signature '{s.key}'", f"subgraph {s.subgraph_index}: {', '.join(s.inputs)} -> {', '.join(s.outputs)}")
          for s in model.signatures),
        *_stream_rows(model),
        *((f"split output '{output.name}'", f"{', '.join(output.parts)}, joined along axis {output.axis}")
          for output in read_split_outputs(model)),
        *((kind, _list_tensors(tensors)) for kind, tensors in tensors_by_kind.items() if tensors),
    ]  # fmt: skip
    return TextTable("Structure", ("property", "value"), tuple(rows))


def _stream_rows(model: Model) -> list[tuple[str, str]]:
    """How a streaming model is called, and which output is which input of the next call."""
    ports = read_stream_ports(model)
    if ports is None:
        return []
    return [
        ("streaming", f"{units.plural(ports.steps, 'step')} a call"),
        *((f"state '{state.output}'", f"'{state.input}' of the next call") for state in ports.states),
    ]


def _preprocessing_table(model: Model) -> TextTable:
    """The preprocessing of samples that the file describes."""
    preprocessing, read_error = _read_preprocessing(model)
    fields = {} if preprocessing is None else preprocessing.model_dump(exclude_none=True, exclude={"format"})
    rows = [("unreadable", read_error)] if read_error else []
    for field_name, field in fields.items():
        setting_by_name = (
            {f"{field_name}: {name}": inner for name, inner in field.items()}
            if isinstance(field, dict)
            else {field_name: field}
        )
        rows += [(name, _format_constant(setting)) for name, setting in setting_by_name.items() if setting != ()]
    return TextTable("Preprocessing, which a device must repeat", ("property", "value"), tuple(rows))


def _format_constant(constant: object) -> str:
    return ", ".join(map(_format_constant, constant)) if isinstance(constant, tuple) else str(constant)


def _describe_subgraph(subgraph: Subgraph) -> str:
    name_text = f"'{subgraph.name}', " if subgraph.name else ""
    return f"{name_text}{len(subgraph.operators)} operators, {len(subgraph.tensors)} tensors"


def _list_tensors(tensors: tuple[Tensor, ...]) -> str:
    more_note = f" and {len(tensors) - MAX_SHOWN_TENSORS} more" if len(tensors) > MAX_SHOWN_TENSORS else ""
    return ", ".join(f"'{t.name}' {t.dtype} {list(t.shape)}" for t in tensors[:MAX_SHOWN_TENSORS]) + more_note


def _describe_tensor(tensor: Tensor) -> str:
    qparams = tensor.quantization
    scale_note = f", scale {qparams.scales[0]:.6g}, zero point {qparams.zero_points[0]}" if qparams else ""
    return f"{tensor.dtype} {_format_shape(tensor)}{scale_note}"


def _format_shape(tensor: Tensor) -> str:
    """For example `[?, 8, 8, 3]`: an open dimension is not the 1 that the file holds for it."""
    return "[" + ", ".join("?" if size < 0 else str(size) for size in tensor.stated_shape) + "]"


def _operators_table(model: Model) -> TextTable:
    columns = (
        "#",
        "operator",
        "version",
        "inputs",
        "outputs",
        "MACs",
        "parameters",
        "read",
        "constants",
        "written",
        "scale",
    )
    rows = tuple(
        (str(op.index) if not op.subgraph_index else f"{op.subgraph_index}/{op.index}", op.name,
         "-" if op.is_custom else str(op.version), _list_shapes(op.inputs), _list_shapes(op.outputs), f"{op.macs:,}",
         f"{op.parameters:,}", f"{op.bytes_read:,}", f"{op.constant_bytes:,}", f"{op.bytes_written:,}",
         _describe_scale(op))
        for op in model.operators
    )  # fmt: skip
    return TextTable("Operators, with the bytes they read and write", columns, rows, frozenset({0, 2, 5, 6, 7, 8, 9}))


def _describe_scale(operator: Operator) -> str:
    """The scale and zero point of the output, and whether the weights are per channel."""
    output = operator.outputs[0] if operator.outputs else None
    qparams = output.quantization if output is not None else None
    scale_text = f"{qparams.scales[0]:.4g}, {qparams.zero_points[0]}" if qparams else "-"
    per_axis = any(t.quantization is not None and t.quantization.is_per_axis for t in operator.parameter_tensors)
    return f"{scale_text}; per channel" if per_axis else scale_text


def _list_shapes(tensors: tuple[Tensor | None, ...]) -> str:
    return " ".join(f"{t.dtype}{_format_shape(t)}" for t in tensors if t is not None)


def _dead_channels_table(model: Model) -> TextTable:
    rows = tuple((dead.operator, dead.tensor, f"{dead.dead}", f"{dead.filters}") for dead in find_dead_channels(model))
    total = sum(int(row[2]) for row in rows)
    title = f"Dead channels: {total} of {count_filters(model)} filters have only zero weights, so a constant output"
    return TextTable(title, ("operator", "weights", "dead", "filters"), rows, frozenset({2, 3}))


def _memory_table(tflm_memory: TflmMemory) -> TextTable:
    tail = tflm_memory.arena_tail
    unknown_operators = ", ".join(tail.unknown_operators)
    missing_note = f", excluding the kernel data of {unknown_operators}" if unknown_operators else ""
    arena_plan = tflm_memory.arena_plan
    if arena_plan is None:
        rows = [("planned peak", f"unavailable: {tflm_memory.missing_plan_reason}")]
    else:
        rows = [
            (
                "planned peak",
                f"{_format_bytes(arena_plan.peak_bytes)}: the arena's head, by TensorFlow Lite Micro's greedy planner",
            ),
            ("naive peak", f"{_format_bytes(arena_plan.naive_peak_bytes)} of tensors alive at once"),
            ("at", _step_operator(arena_plan, arena_plan.peak_step) or "the start"),
        ]
    rows += [
        ("tail", f"{_format_bytes(tail.total_bytes)} of runtime structures on 64 bits{missing_note}"),
        ("tail, 32 bits", f"{_format_bytes(tail.total_bytes_32_bit)}{missing_note}"),
    ]
    rows += _least_arena_rows(tflm_memory) if arena_plan is not None else []
    return TextTable("Memory plan", ("property", "value"), tuple(rows))


def _least_arena_rows(tflm_memory: TflmMemory) -> list[tuple[str, str]]:
    """What an arena must have to allocate the model, beside what is in use afterwards."""
    in_use_note = f"; {tflm_memory.total_bytes_32_bit:,} B of it stay in use when the model is allocated"
    return [
        ("least arena", f"{_format_bytes(tflm_memory.least_bytes)} on 64 bits"),
        ("least arena, 32 bits", f"{_format_bytes(tflm_memory.least_bytes_32_bit)}{in_use_note}"),
    ]


def _format_bytes(size: int) -> str:
    return f"{units.show(size, Dimension.BYTES)} ({size:,} B)" if size >= 1024 else f"{size} B"


def _peak_tables(tflm_memory: TflmMemory) -> list[TextTable]:
    arena_plan = tflm_memory.arena_plan
    if arena_plan is None:
        return []
    peak_buffers = arena_plan.buffers_at_peak
    rows = [
        (b.name, b.kind, f"{b.size:,}", f"{b.offset:,}", _step_operator(arena_plan, b.first_step) or "the start",
         _step_operator(arena_plan, b.last_step) or "the start")
        for b in peak_buffers[:MAX_SHOWN_TENSORS]
    ]  # fmt: skip
    limit_note = (
        f"; the {MAX_SHOWN_TENSORS} largest of {len(peak_buffers)}" if len(peak_buffers) > MAX_SHOWN_TENSORS else ""
    )
    columns = ("tensor", "kind", "bytes", "offset", "from", "to")
    return [TextTable(f"Alive at the peak{limit_note}", columns, tuple(rows), frozenset({2, 3}))]


def _runtimes_table(run_record: RunRecord) -> TextTable:
    arena_metric = run_record.tflite_micro
    split_note = (
        f" (head {arena_metric.details['head']:,} B, tail {arena_metric.details['tail']:,} B)"
        if arena_metric.value is not None
        else ""
    )
    micro_text = (
        f"runs in an arena of {arena_metric.text()}{split_note}"
        if arena_metric.value is not None
        else f"unavailable: {arena_metric.how}"
    )
    rows = (("LiteRT", run_record.litert or "runs"), ("TensorFlow Lite Micro", micro_text))
    return TextTable("Runtimes on this host", ("runtime", "result"), rows)
