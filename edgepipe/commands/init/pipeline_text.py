"""The text of the new pipeline: YAML with a comment on every choice, in reading order."""

import re
import sys
from collections.abc import Iterable, Mapping
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
from edgepipe.devices.memory_placement import sum_on_chip

COMMENT_COLUMN = 40  # where comments begin
_COMPARABLE_KINDS = (ArtifactKind.KERAS, ArtifactKind.FLOAT)  # whose quality can be measured before conversion
_PLAIN_SCALAR_PATTERN = re.compile(r"[A-Za-z_./][\w./:-]*", re.ASCII)
_CALIBRATION_COMMENT = "training samples that calibrate the int8 conversion"
_CODE_COMMENT = "it carries code ({}); keep this line only if you trust its source"


def render_pipeline(
    model_info: ModelInfo, data_source: DataSource, task_guess: TaskGuess, device_by_reference: Mapping[str, Device]
) -> str:
    """The text of the file.

    Args:
        model_info: the model that the pipeline is for.
        data_source: its data.
        task_guess: the guessed task.
        device_by_reference: the devices to validate for, by how the pipeline names them: by name, or by the relative
            path of the profile.
    """
    sections = (
        _head_lines(model_info),
        _model_lines(model_info),
        _data_lines(model_info, data_source),
        _task_lines(data_source, task_guess),
        [yaml_line("seed: 0", "the same seed on the same machine gives the same model")],
        [
            "stages:",
            *_stage_lines(model_info, task_guess),
            *_validate_lines(model_info, data_source, task_guess, device_by_reference),
        ],
    )
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def yaml_line(code: str, comment: str = "", indent: int = 0) -> str:
    """A line of YAML with its comment aligned; the caller will indent it by `indent`."""
    return f"{code:<{COMMENT_COLUMN - indent}}  # {_to_one_line(comment)}" if comment else code


def _to_one_line(comment: str) -> str:
    # Comments contain names of layers and arrays: none may break the line or contain characters that YAML refuses.
    return "".join(c if c.isprintable() else "?" for c in " ".join(comment.split()))


def yaml_value(option: Any) -> str:
    """`option` as YAML on one line, quoted wherever it could be read as something else."""
    if isinstance(option, list):
        return f"[{', '.join(yaml_value(element) for element in option)}]"
    if not isinstance(option, str):
        return str(option).lower() if isinstance(option, bool) else str(option)
    if _PLAIN_SCALAR_PATTERN.fullmatch(option) and config.parse(option, "").content == option:
        return option
    quoted_text: str = yaml.safe_dump(option, default_style='"', allow_unicode=True, width=sys.maxsize)
    return quoted_text.rstrip("\n")


def _head_lines(model_info: ModelInfo) -> list[str]:
    return [
        "# A first pipeline, by `edgepipe init`. `edgepipe check` it, then `edgepipe run` it.",
        f"# The model: {_to_one_line(model_info.title)}.",
        yaml_line(
            f"name: {yaml_value(_pipeline_name(model_info.name))}",
            "of the report and of the folder of its runs, runs/<name>",
        ),
    ]


def _pipeline_name(name: str) -> str:
    clean_name = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-")
    return clean_name or "model"


def _model_lines(model_info: ModelInfo) -> list[str]:
    comment = "relative to this file" if model_info.kind is not None else _function_comment(model_info)
    has_options = model_info.code_descriptions or model_info.custom_objects
    if not has_options and _has_shorthand(model_info):
        return [yaml_line(f"model: {yaml_value(model_info.reference)}", comment)]
    lines = [
        "model:",
        yaml_line(f"  {'path' if model_info.kind else 'function'}: {yaml_value(model_info.reference)}", comment),
    ]
    allow_code_lines = (
        [yaml_line("  allow_code: true", _CODE_COMMENT.format(", ".join(model_info.code_descriptions)))]
        if model_info.code_descriptions
        else []
    )
    custom_object_lines = (
        [yaml_line(f"  custom_objects: {yaml_value(model_info.custom_objects)}", "the model's own classes")]
        if model_info.custom_objects
        else []
    )
    return [*lines, *custom_object_lines, *allow_code_lines]


def _function_comment(model_info: ModelInfo) -> str:
    if model_info.function is None or not model_info.function.parameter_names:
        return "a function that returns a Keras 3 model"
    return f"takes {', '.join(model_info.function.parameter_names)}; input_shape and classes come from the data"


def _has_shorthand(model_info: ModelInfo) -> bool:
    # A file whose name looks like module:function must be called a path.
    return (model_info.kind is None) == is_reference(model_info.reference)


def _data_lines(model_info: ModelInfo, data_source: DataSource) -> list[str]:
    if data_source.options is None:
        return [
            yaml_line("# data: {npz: data.npz}", "arrays x and y: with data, quality is measured on its test split")
        ]
    (first_key, first_option), *other_options = data_source.options.items()
    option_comments = {**_COMMENT_BY_DATA_OPTION, **data_source.option_comments}
    return [
        "data:",
        yaml_line(f"  {first_key}: {yaml_value(first_option)}", data_source.comment),
        *(yaml_line(f"  {key}: {yaml_value(option)}", option_comments.get(key, "")) for key, option in other_options),
        *([] if model_info.kind is ArtifactKind.TFLITE else [yaml_line("  representative: 200", _CALIBRATION_COMMENT)]),
        yaml_line("  # validation: 0.2", "validation share of the samples, unless the data has such a split"),
        yaml_line("  # test: 0.2", "test share, which only `validate` reads, likewise"),
        *_scaling_lines(first_key, data_source),
    ]


def _scaling_lines(source_key: str, data_source: DataSource) -> list[str]:
    if source_key in ("csv", "parquet", "audio"):
        return [yaml_line("  # standardize: true", "mean 0 and deviation 1 for each channel, if it was trained so")]
    if data_source.options is None or "rescale" in data_source.options:
        return []
    return [yaml_line("  # rescale: unit", "integers to [0, 1]; signed: to [-1, 1]")]


_COMMENT_BY_DATA_OPTION = {
    "size": "height and width in pixels, as the model takes them",
    "channels": "1 grey, 3 colour",
}


def _task_lines(data_source: DataSource, task_guess: TaskGuess) -> list[str]:
    if task_guess.options is None or data_source.options is None:
        task_name = task_guess.task_name.split()[0] if task_guess.task_name else "classification"
        return [
            yaml_line(
                f"# task: {task_name}", f"{'a guess: ' if task_guess.task_name else 'not known: '}{task_guess.reason}"
            )
        ]
    if isinstance(task_guess.options, str):
        return [yaml_line(f"task: {task_guess.options}", f"a guess: {task_guess.reason}")]
    (first_key, task_kind), *other_options = task_guess.options.items()
    option_lines = [f"  {key}: {yaml_value(option)}" for key, option in other_options]
    metric_comment = (
        "add roc_auc if y is 0 for normal and 1 for anomalous samples" if task_guess.primary_metric == "mse" else ""
    )
    return [
        "task:",
        yaml_line(f"  {first_key}: {task_kind}", f"a guess: {task_guess.reason}"),
        *(yaml_line(text, metric_comment) for text in option_lines),
    ]


def _stage_lines(model_info: ModelInfo, task_guess: TaskGuess) -> list[str]:
    if model_info.kind is ArtifactKind.TFLITE:
        return []
    if model_info.kind is ArtifactKind.QAT:
        return _CONVERT_LINES
    is_untrained = model_info.kind is None
    if model_info.is_compressible and task_guess.options is not None:
        return [*(_TRAIN_LINES if is_untrained else []), *_prune_lines(model_info), *_QUANTIZE_LINES, *_CONVERT_LINES]
    return [*_omitted_stage_lines(is_untrained, model_info), *_CONVERT_LINES]


_TRAIN_LINES = [
    "  - train:",
    yaml_line("      epochs: 20", "passes over the training split"),
    yaml_line("      # patience: 5", "stop after so many epochs without better validation quality"),
]
_PRUNE_LINES = [
    "  - prune:",
    yaml_line("      sparsity: 0.5", "fraction of each layer's weights to set to zero; the last layer is excluded"),
    yaml_line("      epochs: 10", "passes over the training split"),
    yaml_line("      decay: cosine", "the learning rate falls to zero along a cosine"),
    yaml_line("      # learning_rate: 0.0001", "default 0.001; lower it if a trained model gets worse"),
]
_QUANTIZE_LINES = [
    "  - quantize:",
    yaml_line("      epochs: 5", "passes over the training split, with fake-quant"),
    yaml_line("      decay: cosine"),
    yaml_line("      # learning_rate: 0.0001"),
]
_CONVERT_LINES = [
    "  - convert:",
    yaml_line("      scheme: int8", "int8 weights and activations; also dynamic, float16, float32"),
    yaml_line("      # input: uint8", "type of the inputs, default int8; `output:` likewise"),
]


def _prune_lines(model_info: ModelInfo) -> list[str]:
    if model_info.is_prunable:
        return _PRUNE_LINES
    return [yaml_line("  # - prune: {sparsity: 0.5}", "omitted: no layer but the last is a Conv2D or Dense")]


def _omitted_stage_lines(is_untrained: bool, model_info: ModelInfo) -> list[str]:
    reason = (
        "it has layers with code of their own" if model_info.code_descriptions else "no built-in task fits the model"
    )
    stage_texts = [
        *(["train: {epochs: 20}"] if is_untrained else []),
        "prune: {sparsity: 0.5}",
        "quantize: {epochs: 5}",
    ]
    first_stage, *other_stages = (f"  # - {stage}" for stage in stage_texts)
    return [yaml_line(first_stage, f"omitted: {reason}"), *other_stages]


def _validate_lines(
    model_info: ModelInfo, data_source: DataSource, task_guess: TaskGuess, device_by_reference: Mapping[str, Device]
) -> list[str]:
    must_be_integer = model_info.kind is not ArtifactKind.TFLITE or model_info.is_integer
    has_quality = task_guess.options is not None and data_source.options is not None
    against_lines = [yaml_line("      against: model", "quality is compared with your original model")]
    limit_lines = [
        *_quality_limit_lines(model_info, data_source, task_guess),
        *(line for device in device_by_reference.values() for line in _device_limit_lines(device)),
        *_size_limit_lines(model_info),
    ]
    has_no_limits = all(limit.startswith("#") for limit in limit_lines)
    return [
        "  - validate:",
        *_device_lines(device_by_reference),
        *(against_lines if has_quality and model_info.kind in _COMPARABLE_KINDS else []),
        yaml_line(
            f"      {'' if must_be_integer else '# '}integer_only: true", "one float operator or tensor fails the run"
        ),
        yaml_line(
            f"      {'# ' if has_no_limits else ''}budget:", "limits that the run must meet, else it exits with 3"
        ),
        *(f"        {limit}" for limit in limit_lines),
    ]


def _device_lines(device_by_reference: Mapping[str, Device]) -> list[str]:
    hint = "; see `edgepipe device list`"
    if len(device_by_reference) == 1:
        ((reference, device),) = device_by_reference.items()
        return [yaml_line(f"      devices: [{yaml_value(reference)}]", f"{device.description}{hint}")]
    return [
        yaml_line("      devices:", hint.removeprefix("; ")),
        *(
            yaml_line(f"        - {yaml_value(reference)}", device.description)
            for reference, device in device_by_reference.items()
        ),
    ]


def _quality_limit_lines(model_info: ModelInfo, data_source: DataSource, task_guess: TaskGuess) -> Iterable[str]:
    if task_guess.options is None or data_source.options is None:
        return
    if model_info.kind is None or model_info.kind in _COMPARABLE_KINDS:
        max_drop_text, unit_text = ("1 point", "") if task_guess.in_points else ("0.1", ", in the unit of the metric")
        drop_limit = f"{'' if task_guess.in_points else '# '}{task_guess.primary_metric}_drop: {max_drop_text}"
        yield yaml_line(drop_limit, f"maximum drop against your model{unit_text}", 8)
    quality_limit = (
        f'{task_guess.primary_metric}: ">= 95 %"' if task_guess.in_points else f"{task_guess.primary_metric}: 0.5"
    )
    yield yaml_line(
        f"# {quality_limit}", f"what you need at {'least' if task_guess.in_points else 'most'}, on the test split", 8
    )


def _size_limit_lines(model_info: ModelInfo) -> Iterable[str]:
    if not model_info.size_bytes:
        yield yaml_line("# size: 256 KiB", "of the .tflite", 8)
        return
    size_comment = (
        "its present size"
        if model_info.kind is ArtifactKind.TFLITE
        else "your file's size; int8 weights take a quarter"
    )
    yield yaml_line(f"size: {-(-model_info.size_bytes // 1024)} KiB", f"of the .tflite; {size_comment}", 8)


def _device_limit_lines(device: Device) -> Iterable[str]:
    memory = device.system.memory
    example_limits = {
        "latency": "5 ms",
        # half of what is on-chip: a limit above that would allow off-chip memory
        "ram": _half_size(sum_on_chip(memory.banks, "ram") or memory.ram, "64 MiB"),
        "flash": _half_size(sum_on_chip(memory.banks, "flash") or memory.flash, "16 MiB"),
    }
    known_metric_names = [name for name in example_limits if getattr(device, name).evidence is not Evidence.UNAVAILABLE]
    if known_metric_names:
        limits_text = ", ".join(f"{name}: {example_limits[name]}" for name in known_metric_names)
        yield yaml_line(f"# {device.name}: {{{limits_text}}}", "what is available on it", 8)
    for name in [name for name in example_limits if name not in known_metric_names]:
        yield f"# no limit on the {name} of {device.name} can be met: {_to_one_line(getattr(device, name).reason)}"


def _half_size(size: float | None, default_text: str) -> str:
    return units.show(size / 2, Dimension.BYTES) if size else default_text
