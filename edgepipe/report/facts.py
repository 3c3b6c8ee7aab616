"""A model or a single result as tables and as a JSON document."""

from pydantic import Field

from edgepipe import units
from edgepipe.metric import Record
from edgepipe.report.rows import Rows, how
from edgepipe.single import Conversion, Verification
from edgepipe.tflite.compressed import compressed
from edgepipe.tflite.integer import findings
from edgepipe.tflite.model import Model, Operator, Tensor
from edgepipe.units import Dimension


class TensorFacts(Record):
    """A tensor as `inspect --json` gives it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool
    bytes: int
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()


class OperatorFacts(Record):
    """An operator as `inspect --json` gives it."""

    index: int
    subgraph: int
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    macs: int


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
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    operators: tuple[OperatorFacts, ...]
    tensors: tuple[TensorFacts, ...]


def as_record(model: Model) -> ModelFacts:
    """The facts of a model, ready for JSON."""
    smaller = compressed(model.content)
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
        inputs=tuple(_tensor(tensor) for tensor in model.inputs),
        outputs=tuple(_tensor(tensor) for tensor in model.outputs),
        operators=tuple(_operator(operator) for operator in model.operators),
        tensors=tuple(_tensor(tensor) for tensor in model.used_tensors),
    )


def _tensor(tensor: Tensor) -> TensorFacts:
    scaled = tensor.quantization
    return TensorFacts(
        name=tensor.name, shape=tensor.shape, dtype=tensor.dtype, constant=tensor.constant, bytes=tensor.bytes,
        scales=scaled.scales if scaled else (), zero_points=scaled.zero_points if scaled else (),
    )  # fmt: skip


def _operator(operator: Operator) -> OperatorFacts:
    names = [tuple(t.name if t else None for t in side) for side in (operator.inputs, operator.outputs)]
    return OperatorFacts(
        index=operator.index, subgraph=operator.subgraph, name=operator.name, inputs=names[0], outputs=names[1],
        macs=operator.macs,
    )  # fmt: skip


def tables(model: Model) -> list[Rows]:
    """What `inspect` prints."""
    return [_summary(model), _operators(model)]


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


def _described(tensor: Tensor) -> str:
    scaled = tensor.quantization
    quantized = f", scale {scaled.scales[0]:.6g}, zero point {scaled.zero_points[0]}" if scaled else ""
    return f"{tensor.dtype} {list(tensor.shape)}{quantized}"


def _operators(model: Model) -> Rows:
    rows = tuple(
        (str(op.index), op.name, _shapes(op.inputs), _shapes(op.outputs), f"{op.macs:,}", f"{_constants(op):,}")
        for op in model.operators
    )
    return Rows(
        "Operators", ("#", "operator", "inputs", "outputs", "MACs", "constant bytes"), rows, frozenset({0, 4, 5})
    )


def _shapes(tensors: tuple[Tensor | None, ...]) -> str:
    return " ".join(f"{t.dtype}{list(t.shape)}" for t in tensors if t is not None)


def _constants(operator: Operator) -> int:
    return sum(tensor.bytes for tensor in operator.inputs if tensor is not None and tensor.constant)


def single_tables(path: str, result: Conversion | Verification) -> list[Rows]:
    """What `convert` and `verify` print."""
    metrics = tuple((m.device or "", m.name, m.text(), str(m.evidence), how(m)) for m in result.metrics)
    broken = tuple((f.rule, f.place, f.observed, f.suggestion) for f in result.findings)
    found = [Rows(path, ("device", "metric", "value", "evidence", "how"), metrics, frozenset({2}))]
    if isinstance(result, Verification) and result.verdicts:
        rows = tuple(
            (v.limit.text(), v.metric.text() if v.metric else "", "met" if v.met else "NOT MET", v.reason)
            for v in result.verdicts
        )
        found.append(Rows("Budget", ("limit", "value", "verdict", "why"), rows, frozenset({1})))
    if broken:
        found.append(Rows("Rules broken", ("rule", "place", "observed", "what to do"), broken))
    return found


def document(result: Conversion | Verification) -> str:
    """What `convert --json` and `verify --json` print."""
    import json

    kind = "convert" if isinstance(result, Conversion) else "verify"
    body = {"schema": f"edgepipe.{kind}/1", **result.model_dump(mode="json")}
    if isinstance(result, Verification):
        body["met"] = result.met
    return json.dumps(body, indent=2)
