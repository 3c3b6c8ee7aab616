"""The text of the new pipeline: YAML with a comment at every choice, in the order the file is read."""

import re
import sys
from collections.abc import Iterable
from typing import Any

import yaml

from edgepipe.commands.init.data_source import Given
from edgepipe.commands.init.model_info import Seen
from edgepipe.commands.init.task_guess import Guess
from edgepipe.core import config, units
from edgepipe.core.artifact import Kind
from edgepipe.core.metric import Evidence
from edgepipe.core.references import is_reference
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import Device

COLUMN = 40  # where comments begin
_COMPARABLE = (Kind.KERAS, Kind.FLOAT)  # whose quality can be taken before the conversion
_PLAIN = re.compile(r"[A-Za-z_./][\w./:-]*", re.ASCII)
_CALIBRATES = "training samples that calibrate the int8 conversion"
_NEEDS_CODE = "it carries code ({}); leave this line only if you trust who made it"


def text(seen: Seen, given: Given, task: Guess, device: Device, device_name: str) -> str:
    """The whole file."""
    parts = (
        _head(seen),
        _model(seen),
        _data(seen, given),
        _task(given, task),
        [line("seed: 0", "the same seed on the same machine gives the same model")],
        ["stages:", *_stages(seen, task), *_validate(seen, given, task, device, device_name)],
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def line(code: str, comment: str = "", indent: int = 0) -> str:
    """A line of YAML with its comment; it will be indented by `indent`."""
    return f"{code:<{COLUMN - indent}}  # {_harmless(comment)}" if comment else code


def _harmless(comment: str) -> str:
    # Names of layers and arrays stand in comments: none may break out of its line, or hold what YAML refuses.
    return "".join(c if c.isprintable() else "?" for c in " ".join(comment.split()))


def value(data: Any) -> str:
    """`data` as YAML on one line, quoted wherever it could be read as something else."""
    if isinstance(data, list):
        return f"[{', '.join(value(item) for item in data)}]"
    if not isinstance(data, str):
        return str(data).lower() if isinstance(data, bool) else str(data)
    if _PLAIN.fullmatch(data) and config.parse(data, "").data == data:
        return data
    quoted: str = yaml.safe_dump(data, default_style='"', allow_unicode=True, width=sys.maxsize)
    return quoted.rstrip("\n")


def _head(seen: Seen) -> list[str]:
    return [
        "# A first pipeline, by `edgepipe init`. `edgepipe check` it, then `edgepipe run` it.",
        f"# The model: {_harmless(seen.title)}.",
        line(f"name: {value(_name(seen.name))}", "of the report and of its folder, runs/<name>"),
    ]


def _name(name: str) -> str:
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-")
    return plain or "model"


def _model(seen: Seen) -> list[str]:
    comment = "relative to this file" if seen.kind is not None else _arguments(seen)
    if not seen.code and _shorthand(seen):
        return [line(f"model: {value(seen.reference)}", comment)]
    lines = ["model:", line(f"  {'path' if seen.kind else 'function'}: {value(seen.reference)}", comment)]
    code = [line("  allow_code: true", _NEEDS_CODE.format(", ".join(seen.code)))] if seen.code else []
    return [*lines, *code]


def _arguments(seen: Seen) -> str:
    if seen.function is None or not seen.function.parameters:
        return "a function that returns a Keras 3 model"
    return f"takes {', '.join(seen.function.parameters)}; input_shape and classes come from the data"


def _shorthand(seen: Seen) -> bool:
    # A file whose name looks like module:function must be called a path.
    return (seen.kind is None) == is_reference(seen.reference)


def _data(seen: Seen, given: Given) -> list[str]:
    if given.options is None:
        return [line("# data: {npz: data.npz}", "arrays x and y: with data, the quality on its test split is taken")]
    (first, source), *rest = given.options.items()
    return [
        "data:",
        line(f"  {first}: {value(source)}", given.comment),
        *(line(f"  {key}: {value(option)}", _DATA_COMMENTS[key]) for key, option in rest),
        *([] if seen.kind is Kind.TFLITE else [line("  representative: 200", _CALIBRATES)]),
        line("  # validation: 0.2", "share of the samples that decides, unless the data has such a split"),
        line("  # test: 0.2", "share that only `validate` reads, likewise"),
        *([] if first == "images" else [line("  # rescale: unit", "integers to [0, 1]; signed: to [-1, 1]")]),
    ]


_DATA_COMMENTS = {"size": "height and width in pixels, as the model takes them", "channels": "1 grey, 3 colour"}


def _task(given: Given, task: Guess) -> list[str]:
    if task.options is None or given.options is None:
        word = task.name.split()[0] if task.name else "classification"
        return [line(f"# task: {word}", f"{'a guess: ' if task.name else 'not known: '}{task.why}")]
    if isinstance(task.options, str):
        return [line(f"task: {task.options}", f"a guess: {task.why}")]
    (first, kind), *rest = task.options.items()
    lines = [f"  {key}: {value(option)}" for key, option in rest]
    why = "add roc_auc if y is 0 for normal and 1 for anomalous samples" if task.measure == "mse" else ""
    return ["task:", line(f"  {first}: {kind}", f"a guess: {task.why}"), *(line(text, why) for text in lines)]


def _stages(seen: Seen, task: Guess) -> list[str]:
    if seen.kind is Kind.TFLITE:
        return []
    if seen.kind is Kind.QAT:
        return _CONVERT
    fresh = seen.kind is None
    if seen.compressible and task.options is not None:
        return [*(_TRAIN if fresh else []), *_prune(seen), *_QUANTIZE, *_CONVERT]
    return [*_left_out(fresh, seen), *_CONVERT]


_TRAIN = [
    "  - train:",
    line("      epochs: 20", "passes over the training split"),
    line("      # patience: 5", "stop after so many epochs without a better validation quality"),
]
_PRUNE = [
    "  - prune:",
    line("      sparsity: 0.5", "share of each layer's weights that ends as zero; the last layer is left alone"),
    line("      epochs: 10", "passes over the training split"),
    line("      decay: cosine", "the learning rate falls to zero along a cosine"),
    line("      # learning_rate: 0.0001", "step size, 0.001 unless said; lower it if a trained model gets worse"),
]
_QUANTIZE = [
    "  - quantize:",
    line("      epochs: 5", "passes over the training split, with fake-quant"),
    line("      decay: cosine"),
    line("      # learning_rate: 0.0001"),
]
_CONVERT = [
    "  - convert:",
    line("      scheme: int8", "int8 weights and activations; also dynamic, float16, float32"),
    line("      # input: uint8", "type of the inputs, int8 unless said; `output:` likewise"),
]


def _prune(seen: Seen) -> list[str]:
    if seen.prunable:
        return _PRUNE
    return [line("  # - prune: {sparsity: 0.5}", "left out, for no layer but the last is a Conv2D or Dense")]


def _left_out(fresh: bool, seen: Seen) -> list[str]:
    why = "is not made of plain layers" if seen.code else "has no built-in task"
    stages = [*(["train: {epochs: 20}"] if fresh else []), "prune: {sparsity: 0.5}", "quantize: {epochs: 5}"]
    first, *rest = (f"  # - {stage}" for stage in stages)
    return [line(first, f"left out, for the model {why}"), *rest]


def _validate(seen: Seen, given: Given, task: Guess, device: Device, name: str) -> list[str]:
    exact = seen.kind is not Kind.TFLITE or seen.integer
    scored = task.options is not None and given.options is not None
    origin = [line("      against: model", "quality is compared with your model as it came")]
    limits = [*_quality_limits(seen, given, task), *_device_limits(device), *_size_limit(seen)]
    nothing = all(limit.startswith("#") for limit in limits)
    return [
        "  - validate:",
        line(f"      devices: [{value(name)}]", f"{device.description}; see `edgepipe device list`"),
        *(origin if scored and seen.kind in _COMPARABLE else []),
        line(f"      {'' if exact else '# '}integer_only: true", "one float operator or tensor fails the run"),
        line(f"      {'# ' if nothing else ''}budget:", "what the run must meet, else it exits with 3"),
        *(f"        {limit}" for limit in limits),
    ]


def _quality_limits(seen: Seen, given: Given, task: Guess) -> Iterable[str]:
    if task.options is None or given.options is None:
        return
    if seen.kind is None or seen.kind in _COMPARABLE:
        most, unit = ("1 point", "") if task.points else ("0.1", ", in the unit of the metric")
        limit = f"{'' if task.points else '# '}{task.measure}_drop: {most}"
        yield line(limit, f"how much worse it may get{unit}", 8)
    least = f'{task.measure}: ">= 95 %"' if task.points else f"{task.measure}: 0.5"
    yield line(f"# {least}", f"what you need at {'least' if task.points else 'most'}, on the test split", 8)


def _size_limit(seen: Seen) -> Iterable[str]:
    if not seen.bytes:
        yield line("# size: 256 KiB", "of the .tflite", 8)
        return
    known = "as it is now" if seen.kind is Kind.TFLITE else "your file as it is now; int8 weights take a quarter"
    yield line(f"size: {-(-seen.bytes // 1024)} KiB", f"of the .tflite; {known}", 8)


def _device_limits(device: Device) -> Iterable[str]:
    memory = device.system.memory
    examples = {"latency": "5 ms", "ram": _half(memory.ram, "64 MiB"), "flash": _half(memory.flash, "16 MiB")}
    known = [name for name in examples if getattr(device, name).evidence is not Evidence.UNAVAILABLE]
    if known:
        limits = ", ".join(f"{name}: {examples[name]}" for name in known)
        yield line(f"# {device.name}: {{{limits}}}", "what you have for it", 8)
    for name in [name for name in examples if name not in known]:
        yield f"# no limit on the {name} of {device.name} can be met: {_harmless(getattr(device, name).reason)}"


def _half(size: float | None, otherwise: str) -> str:
    return units.show(size / 2, Dimension.BYTES) if size else otherwise
