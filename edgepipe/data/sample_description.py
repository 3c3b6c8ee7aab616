"""What a dataset will give - the shape of a sample, the number of classes - found without reading its samples."""

from dataclasses import dataclass
from pathlib import Path

from edgepipe.core.errors import InputError
from edgepipe.core.npy_headers import open_npz, read_npz_headers
from edgepipe.data import class_folders, idx, images
from edgepipe.data.audio import build_features
from edgepipe.data.data_spec import (
    AudioSpec,
    CsvSpec,
    DataSpec,
    FashionSpec,
    IdxSpec,
    ImagesSpec,
    NpzSpec,
    SoundSpec,
    SpokenDigitsSpec,
    find_table_files,
    noise_folder,
    source_path,
)
from edgepipe.data.split_names import Split
from edgepipe.data.table_format import find_time_columns, preview_table

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class SampleDescription:
    """The shape of one sample, without the batch axis, and the number of classes; None where it is not known.

    `shape_source` says what decides the shape, for messages.
    """

    shape: Shape | None = None
    class_count: int | None = None
    shape_source: str = ""


def describe_samples(spec: DataSpec, base_folder: Path) -> SampleDescription:
    """What is known of the samples of `spec`; nothing of a function, or of a source that reading will refuse."""
    try:
        return _describe(spec, base_folder)
    except (InputError, OSError):
        return SampleDescription()


def _describe(spec: DataSpec, base_folder: Path) -> SampleDescription:
    if isinstance(spec, ImagesSpec):
        return _describe_images(spec, source_path(spec, base_folder))
    if isinstance(spec, NpzSpec):
        return _describe_npz(spec, source_path(spec, base_folder))
    if isinstance(spec, SoundSpec):
        return _describe_sound(spec, base_folder)
    if isinstance(spec, (IdxSpec, FashionSpec)):
        return _describe_idx(source_path(spec, base_folder))
    return _describe_csv(spec, base_folder) if isinstance(spec, CsvSpec) else SampleDescription()


def _describe_images(spec: ImagesSpec, root: Path) -> SampleDescription:
    folder = class_folders.find_split_folders(root)[Split.TRAIN]
    class_names = class_folders.find_class_names(folder, "image")
    size, origin = spec.size, f"`size` and `channels: {spec.channels}`"
    if size is None:
        first_file = next(class_folders.iterate_labelled_files(folder, class_names, images.IMAGE_ENDINGS))[0]
        size, origin = images.read_size(first_file), f"{first_file.name} and `channels: {spec.channels}`"
    return SampleDescription((*size, spec.channels), len(class_names), origin)


def _describe_npz(spec: NpzSpec, path: Path) -> SampleDescription:
    headers = read_npz_headers(path)
    x_name, y_name = (name if name in headers else f"{name}_train" for name in (spec.x, spec.y or "y"))
    y_header = headers.get(y_name)
    class_count = None
    if y_header is not None and y_header.dtype.kind in "iu" and len(y_header.shape) == 1 and y_header.shape[0]:
        with open_npz(path) as arrays:
            labels = arrays[y_name]
        class_count = int(labels.max()) + 1 if labels.min() >= 0 else None
    return SampleDescription(headers[x_name].shape[1:] if x_name in headers else None, class_count, f"array '{x_name}'")


def _describe_sound(spec: SoundSpec, base_folder: Path) -> SampleDescription:
    features, sample_count = build_features(spec), round(spec.seconds * spec.rate)
    class_count = 10 if isinstance(spec, SpokenDigitsSpec) else None
    if isinstance(spec, AudioSpec):
        folder = class_folders.find_split_folders(source_path(spec, base_folder))[Split.TRAIN]
        class_count = len(class_folders.find_class_names(folder, "recording", noise_folder(spec, base_folder)))
    return SampleDescription(features.output_shape(sample_count), class_count, f"`features: {spec.features}`")


def _describe_idx(folder: Path) -> SampleDescription:
    image_file, label_file = idx.find_files(folder)["train"]
    shape = idx.read_file(image_file).shape[1:]
    class_count = int(idx.read_file(label_file).max()) + 1
    return SampleDescription((*shape, 1) if len(shape) == 2 else shape, class_count, "the IDX files")


def _describe_csv(spec: CsvSpec, base_folder: Path) -> SampleDescription:
    first_file = find_table_files(source_path(spec, base_folder), spec)[0]
    columns = preview_table(first_file, spec.separator, spec.decimal, spec.header).columns
    other_columns = {spec.label, spec.group, spec.session, *spec.ignore, *find_time_columns(columns)}
    channels = spec.channels or [name for name in columns if name not in other_columns]
    shape = (len(channels),) if spec.window is None else (spec.window, len(channels))
    return SampleDescription(shape, None, f"columns {', '.join(channels)} of {first_file.name}")
