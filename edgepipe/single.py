"""One model the user already has, without YAML: convert it, or hold a .tflite against devices and limits."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from edgepipe import budget
from edgepipe.arrays import Array, Arrays, count, each, take
from edgepipe.artifact import Kind, storing, written_aside
from edgepipe.devices import evidence, profile
from edgepipe.errors import InputError
from edgepipe.metric import Evidence, Finding, Limit, Metric, Record, Verdict, judge, unavailable
from edgepipe.tflite import graph, integer, interpreter, masks, micro
from edgepipe.tflite.model import INTEGERS, Model
from edgepipe.units import Dimension

Scheme = Literal["int8", "float16", "dynamic", "float32"]
Number = Literal["int8", "uint8", "float32"]
COMPARED = 100  # samples that are run through both models
AT_RANDOM = 10  # ... when the user gave none


class Conversion(Record):
    """A model that was converted: where it is, what it weighs, and how far its outputs are from the original's."""

    path: str
    scheme: Scheme
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]


class Verification(Record):
    """A .tflite held against devices and limits."""

    path: str
    devices: tuple[str, ...]
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def met(self) -> bool:
        """Whether every limit was met and no rule was broken."""
        return not self.findings and all(verdict.met for verdict in self.verdicts)


def convert(
    path: Path,
    *,
    data: "str | Path | Arrays | None",
    scheme: Scheme,
    input_type: Number | None,
    output_type: Number | None,
    out: Path | None,
    allow_code: bool,
    custom_objects: str | None = None,
) -> Conversion:
    """Convert the model at `path`; a Keras 3 model goes straight, without a bridge.

    `data` are representative samples (an array, or a .npy or .npz file); int8 needs them. The result is compared with
    the original on up to 100 of them, or on random inputs when there are none. `custom_objects` is `module:attribute`,
    looked up in the current folder first.

    Raises:
        InputError: no model, no samples for int8, samples that do not fit, or an operator TFLite does not have.
        StorageError: the result cannot be written.
    """
    from edgepipe.models.sniff import sniff
    from edgepipe.models.startup import load_tensorflow

    kind = sniff(path)
    target = out or path.with_suffix(".tflite")
    _check(path, kind, scheme, (input_type, output_type), data is not None, target)
    samples = _samples(data)
    load_tensorflow()
    from edgepipe.compress.convert import convert as convert_model

    model = _opened(path, kind, allow_code, custom_objects)
    default: Number = "int8" if scheme == "int8" else "float32"
    blob = convert_model(
        model, scheme=scheme, samples=samples, input_type=input_type or default, output_type=output_type or default
    )
    with written_aside(target) as aside:  # the file appears once it has been run and compared
        with storing(str(target)):
            aside.write_bytes(blob)
        facts = graph.read(aside)
        offenders = integer.findings(facts, allow_float_interface=True) if scheme == "int8" else []
        metrics = [*evidence.counts(facts), *_difference(model, kind, facts, samples)]
    return Conversion(path=str(target), scheme=scheme, metrics=tuple(metrics), findings=tuple(offenders))


def _check(path: Path, kind: Kind, scheme: Scheme, types: tuple[Number | None, ...], data: bool, target: Path) -> None:
    if kind not in (Kind.KERAS, Kind.FLOAT, Kind.SAVED_MODEL):
        raise InputError(f"{path}: is a {kind} already; `convert` takes a .keras or .h5 file or a SavedModel folder")
    if scheme == "int8" and not data:
        raise InputError(
            "int8 needs representative samples for its activation ranges: give --data samples.npz (a hundred typical "
            "inputs, array 'x'), or choose --scheme dynamic or float16"
        )
    if scheme != "int8" and {*types} & {"int8", "uint8"}:
        raise InputError(f"integer inputs or outputs need --scheme int8, not {scheme}")
    if target.resolve() == path.resolve():
        raise InputError(f"{target}: would overwrite the model itself; name another file with -o")
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name the .tflite to write with -o")


def _samples(data: "str | Path | Arrays | None") -> Arrays | None:
    if not isinstance(data, (str, Path)):
        return data
    from edgepipe.data.samples import read

    return read(Path(data))


def _opened(path: Path, kind: Kind, allow_code: bool, custom_objects: str | None) -> object:
    if kind is Kind.SAVED_MODEL and not allow_code:
        raise InputError(f"{path}: a SavedModel is a program; say --allow-code if you trust where it came from")
    from edgepipe.models import custom
    from edgepipe.stages.facts import open_any

    with custom.known(custom.load(custom_objects, Path.cwd()) if custom_objects else {}):
        return open_any(path, kind, allow_code=allow_code)


def _difference(model: object, kind: Kind, facts: Model, samples: Arrays | None) -> list[Metric]:
    """How far the converted model's outputs are from the original's, on the same inputs."""
    if kind is Kind.SAVED_MODEL:
        reason = "a SavedModel is only converted, not run; compare it where it was trained"
        return [unavailable("max_difference", Dimension.PLAIN, reason)]
    from edgepipe.training.fit import predict

    x = _random(facts) if samples is None else take(samples, slice(COMPARED))
    before, after = _listed(predict(model, x)), _listed(interpreter.predict(facts.path, _reals(facts, x)).values)
    which = f"{count(x)} {'random inputs' if samples is None else 'of the given samples'}, original against LiteRT"
    largest = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
    found = [
        _measured("max_difference", largest, Dimension.PLAIN, f"largest absolute difference of outputs on {which}")
    ]
    if before[0].ndim == 2 and before[0].shape[1] > 1:
        same = float(np.mean(before[0].argmax(axis=1) == after[0].argmax(axis=1)))
        found.append(
            _measured("labels_equal", same, Dimension.FRACTION, f"largest output at the same place on {which}")
        )
    return found


def _reals(facts: Model, x: Arrays) -> Arrays:
    """Integer samples, such as pixels, as the real numbers they stand for, unless the model takes bare integers."""
    bare = any(tensor.dtype in INTEGERS and tensor.quantization is None for tensor in facts.inputs)
    return x if bare else each(lambda array: array.astype(np.float32), x)


def _random(facts: Model) -> Arrays:
    random = np.random.RandomState(0)
    drawn = {
        # Integers may be indices into a small table: 0 and 1 are in every one.
        name: random.rand(AT_RANDOM, *t.shape[1:]).astype(np.float32)
        if t.dtype.startswith("float")
        else random.randint(0, 2, (AT_RANDOM, *t.shape[1:])).astype(t.dtype)
        for name, t in facts.input_names.items()
    }
    return drawn if len(drawn) > 1 else next(iter(drawn.values()))


def _listed(outputs: Arrays) -> list[Array]:
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


def _measured(name: str, value: float, unit: Dimension, how: str) -> Metric:
    return Metric(name=name, value=value, unit=unit, evidence=Evidence.MEASURED, how=how)


def verify(
    path: Path,
    *,
    devices: Collection[str],
    limits: Iterable[str],
    integer_only: bool,
    zeros_of: Path | None = None,
    base: Path | None = None,
) -> Verification:
    """Hold the .tflite at `path` against `devices` and `limits`, and against the zeros of a pruned Keras model.

    Without a device, `ram` is TFLite Micro's tensor arena and `flash` the bytes of the file. A limit on a metric of
    devices holds for each device.

    Raises:
        InputError: no .tflite, an unknown device, or a word that is no limit.
    """
    profiles = [profile.load(name, base or Path.cwd()) for name in devices]
    bounds = _limits(list(limits), [device.name for device in profiles])
    model = graph.read(path)
    interpreter.check_runs(path)
    on_devices = evidence.gather(model, profiles)
    metrics = [*evidence.counts(model), *on_devices.metrics]
    if not profiles:
        metrics += _generic(path)
    offenders = integer.findings(model) if integer_only else []
    lost = _lost_zeros(model, zeros_of) if zeros_of is not None else []
    return Verification(
        path=str(path),
        devices=tuple(device.name for device in profiles),
        metrics=tuple(metrics),
        findings=(*offenders, *lost, *on_devices.findings),
        verdicts=tuple(judge(limit, metrics) for limit in bounds),
    )


def _lost_zeros(lite: Model, pruned: Path) -> list[Finding]:
    """The zeros of the pruned model that are none in `lite`; a kernel that is not found is a finding too."""
    from edgepipe.models.sniff import sniff
    from edgepipe.models.startup import load_tensorflow

    kind = sniff(pruned)
    if kind not in (Kind.KERAS, Kind.FLOAT):
        raise InputError(f"{pruned}: is a {kind}; --zeros-of takes the .keras or .h5 file of a pruned model")
    load_tensorflow()
    from edgepipe.compress.pruning.kernels import stored_order
    from edgepipe.models.bridge import bridge
    from edgepipe.models.loading import load

    model = load(pruned, kind, allow_code=False)
    checked = masks.check(lite, stored_order(bridge(model).model if kind is Kind.KERAS else model))
    if not checked:
        raise InputError(f"{pruned}: no kernel of it is pruned: none holds zeros")
    missing = [Finding(rule="pruned-zeros", place=entry.layer, observed="no tensor of the .tflite is this kernel")
               for entry in checked if not entry.tensor]  # fmt: skip
    return [*missing, *masks.findings(checked)]


def _limits(words: list[str], devices: list[str]) -> list[Limit]:
    found = budget.from_words(words)
    return [
        limit.model_copy(update={"device": device})
        for limit in found
        for device in (devices if limit.metric in budget.DEVICE_METRICS and devices else [None])
    ]


def _generic(path: Path) -> list[Metric]:
    latency = unavailable("latency", Dimension.SECONDS, "a time holds for a device; name one, such as --device host")
    return [latency, micro.arena(path), evidence.file_bytes("flash", path)]
