"""The text of the new pipeline: YAML with a comment on every choice, in reading order."""

import re
import sys
from collections.abc import Iterable
from typing import Any

import yaml

from edgepipe.commands.init.data_source import DataSource
from edgepipe.commands.init.model_info import ModelInfo
from edgepipe.commands.init.task_guess import TaskGuess
from edgepipe.core import config, units
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.metric import Evidence
from edgepipe.core.references import is_reference
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import Device

COMMENT_COLUMN = 40  # where comments begin
_COMPARABLE_KINDS = (ArtifactKind.KERAS, ArtifactKind.FLOAT)  # whose quality can be measured before conversion
_PLAIN_SCALAR = re.compile(r"[A-Za-z_./][\w./:-]*", re.ASCII)
_CALIBRATION_COMMENT = "training samples that calibrate the int8 conversion"
_CODE_COMMENT = "it carries code ({}); keep this line only if you trust its source"


def render_pipeline(model: ModelInfo, source: DataSource, task: TaskGuess, device: Device, device_name: str) -> str:
    """The text of the file.

    Args:
        model: the model that the pipeline is for.
        source: its data.
        task: the guessed task.
        device: the device to validate for.
        device_name: the device as the pipeline names it: its name, or the relative path of its profile.
    """
    sections = (
        _head_lines(model),
        _model_lines(model),
        _data_lines(model, source),
        _task_lines(source, task),
        [line("seed: 0", "the same seed on the same machine gives the same model")],
        ["stages:", *_stage_lines(model, task), *_validate_lines(model, source, task, device, device_name)],
    )
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def line(code: str, comment: str = "", indent: int = 0) -> str:
    """A line of YAML with its comment aligned; the caller will indent it by `indent`."""
    return f"{code:<{COMMENT_COLUMN - indent}}  # {_one_line(comment)}" if comment else code


def _one_line(comment: str) -> str:
    # Comments contain names of layers and arrays: none may break the line or contain characters that YAML refuses.
    return "".join(c if c.isprintable() else "?" for c in " ".join(comment.split()))


def yaml_value(option: Any) -> str:
    """`option` as YAML on one line, quoted wherever it could be read as something else."""
    if isinstance(option, list):
        return f"[{', '.join(yaml_value(element) for element in option)}]"
    if not isinstance(option, str):
        return str(option).lower() if isinstance(option, bool) else str(option)
    if _PLAIN_SCALAR.fullmatch(option) and config.parse(option, "").content == option:
        return option
    quoted_text: str = yaml.safe_dump(option, default_style='"', allow_unicode=True, width=sys.maxsize)
    return quoted_text.rstrip("\n")


def _head_lines(model: ModelInfo) -> list[str]:
    return [
        "# A first pipeline, by `edgepipe init`. `edgepipe check` it, then `edgepipe run` it.",
        f"# The model: {_one_line(model.title)}.",
        line(f"name: {yaml_value(_pipeline_name(model.name))}", "of the report and of its folder, runs/<name>"),
    ]


def _pipeline_name(name: str) -> str:
    clean_name = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-")
    return clean_name or "model"


def _model_lines(model: ModelInfo) -> list[str]:
    comment = "relative to this file" if model.kind is not None else _function_comment(model)
    if not model.code and _has_shorthand(model):
        return [line(f"model: {yaml_value(model.reference)}", comment)]
    lines = ["model:", line(f"  {'path' if model.kind else 'function'}: {yaml_value(model.reference)}", comment)]
    code = [line("  allow_code: true", _CODE_COMMENT.format(", ".join(model.code)))] if model.code else []
    return [*lines, *code]


def _function_comment(model: ModelInfo) -> str:
    if model.function is None or not model.function.parameters:
        return "a function that returns a Keras 3 model"
    return f"takes {', '.join(model.function.parameters)}; input_shape and classes come from the data"


def _has_shorthand(model: ModelInfo) -> bool:
    # A file whose name looks like module:function must be called a path.
    return (model.kind is None) == is_reference(model.reference)


def _data_lines(model: ModelInfo, source: DataSource) -> list[str]:
    if source.options is None:
        return [line("# data: {npz: data.npz}", "arrays x and y: with data, quality is measured on its test split")]
    (first_key, first_option), *other_options = source.options.items()
    return [
        "data:",
        line(f"  {first_key}: {yaml_value(first_option)}", source.comment),
        *(line(f"  {key}: {yaml_value(option)}", _DATA_COMMENTS[key]) for key, option in other_options),
        *([] if model.kind is ArtifactKind.TFLITE else [line("  representative: 200", _CALIBRATION_COMMENT)]),
        line("  # validation: 0.2", "validation share of the samples, unless the data has such a split"),
        line("  # test: 0.2", "test share, which only `validate` reads, likewise"),
        *([] if first_key == "images" else [line("  # rescale: unit", "integers to [0, 1]; signed: to [-1, 1]")]),
    ]


_DATA_COMMENTS = {"size": "height and width in pixels, as the model takes them", "channels": "1 grey, 3 colour"}


def _task_lines(source: DataSource, task: TaskGuess) -> list[str]:
    if task.options is None or source.options is None:
        task_name = task.name.split()[0] if task.name else "classification"
        return [line(f"# task: {task_name}", f"{'a guess: ' if task.name else 'not known: '}{task.reason}")]
    if isinstance(task.options, str):
        return [line(f"task: {task.options}", f"a guess: {task.reason}")]
    (first_key, kind), *other_options = task.options.items()
    lines = [f"  {key}: {yaml_value(option)}" for key, option in other_options]
    metric_comment = (
        "add roc_auc if y is 0 for normal and 1 for anomalous samples" if task.primary_metric == "mse" else ""
    )
    return [
        "task:",
        line(f"  {first_key}: {kind}", f"a guess: {task.reason}"),
        *(line(text, metric_comment) for text in lines),
    ]


def _stage_lines(model: ModelInfo, task: TaskGuess) -> list[str]:
    if model.kind is ArtifactKind.TFLITE:
        return []
    if model.kind is ArtifactKind.QAT:
        return _CONVERT_LINES
    is_untrained = model.kind is None
    if model.is_compressible and task.options is not None:
        return [*(_TRAIN_LINES if is_untrained else []), *_prune_lines(model), *_QUANTIZE_LINES, *_CONVERT_LINES]
    return [*_omitted_stage_lines(is_untrained, model), *_CONVERT_LINES]


_TRAIN_LINES = [
    "  - train:",
    line("      epochs: 20", "passes over the training split"),
    line("      # patience: 5", "stop after so many epochs without better validation quality"),
]
_PRUNE_LINES = [
    "  - prune:",
    line("      sparsity: 0.5", "fraction of each layer's weights to set to zero; the last layer is excluded"),
    line("      epochs: 10", "passes over the training split"),
    line("      decay: cosine", "the learning rate falls to zero along a cosine"),
    line("      # learning_rate: 0.0001", "default 0.001; lower it if a trained model gets worse"),
]
_QUANTIZE_LINES = [
    "  - quantize:",
    line("      epochs: 5", "passes over the training split, with fake-quant"),
    line("      decay: cosine"),
    line("      # learning_rate: 0.0001"),
]
_CONVERT_LINES = [
    "  - convert:",
    line("      scheme: int8", "int8 weights and activations; also dynamic, float16, float32"),
    line("      # input: uint8", "type of the inputs, default int8; `output:` likewise"),
]


def _prune_lines(model: ModelInfo) -> list[str]:
    if model.is_prunable:
        return _PRUNE_LINES
    return [line("  # - prune: {sparsity: 0.5}", "omitted: no layer but the last is a Conv2D or Dense")]


def _omitted_stage_lines(is_untrained: bool, model: ModelInfo) -> list[str]:
    reason = "it has layers with code of their own" if model.code else "no built-in task fits the model"
    stages = [*(["train: {epochs: 20}"] if is_untrained else []), "prune: {sparsity: 0.5}", "quantize: {epochs: 5}"]
    first_stage, *other_stages = (f"  # - {stage}" for stage in stages)
    return [line(first_stage, f"omitted: {reason}"), *other_stages]


def _validate_lines(
    model: ModelInfo, source: DataSource, task: TaskGuess, device: Device, device_name: str
) -> list[str]:
    integer_expected = model.kind is not ArtifactKind.TFLITE or model.is_integer
    has_quality = task.options is not None and source.options is not None
    against_lines = [line("      against: model", "quality is compared with your original model")]
    limits = [*_quality_limits(model, source, task), *_device_limits(device), *_size_limit(model)]
    no_limits = all(limit.startswith("#") for limit in limits)
    return [
        "  - validate:",
        line(f"      devices: [{yaml_value(device_name)}]", f"{device.description}; see `edgepipe device list`"),
        *(against_lines if has_quality and model.kind in _COMPARABLE_KINDS else []),
        line(
            f"      {'' if integer_expected else '# '}integer_only: true", "one float operator or tensor fails the run"
        ),
        line(f"      {'# ' if no_limits else ''}budget:", "limits that the run must meet, else it exits with 3"),
        *(f"        {limit}" for limit in limits),
    ]


def _quality_limits(model: ModelInfo, source: DataSource, task: TaskGuess) -> Iterable[str]:
    if task.options is None or source.options is None:
        return
    if model.kind is None or model.kind in _COMPARABLE_KINDS:
        max_drop, unit = ("1 point", "") if task.in_points else ("0.1", ", in the unit of the metric")
        drop_limit = f"{'' if task.in_points else '# '}{task.primary_metric}_drop: {max_drop}"
        yield line(drop_limit, f"maximum drop against your model{unit}", 8)
    quality_limit = f'{task.primary_metric}: ">= 95 %"' if task.in_points else f"{task.primary_metric}: 0.5"
    yield line(f"# {quality_limit}", f"what you need at {'least' if task.in_points else 'most'}, on the test split", 8)


def _size_limit(model: ModelInfo) -> Iterable[str]:
    if not model.size_bytes:
        yield line("# size: 256 KiB", "of the .tflite", 8)
        return
    size_comment = (
        "its present size" if model.kind is ArtifactKind.TFLITE else "your file's size; int8 weights take a quarter"
    )
    yield line(f"size: {-(-model.size_bytes // 1024)} KiB", f"of the .tflite; {size_comment}", 8)


def _device_limits(device: Device) -> Iterable[str]:
    memory = device.system.memory
    example_limits = {
        "latency": "5 ms",
        "ram": _half_size(memory.ram, "64 MiB"),
        "flash": _half_size(memory.flash, "16 MiB"),
    }
    known_metrics = [name for name in example_limits if getattr(device, name).evidence is not Evidence.UNAVAILABLE]
    if known_metrics:
        limits = ", ".join(f"{name}: {example_limits[name]}" for name in known_metrics)
        yield line(f"# {device.name}: {{{limits}}}", "what is available on it", 8)
    for name in [name for name in example_limits if name not in known_metrics]:
        yield f"# no limit on the {name} of {device.name} can be met: {_one_line(getattr(device, name).reason)}"


def _half_size(size: float | None, default_text: str) -> str:
    return units.show(size / 2, Dimension.BYTES) if size else default_text
