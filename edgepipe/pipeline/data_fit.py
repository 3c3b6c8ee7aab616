"""Whether the samples and classes of `data:` fit the inputs and outputs of the model file, without loading either."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.core.config import Document
from edgepipe.core.units import plural
from edgepipe.data.data_spec import DataSpec, ImagesSpec
from edgepipe.models.input_shapes import parse_input_shapes
from edgepipe.models.model_description import PortDescription, Shape
from edgepipe.stages.model_source import Source
from edgepipe.tasks.task_spec import TaskSpec

if TYPE_CHECKING:
    from edgepipe.data.sample_description import SampleDescription
    from edgepipe.models.model_ports import ModelPorts


def check_data_fit(
    document: Document, source: Source, data: DataSpec | None, task: TaskSpec | None, base_folder: Path
) -> None:
    """Add what does not fit between model and data to `document`.

    Args:
        document: the pipeline; collects the problems.
        source: the model; of a function nothing is known.
        data: the data; None adds nothing.
        task: what the outputs are for.
        base_folder: what relative paths start from.
    """
    if source.path is None or data is None:
        return
    from edgepipe.data.sample_description import describe_samples
    from edgepipe.models.model_ports import read_model_ports

    ports = read_model_ports(base_folder / source.path)
    if ports is None or not ports.inputs:
        return
    samples = describe_samples(data, base_folder)
    _check_inputs(document, source, data, ports, samples)
    if task is not None:
        _check_outputs(document, task, ports, samples)


def _check_inputs(
    document: Document, source: Source, data: DataSpec, ports: "ModelPorts", samples: "SampleDescription"
) -> None:
    if samples.shape is None:
        return
    if len(ports.inputs) > 1:
        names = ", ".join(port.name for port in ports.inputs)
        document.add_problem(
            ("data",), f"gives one array, and the model takes {len(ports.inputs)} inputs ({names}); write a function "
            "that returns a mapping of them",
        )  # fmt: skip
        return
    model_shape = _fixed_shape(source, ports.inputs[0])
    if len(ports.inputs[0].shape) < 2 or _is_compatible(model_shape, samples.shape):
        return
    remedy = ""
    if isinstance(data, ImagesSpec) and len(model_shape) == 3 and None not in model_shape:
        height, width, channels = model_shape
        is_settable = channels in (1, 3)
        remedy = f"; write `size: [{height}, {width}]`, `channels: {channels}`" if is_settable else ""
    document.add_problem(
        ("data",), f"gives samples of shape {_show(samples.shape)} ({samples.shape_source}), and the model takes "
        f"{_show(model_shape)}{remedy}",
    )  # fmt: skip


def _fixed_shape(source: Source, port: PortDescription) -> Shape:
    """The shape of one sample, with the sizes that `input_shape` sets."""
    sizes_by_input = parse_input_shapes(source.input_shape or ())
    fixed_sizes = sizes_by_input.get(port.name, sizes_by_input.get(""))
    open_shape = port.shape[1:]
    return fixed_sizes if fixed_sizes is not None and len(fixed_sizes) == len(open_shape) else open_shape


def _is_compatible(model_shape: Shape, sample_shape: Shape) -> bool:
    return len(model_shape) == len(sample_shape) and all(
        None in (model_size, size) or model_size == size
        for model_size, size in zip(model_shape, sample_shape, strict=True)
    )


def _show(shape: Shape) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _check_outputs(document: Document, task: TaskSpec, ports: "ModelPorts", samples: "SampleDescription") -> None:
    """The model has an output for each class; one output tells two classes apart."""
    is_plain = task.kind == "classification" and task.labels == "one" and task.decode is None
    shape = ports.outputs[0].shape if len(ports.outputs) == 1 else ()
    output_count = shape[-1] if len(shape) > 1 else None
    if not is_plain or output_count is None or samples.class_count is None:
        return
    if samples.class_count > max(output_count, 2):
        document.add_problem(
            ("data",),
            f"has {plural(samples.class_count, 'class', 'classes')}, and the model has "
            f"{plural(output_count, 'output')}",
        )
