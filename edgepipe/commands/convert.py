"""One model the user already has, without YAML: convert it, or hold a .tflite against devices and limits."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.compress.schemes import SCHEMES, Calibration, Number, SchemeName, interface
from edgepipe.core import budget
from edgepipe.core.arrays import Array, Arrays, count, each, take
from edgepipe.core.artifact import Kind, storing, written_aside
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Finding, Limit, Metric, Record, Verdict, judge, unavailable
from edgepipe.core.units import Dimension
from edgepipe.devices import device_metrics, device_profile
from edgepipe.tflite import integer_check, interpreter, pruned_zeros, reader, tflm_runtime
from edgepipe.tflite.model import INTEGERS, Model

if TYPE_CHECKING:
    from edgepipe.compress.quantizer.quantization import Request

COMPARED = 100  # samples that are run through both models
AT_RANDOM = 10  # ... when the user gave none


class Conversion(Record):
    """A model that was converted: where it is, what it weighs, and how far its outputs are from the original's."""

    path: str
    scheme: SchemeName
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


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
    scheme: SchemeName,
    input_type: Number | None,
    output_type: Number | None,
    out: Path | None,
    allow_code: bool,
    custom_objects: str | None = None,
    calibration: Calibration | None = None,
    types: Collection[str] = (),
    layers: Collection[str] = (),
    recipe: Path | None = None,
) -> Conversion:
    """Convert the model at `path`: a Keras 3 model straight, without a bridge, or a float .tflite.

    `data` are representative samples (an array, or a .npy or .npz file) for schemes that calibrate. The result is
    compared with the original on up to 100 of them, or on random inputs when there are none. `custom_objects` is
    `module:attribute`, looked up in the current folder first. `types` and `layers` stay in float.

    Raises:
        InputError: no model, no samples where they are needed, samples that do not fit, options that do not go
            together, or an operator TFLite does not have.
        StorageError: the result cannot be written.
    """
    from edgepipe.compress.conversion import by_request, floats
    from edgepipe.models.file_kind import sniff
    from edgepipe.models.startup import load_tensorflow

    kind = sniff(path)
    target = out or path.with_suffix(".tflite")
    _check_kind(path, kind, target)
    request = _request(scheme, (input_type, output_type), calibration, recipe)
    samples = _needed(request, data)
    load_tensorflow()
    model, names = _opened(path, kind, allow_code, custom_objects)
    done = by_request(model, _leaving(request, types, layers, names), samples)
    with written_aside(target) as aside:  # the file appears once it has been run and compared
        with storing(str(target)):
            aside.write_bytes(done.content)
        facts = reader.read(aside)
        all_integer = SCHEMES[scheme].integer and not (types or layers)
        offenders = integer_check.findings(facts, allow_float_interface=True) if all_integer else []
        metrics = [*device_metrics.counts(facts), *_difference(model, kind, facts, samples)]
    return Conversion(
        path=str(target), scheme=scheme, metrics=tuple(metrics), findings=tuple(offenders),
        notes=(*done.notes, *floats(scheme, facts)),
    )  # fmt: skip


def _check_kind(path: Path, kind: Kind, target: Path) -> None:
    if kind not in (Kind.KERAS, Kind.FLOAT, Kind.SAVED_MODEL, Kind.TFLITE):
        raise InputError(
            f"{path}: is a {kind} already; `convert` takes a .keras or .h5 file, a SavedModel folder or a float .tflite"
        )
    if target.resolve() == path.resolve():
        raise InputError(f"{target}: would overwrite the model itself; name another file with -o")
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name the .tflite to write with -o")


def _request(
    scheme: SchemeName, types: tuple[Number | None, Number | None], calibration: Calibration | None, recipe: Path | None
) -> "Request":
    from edgepipe.compress.quantizer import recipes
    from edgepipe.compress.quantizer.quantization import Request

    interface(scheme, *types)
    if scheme == "mixed":
        raise InputError("mixed is decided by validation quality: write a pipeline (`edgepipe init` makes one)")
    if (scheme == "recipe") != (recipe is not None):
        raise InputError("--recipe FILE and --scheme recipe go together")
    if calibration is not None and calibration.method != "min_max" and not SCHEMES[scheme].calibrated:
        raise InputError(f"calibration {calibration.told()}: scheme {scheme} quantizes no activations")
    rules = recipes.read(recipe) if recipe is not None else None
    return Request(scheme, *types, calibration or Calibration(), rules)


def _needed(request: "Request", data: "str | Path | Arrays | None") -> Arrays | None:
    from edgepipe.compress.quantizer.quantization import needs_samples

    if data is None and needs_samples(request):
        raise InputError(
            f"{request.scheme} needs representative samples for its activation ranges: give --data samples.npz (a "
            "hundred typical inputs, array 'x'), or choose --scheme dynamic or float16"
        )
    return _samples(data)


def _leaving(request: "Request", types: Collection[str], layers: Collection[str], names: dict[str, str]) -> "Request":
    from dataclasses import replace

    from edgepipe.compress.quantizer.float_exclusions import choice

    if not (types or layers):
        return request
    if request.scheme == "float32":
        raise InputError("--leave: scheme float32 quantizes nothing")
    for pattern in layers:
        _check_expression(pattern)
    return replace(request, left=choice(types, layers, names))


def _check_expression(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"--leave '{pattern}' is no regular expression: {error}") from None


def _samples(data: "str | Path | Arrays | None") -> Arrays | None:
    if not isinstance(data, (str, Path)):
        return data
    from edgepipe.data.sample_files import read

    return read(Path(data))


def _opened(path: Path, kind: Kind, allow_code: bool, custom_objects: str | None) -> tuple[Any, dict[str, str]]:
    """The model, and the classes of its layers by name."""
    if kind is Kind.SAVED_MODEL and not allow_code:
        raise InputError(f"{path}: a SavedModel is a program; say --allow-code if you trust where it came from")
    from edgepipe.compress import conversion
    from edgepipe.models import custom_objects as user_classes
    from edgepipe.stages import model_metrics

    if kind is Kind.TFLITE:
        return conversion.float_file(path), {}
    with user_classes.known(user_classes.load(custom_objects, Path.cwd()) if custom_objects else {}):
        model = model_metrics.open_any(path, kind, allow_code=allow_code)
    return model, {} if kind is Kind.SAVED_MODEL else conversion.classes(model)


def _difference(model: Any, kind: Kind, facts: Model, samples: Arrays | None) -> list[Metric]:
    """How far the converted model's outputs are from the original's, on the same inputs."""
    if kind is Kind.SAVED_MODEL:
        reason = "a SavedModel is only converted, not run; compare it where it was trained"
        return [unavailable("max_difference", Dimension.PLAIN, reason)]
    x = _random(facts) if samples is None else take(_named(model, samples), slice(COMPARED))
    before = _before(model, x)
    after = _listed(interpreter.predict(facts.path, _reals(facts, x)).values)
    which = f"{count(x)} {'random inputs' if samples is None else 'of the given samples'}, original against LiteRT"
    if not all(np.isfinite(array).all() for array in before):
        return [
            unavailable("max_difference", Dimension.PLAIN, f"the original gives values that are not finite, {which}")
        ]
    if not all(np.isfinite(array).all() for array in after):
        raise InputError(f"the converted model gives values that are not finite ({which}); nothing is written")
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


def _named(model: Any, samples: Arrays) -> Arrays:
    """Samples as the inputs of `model` take them, by their names if there are several."""
    if isinstance(model, Model):
        return samples
    from edgepipe.compress.keras_to_tflite import feeds_of
    from edgepipe.models.freeze import ports_of

    ports = ports_of(model)
    feeds = feeds_of(samples, ports)
    return {port.name: feed for port, feed in zip(ports, feeds, strict=True)} if len(ports) > 1 else feeds[0]


def _before(model: Any, x: Arrays) -> list[Array]:
    """The outputs in the order that a .tflite has them in, whatever they are called."""
    if isinstance(model, Model):
        return _listed(interpreter.predict(model.path, x).values)
    import keras

    return list(keras.tree.flatten(model.predict(x, batch_size=256, verbose=0)))


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
    profiles = [device_profile.load(name, base or Path.cwd()) for name in devices]
    bounds = _limits(list(limits), [device.name for device in profiles])
    model = reader.read(path)
    interpreter.check_runs(path)
    on_devices = device_metrics.gather(model, profiles)
    metrics = [*device_metrics.counts(model), *on_devices.metrics]
    if not profiles:
        metrics += _generic(path)
    offenders = integer_check.findings(model) if integer_only else []
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
    from edgepipe.models.file_kind import sniff
    from edgepipe.models.startup import load_tensorflow

    kind = sniff(pruned)
    if kind not in (Kind.KERAS, Kind.FLOAT):
        raise InputError(f"{pruned}: is a {kind}; --zeros-of takes the .keras or .h5 file of a pruned model")
    load_tensorflow()
    from edgepipe.compress.pruning.prunable_kernels import stored_order
    from edgepipe.models.bridge import bridge
    from edgepipe.models.model_files import load

    model = load(pruned, kind, allow_code=False)
    checked = pruned_zeros.check(lite, stored_order(bridge(model).model if kind is Kind.KERAS else model))
    if not checked:
        raise InputError(f"{pruned}: no kernel of it is pruned: none holds zeros")
    missing = [Finding(rule="pruned-zeros", place=entry.layer, observed="no tensor of the .tflite is this kernel")
               for entry in checked if not entry.tensor]  # fmt: skip
    return [*missing, *pruned_zeros.findings(checked)]


def _limits(words: list[str], devices: list[str]) -> list[Limit]:
    found = budget.from_words(words)
    return [
        limit.model_copy(update={"device": device})
        for limit in found
        for device in (devices if limit.metric in budget.DEVICE_METRICS and devices else [None])
    ]


def _generic(path: Path) -> list[Metric]:
    latency = unavailable("latency", Dimension.SECONDS, "a time holds for a device; name one, such as --device host")
    return [latency, tflm_runtime.arena(path), device_metrics.file_bytes("flash", path)]
