"""What a .tflite holds, as tables and as a JSON document: `edgepipe inspect`."""

from pydantic import Field

from edgepipe.core import units
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Metric, Record
from edgepipe.core.units import Dimension
from edgepipe.render.report_tables import Rows
from edgepipe.tflite.arena_plan import ALIGNMENT, Buffer, Plan
from edgepipe.tflite.compressed_size import compressed
from edgepipe.tflite.dead_channels import DeadChannels, dead_channels, filters
from edgepipe.tflite.integer_check import findings
from edgepipe.tflite.metadata import Preprocessing, told
from edgepipe.tflite.model import Model, Operator, Option, Subgraph, Tensor
from edgepipe.tflite.tflm_memory import Memory, memory

SHOWN = 8  # tensors of a kind that a table lists


class TensorFacts(Record):
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


class OperatorFacts(Record):
    """An operator as `inspect --json` gives it."""

    index: int
    subgraph: int
    name: str
    custom: bool
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    input_tensors: tuple[int | None, ...] = Field(description="their indices in the subgraph")
    output_tensors: tuple[int | None, ...]
    options: dict[str, Option]
    macs: int
    parameters: int
    bytes_read: int = Field(description="of activations and variables")
    constant_bytes: int = Field(description="of weights and other constants that it reads")
    bytes_written: int


class SubgraphFacts(Record):
    """A subgraph: how much of the model is in it."""

    index: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: int
    tensors: int
    macs: int


class SignatureFacts(Record):
    """A named entry point, with the tensor of each named input and output."""

    key: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


class BufferFacts(Record):
    """A piece of the planned arena; it holds something from step `first` to `last`, both inclusive."""

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


class StepFacts(Record):
    """What runs at a step of the plan, and how much is alive there."""

    operator: str | None = Field(description="null where a subgraph begins")
    live_bytes: int = Field(description="of tensors, without alignment and gaps")
    scratch_bytes: int


class TailFacts(Record):
    """What TensorFlow Lite Micro keeps behind the planned arena."""

    bytes: int = Field(description="on 64 bits")
    parts: dict[str, int]
    unknown: tuple[str, ...] = Field(description="operators whose kernels' data is left out")
    bytes_32_bit: int = Field(description="estimated")
    interval_32_bit: tuple[int, int]


class MemoryFacts(Record):
    """The memory plan; `reason` says why there is none."""

    reason: str
    alignment: int = ALIGNMENT
    planned_peak: int | None = None
    naive_peak: int | None = None
    peak_operator: str | None = None
    peak_tensors: tuple[str, ...] = ()
    steps: tuple[StepFacts, ...] = ()
    buffers: tuple[BufferFacts, ...] = ()
    tail: TailFacts


class RunFacts(Record):
    """What the runtimes of this host made of the model, in a process of their own."""

    litert: str = Field(description="empty if it runs, else why not")
    tflite_micro: Metric


class ModelFacts(Record):
    """What `inspect --json` prints."""

    format: str = Field(default="edgepipe.inspect/1", serialization_alias="schema")
    path: str
    bytes: int
    size_deflate: int
    size_zstd: int
    macs: int
    uncounted: tuple[str, ...]
    parameters: int
    zero_parameters: int
    integer_only: bool
    operator_counts: dict[str, int]
    dtype_census: dict[str, int]
    filters: int = Field(description="of all convolutions and dense layers with constant weights")
    dead_channels: tuple[DeadChannels, ...]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    subgraphs: tuple[SubgraphFacts, ...]
    signatures: tuple[SignatureFacts, ...]
    operators: tuple[OperatorFacts, ...]
    tensors: tuple[TensorFacts, ...]
    memory: MemoryFacts
    runs: RunFacts | None = Field(default=None, description="with --run")
    preprocessing: Preprocessing | None = Field(default=None, description="what samples go through before the model")
    preprocessing_error: str = Field(default="", description="why what the file says of it cannot be read")


def as_record(model: Model, runs: RunFacts | None = None) -> ModelFacts:
    """The facts of a model, ready for JSON."""
    smaller = compressed(model.content)
    known, unreadable = _preprocessing(model)
    return ModelFacts(
        path=str(model.path),
        bytes=model.bytes,
        size_deflate=smaller["deflate"].size,
        size_zstd=smaller["zstd"].size,
        macs=model.macs,
        uncounted=model.uncounted,
        parameters=model.parameters,
        zero_parameters=model.zero_parameters,
        integer_only=not findings(model),
        operator_counts=dict(model.operator_counts),
        dtype_census=dict(model.dtype_census),
        filters=filters(model),
        dead_channels=tuple(dead_channels(model)),
        inputs=tuple(_tensor(tensor) for tensor in model.inputs),
        outputs=tuple(_tensor(tensor) for tensor in model.outputs),
        subgraphs=tuple(_subgraph(graph) for graph in model.subgraphs),
        signatures=tuple(
            SignatureFacts(key=s.key, subgraph=s.subgraph, inputs=s.inputs, outputs=s.outputs) for s in model.signatures
        ),
        operators=tuple(_operator(operator) for operator in model.operators),
        tensors=tuple(_tensor(tensor) for tensor in model.used_tensors),
        memory=_memory(memory(model)),
        runs=runs,
        preprocessing=known,
        preprocessing_error=unreadable,
    )


def _preprocessing(model: Model) -> tuple[Preprocessing | None, str]:
    try:
        return told(model), ""
    except InputError as error:
        return None, str(error)


def run(model: Model) -> RunFacts:
    """Run `model` once on zeros in LiteRT and in TensorFlow Lite Micro, in a process of their own."""
    from edgepipe.tflite import interpreter, tflm_runtime

    try:
        interpreter.check_runs(model.path)
        refusal = ""
    except InputError as error:
        refusal = str(error)
    return RunFacts(litert=refusal, tflite_micro=tflm_runtime.arena(model.path))


def _tensor(tensor: Tensor) -> TensorFacts:
    scaled = tensor.quantization
    return TensorFacts(
        index=tensor.index, subgraph=tensor.subgraph, name=tensor.name, shape=tensor.shape,
        signature=tensor.signature, dtype=tensor.dtype, constant=tensor.constant, variable=tensor.variable,
        sparse=tensor.sparse, bytes=tensor.bytes,
        scales=scaled.scales if scaled else (), zero_points=scaled.zero_points if scaled else (),
        axis=scaled.axis if scaled and scaled.per_axis else None,
    )  # fmt: skip


def _operator(operator: Operator) -> OperatorFacts:
    sides = (operator.inputs, operator.outputs)
    names = [tuple(t.name if t else None for t in side) for side in sides]
    indices = [tuple(t.index if t else None for t in side) for side in sides]
    return OperatorFacts(
        index=operator.index, subgraph=operator.subgraph, name=operator.name, custom=operator.custom,
        inputs=names[0], outputs=names[1], input_tensors=indices[0], output_tensors=indices[1],
        options=operator.options, macs=operator.macs, parameters=operator.parameters,
        bytes_read=operator.bytes_read, constant_bytes=operator.constant_bytes, bytes_written=operator.bytes_written,
    )  # fmt: skip


def _subgraph(graph: Subgraph) -> SubgraphFacts:
    return SubgraphFacts(
        index=graph.index, name=graph.name, inputs=tuple(t.name for t in graph.inputs),
        outputs=tuple(t.name for t in graph.outputs), operators=len(graph.operators), tensors=len(graph.tensors),
        macs=sum(operator.macs for operator in graph.operators),
    )  # fmt: skip


def _memory(found: Memory) -> MemoryFacts:
    behind = TailFacts(
        bytes=found.tail.total, parts=found.tail.parts, unknown=found.tail.unknown,
        bytes_32_bit=found.tail.narrow, interval_32_bit=found.tail.narrow_interval,
    )  # fmt: skip
    plan = found.plan
    if plan is None:
        return MemoryFacts(reason=found.reason, tail=behind)
    return MemoryFacts(
        reason="",
        planned_peak=plan.peak,
        naive_peak=plan.naive_peak,
        peak_operator=_place(plan, plan.peak_step),
        peak_tensors=tuple(buffer.name for buffer in plan.alive_at_peak),
        steps=tuple(
            StepFacts(operator=_place(plan, step), live_bytes=live, scratch_bytes=scratch)
            for step, (live, scratch) in enumerate(zip(plan.live_bytes, plan.scratch_bytes, strict=True))
        ),
        buffers=tuple(_buffer(plan, buffer) for buffer in plan.buffers),
        tail=behind,
    )


def _buffer(plan: Plan, buffer: Buffer) -> BufferFacts:
    return BufferFacts(
        name=buffer.name, kind=buffer.kind, subgraph=buffer.subgraph, tensor=buffer.tensor, bytes=buffer.bytes,
        size=buffer.size, offset=buffer.offset, first=buffer.first, last=buffer.last,
        first_operator=_place(plan, buffer.first), last_operator=_place(plan, buffer.last),
    )  # fmt: skip


def _place(plan: Plan, step: int) -> str | None:
    operator = plan.steps[step] if step >= 0 else None
    return operator.place if operator is not None else None


def tables(model: Model, runs: RunFacts | None = None) -> list[Rows]:
    """What `inspect` prints."""
    found = memory(model)
    parts = [
        _summary(model),
        _structure(model),
        _before(model),
        _operators(model),
        _dead(model),
        _plan(found),
        *_peak(found),
    ]
    return [table for table in (*parts, *([] if runs is None else [_runs(runs)])) if table.rows]


def _summary(model: Model) -> Rows:
    offenders = findings(model)
    parameters = f"{model.parameters:,} ({model.parameters - model.zero_parameters:,} non-zero)"
    integer = (
        "every operator and tensor" if not offenders else f"no, {len(offenders)} offenders; the first: {offenders[0]}"
    )
    rows = [
        ("size", units.show(model.bytes, Dimension.BYTES)),
        *(
            (f"size, {name}", f"{units.show(found.size, Dimension.BYTES)} ({found.by})")
            for name, found in compressed(model.content).items()
        ),
        ("MACs", f"{model.macs:,}" + (f" (not counted: {', '.join(model.uncounted)})" if model.uncounted else "")),
        ("parameters", parameters),
        ("tensors", ", ".join(f"{number} {dtype}" for dtype, number in sorted(model.dtype_census.items()))),
        ("integer", integer),
        *((f"input '{name}'", _described(tensor)) for name, tensor in model.input_names.items()),
        *((f"output '{name}'", _described(tensor)) for name, tensor in model.output_names.items()),
    ]
    return Rows(str(model.path), ("what", "value"), tuple(rows))


def _structure(model: Model) -> Rows:
    """What most models have none or one of."""
    several = model.subgraphs if len(model.subgraphs) > 1 else ()
    rows = [
        *((f"subgraph {graph.index}", _contents(graph)) for graph in several),
        *((f"signature '{s.key}'", f"subgraph {s.subgraph}: {', '.join(s.inputs)} -> {', '.join(s.outputs)}")
          for s in model.signatures),
        *((kind, _listed(tensors)) for kind, tensors in
          (("variables", model.variables), ("sparse", model.sparse), ("packed", model.packed)) if tensors),
    ]  # fmt: skip
    return Rows("Structure", ("what", "value"), tuple(rows))


def _before(model: Model) -> Rows:
    """What samples go through before the model, as the file says."""
    known, unreadable = _preprocessing(model)
    found = {} if known is None else known.model_dump(exclude_none=True, exclude={"format"})
    rows = [("unreadable", unreadable)] if unreadable else []
    for part, value in found.items():
        named = (
            {f"{part}: {name}": inner for name, inner in value.items()} if isinstance(value, dict) else {part: value}
        )
        rows += [(name, _constant(value)) for name, value in named.items() if value != ()]
    return Rows("Preprocessing, which a device must repeat", ("what", "value"), tuple(rows))


def _constant(value: object) -> str:
    return ", ".join(map(_constant, value)) if isinstance(value, tuple) else str(value)


def _contents(graph: Subgraph) -> str:
    name = f"'{graph.name}', " if graph.name else ""
    return f"{name}{len(graph.operators)} operators, {len(graph.tensors)} tensors"


def _listed(tensors: tuple[Tensor, ...]) -> str:
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    return ", ".join(f"'{t.name}' {t.dtype} {list(t.shape)}" for t in tensors[:SHOWN]) + more


def _described(tensor: Tensor) -> str:
    scaled = tensor.quantization
    quantized = f", scale {scaled.scales[0]:.6g}, zero point {scaled.zero_points[0]}" if scaled else ""
    return f"{tensor.dtype} {list(tensor.shape)}{quantized}"


def _operators(model: Model) -> Rows:
    columns = ("#", "operator", "inputs", "outputs", "MACs", "parameters", "read", "constants", "written", "scale")
    rows = tuple(
        (str(op.index) if not op.subgraph else f"{op.subgraph}/{op.index}", op.name, _shapes(op.inputs),
         _shapes(op.outputs), f"{op.macs:,}", f"{op.parameters:,}", f"{op.bytes_read:,}", f"{op.constant_bytes:,}",
         f"{op.bytes_written:,}", _scale(op))
        for op in model.operators
    )  # fmt: skip
    return Rows("Operators, with the bytes they read and write", columns, rows, frozenset({0, 4, 5, 6, 7, 8}))


def _scale(operator: Operator) -> str:
    """Of the output; and whether the weights have one for each channel."""
    output = operator.outputs[0] if operator.outputs else None
    scaled = output.quantization if output is not None else None
    shown = f"{scaled.scales[0]:.4g}, {scaled.zero_points[0]}" if scaled else "-"
    per_axis = any(t.quantization is not None and t.quantization.per_axis for t in operator.parameter_tensors)
    return f"{shown}; per channel" if per_axis else shown


def _shapes(tensors: tuple[Tensor | None, ...]) -> str:
    return " ".join(f"{t.dtype}{list(t.shape)}" for t in tensors if t is not None)


def _dead(model: Model) -> Rows:
    rows = tuple((dead.operator, dead.tensor, f"{dead.dead}", f"{dead.filters}") for dead in dead_channels(model))
    total = sum(int(row[2]) for row in rows)
    title = f"Dead channels: {total} of {filters(model)} filters have only zero weights and give a constant"
    return Rows(title, ("operator", "weights", "dead", "filters"), rows, frozenset({2, 3}))


def _plan(found: Memory) -> Rows:
    behind = found.tail
    low, high = (units.show(bound, Dimension.BYTES) for bound in behind.narrow_interval)
    missing = f"; kernels' data of {', '.join(behind.unknown)} not in it" if behind.unknown else ""
    if found.plan is None:
        rows = [("planned peak", f"unavailable: {found.reason}")]
    else:
        rows = [
            ("planned peak", f"{_bytes(found.plan.peak)}: the arena's head, by TensorFlow Lite Micro's greedy planner"),
            ("naive peak", f"{_bytes(found.plan.naive_peak)} of tensors alive at once"),
            ("at", _place(found.plan, found.plan.peak_step) or "the start"),
        ]
    rows += [
        ("tail", f"{_bytes(behind.total)} of structures on 64 bits{missing}"),
        ("tail, 32 bits", f"{_bytes(behind.narrow)}, estimated; between {low} and {high}"),
    ]
    return Rows("Memory plan", ("what", "value"), tuple(rows))


def _bytes(value: int) -> str:
    return f"{units.show(value, Dimension.BYTES)} ({value:,} B)" if value >= 1024 else f"{value} B"


def _peak(found: Memory) -> list[Rows]:
    if found.plan is None:
        return []
    alive = found.plan.alive_at_peak
    rows = [
        (b.name, b.kind, f"{b.bytes:,}", f"{b.offset:,}", _place(found.plan, b.first) or "the start",
         _place(found.plan, b.last) or "the start")
        for b in alive[:SHOWN]
    ]  # fmt: skip
    more = f"; the {SHOWN} largest of {len(alive)}" if len(alive) > SHOWN else ""
    columns = ("tensor", "kind", "bytes", "offset", "from", "to")
    return [Rows(f"Alive at the peak{more}", columns, tuple(rows), frozenset({2, 3}))]


def _runs(runs: RunFacts) -> Rows:
    arena = runs.tflite_micro
    split = f" (head {arena.details['head']:,} B, tail {arena.details['tail']:,} B)" if arena.value is not None else ""
    micro = f"runs in an arena of {arena.text()}{split}" if arena.value is not None else f"unavailable: {arena.how}"
    rows = (("LiteRT", runs.litert or "runs"), ("TensorFlow Lite Micro", micro))
    return Rows("Runtimes on this host", ("runtime", "what it makes of it"), rows)
