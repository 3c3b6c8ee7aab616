"""The `data:` key of a pipeline: where samples come from and how they are split, as a frozen model.

Parsing loads no data and imports nothing heavy, so `check` stays fast. Problems that need no loading (misspelled
options, missing files, fractions that leave no training data) are reported here, with line and column.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import AfterValidator, Field, JsonValue, model_validator

from edgepipe.core import references
from edgepipe.core.config import Document, KeyPath, Options, describe_value, validate
from edgepipe.core.errors import InputError, ToolError, did_you_mean
from edgepipe.core.input_files import check_ordinary
from edgepipe.data import idx, speech, table_format
from edgepipe.data.augmentation_options import Augment, Seconds

DEFAULT_FRACTION = 0.2
Fraction = Annotated[float, Field(gt=0, lt=1)]
Rescale = Literal["unit", "signed", "none"]


def _check_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"'{text}' is no regular expression: {error}") from None
    return text


RegularExpression = Annotated[str, AfterValidator(_check_expression)]


class _CommonSpec(Options):
    validation: Fraction | None = Field(
        default=None,
        description="fraction of the samples for model selection; default 0.2 unless the source has such a split",
    )
    test: Fraction | None = Field(
        default=None, description="fraction of the samples that only `validate` reads; default 0.2, likewise"
    )
    stratify: bool = Field(default=True, description="give each split the same mix of integer labels")
    representative: int = Field(default=200, ge=1, description="training samples that calibrate int8 conversion")
    augment: Augment | None = Field(default=None, description="random augmentation of training samples")

    @model_validator(mode="after")
    def _check_shares(self) -> "_CommonSpec":
        total_share = sum(share if share is not None else 0.0 for share in (self.validation, self.test))
        if total_share >= 1:
            raise ValueError(
                f"validation and test take {total_share:g} of the samples; together they must stay below 1"
            )
        return self


@final
class FunctionSpec(_CommonSpec):
    """A function that returns `(x, y)`, `x`, or one of these per split."""

    function: str = Field(description="module:function; the module is beside the pipeline or installed")
    args: dict[str, JsonValue] = Field(default_factory=dict, description="keyword arguments of the function")
    files: tuple[str, ...] = Field(
        default=(), description="files and folders it reads; a change in one invalidates the cache"
    )
    rescale: Rescale = Field(default="none", description="unit: integers to [0, 1]; signed: to [-1, 1]")


@final
class NpzSpec(_CommonSpec):
    """A NumPy archive with the arrays `x` and `y`, or `x_train`, `y_train`, `x_test`, ... (`val` or `validation`)."""

    npz: str = Field(description="the .npz file; it may hold no pickled objects")
    x: str = Field(default="x", description="name of the sample array")
    y: str | None = Field(default=None, description="name of the label array; default y, if there is one")
    rescale: Rescale = Field(default="none", description="unit: integers to [0, 1]; signed: to [-1, 1]")


@final
class ImagesSpec(_CommonSpec):
    """A folder with one subfolder of images per class, alone or below train/, validation/ (or val/) and test/."""

    images: str = Field(description="the folder")
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        description="height and width to resize to (bilinear); default: images must all have the same size",
    )
    channels: Literal[1, 3] = Field(default=3, description="1 for grey, 3 for colour")
    skip_corrupt: bool = Field(default=False, description="skip and list images that cannot be read")
    rescale: Rescale = Field(default="unit", description="unit: to [0, 1]; signed: to [-1, 1]; none: 0..255")


@final
class FashionSpec(_CommonSpec):
    """Fashion-MNIST from its four IDX files."""

    fashion_mnist: str | None = Field(
        default=None, description=f"their folder; default: $EDGEPIPE_DATA, then Debian's {idx.DEBIAN_FOLDER}"
    )
    rescale: Rescale = Field(default="unit", description="unit: to [0, 1]; signed: to [-1, 1]; none: 0..255")


@final
class IdxSpec(_CommonSpec):
    """A folder with four IDX files named as those of MNIST: train- and t10k-, images and labels, gzipped or not."""

    idx: str = Field(description="the folder")
    rescale: Rescale = Field(default="unit", description="unit: to [0, 1]; signed: to [-1, 1]; none: 0..255")


class TableSpec(_CommonSpec):
    """The options that CSV and Parquet files share."""

    channels: tuple[str, ...] = Field(
        default=(), description="columns of the samples; default: all remaining ones but times and indices"
    )
    label: str | None = Field(default=None, description="column of the label: integers, numbers or texts")
    group: str | None = Field(
        default=None, description="column whose values stay within one split, such as the subject"
    )
    session: str | None = Field(default=None, description="column of the recording; windows never cross it")
    ignore: tuple[str, ...] = Field(default=(), description="columns to ignore, such as a timestamp")
    label_from: RegularExpression | None = Field(
        default=None,
        description="regular expression that finds the label in the file's path; its first group if it has one",
    )
    group_from: RegularExpression | None = Field(default=None, description="the same for the group")
    window: int | None = Field(default=None, ge=1, description="rows per sample; null: each row is a sample")
    step: int | None = Field(default=None, ge=1, description="rows from window to window; null: the window length")
    standardize: bool = Field(
        default=False, description="scale each channel to mean 0, deviation 1 on the training split"
    )
    skip_corrupt: bool = Field(default=False, description="skip and list files that cannot be used")
    rescale: Literal["none"] = Field(default="none", description="tables are not rescaled")

    @model_validator(mode="after")
    def _check_columns(self) -> "TableSpec":
        if self.step is not None and self.window is None:
            raise ValueError("step is for windows: say `window` too")
        for column, pattern in (("label", "label_from"), ("group", "group_from")):
            if getattr(self, column) is not None and getattr(self, pattern) is not None:
                raise ValueError(f"{column} and {pattern} exclude each other")
        repeated_channels = {name for name in self.channels if self.channels.count(name) > 1}
        if repeated_channels:
            raise ValueError(f"channels names {', '.join(sorted(repeated_channels))} twice")
        for option, column_names in (("label", (self.label,)), ("ignore", self.ignore)):
            shared_names = sorted(set(self.channels).intersection(name for name in column_names if name is not None))
            if shared_names:
                raise ValueError(f"'{shared_names[0]}' is both a channel and named in {option}")
        return self


@final
class CsvSpec(TableSpec):
    """CSV files: sensor windows or plain rows."""

    csv: str = Field(
        description="a file, a folder with .csv, .tsv or .txt files below it, or a pattern such as run*.csv"
    )
    separator: str | None = Field(
        default=None, min_length=1, description="column separator, \\t for tabs; null: detected from the first lines"
    )
    decimal: Literal[".", ","] | None = Field(default=None, description="decimal mark; null: detected")
    header: bool | None = Field(
        default=None, description="the first line names the columns; false: they are column_1, ..; null: detected"
    )


@final
class ParquetSpec(TableSpec):
    """Parquet files: sensor windows or plain rows."""

    parquet: str = Field(description="a file, a folder with .parquet files below it, or a pattern")


class SoundSpec(_CommonSpec):
    """The options that all audio sources share."""

    rate: int = Field(default=16_000, ge=1000, description="sampling rate in Hz; recordings are resampled to it")
    seconds: float = Field(default=1.0, gt=0, description="length; longer recordings are cropped, shorter ones padded")
    features: Literal["log_mel", "mfcc", "none"] = Field(default="log_mel", description="none: the waveform itself")
    window: Seconds = Field(default=0.03, gt=0, description="frame length, such as 30 ms")
    hop: Seconds = Field(default=0.02, gt=0, description="frame step, such as 20 ms")
    mels: int = Field(default=40, ge=1, description="mel bands")
    coefficients: int = Field(default=10, ge=1, description="MFCC coefficients to keep")
    fmin: float = Field(default=20.0, ge=0, description="lower edge of the lowest band, Hz")
    fmax: float | None = Field(
        default=None, gt=0, description="upper edge of the highest band, Hz; null: half the rate"
    )
    floor: float = Field(default=1e-6, gt=0, description="added to the power before the logarithm")
    group_from: RegularExpression | None = Field(
        default=None,
        description="regular expression that finds the speaker in a file's name; its first group if it has one",
    )
    standardize: bool = Field(
        default=False, description="scale each band, or the waveform, to mean 0, deviation 1 on the training split"
    )
    skip_corrupt: bool = Field(default=False, description="skip and list recordings that cannot be read")
    rescale: Literal["none"] = Field(default="none", description="features are not rescaled")

    @model_validator(mode="after")
    def _check_features(self) -> "SoundSpec":
        fmax = self.fmax or self.rate / 2
        if fmax > self.rate / 2 or self.fmin >= fmax:
            raise ValueError(
                f"fmin {self.fmin:g} and fmax {fmax:g} Hz must rise and stay within half the rate, {self.rate / 2:g}"
            )
        if self.features == "mfcc" and self.coefficients > self.mels:
            raise ValueError(f"{self.coefficients} coefficients need as many mel bands; there are {self.mels}")
        if self.hop > self.seconds or self.window > self.seconds:
            raise ValueError("window and hop must be shorter than a recording")
        self._check_frames(fmax)
        if self.augment is not None and self.augment.shift is not None and self.augment.shift >= self.seconds:
            raise ValueError(f"augment: a shift of {self.augment.shift:g} s leaves nothing of {self.seconds:g} s")
        return self

    def _check_frames(self, fmax: float) -> None:
        """Check that a frame fits into a recording and that every mel band contains an FFT bin."""
        recording_samples, window_samples = round(self.seconds * self.rate), round(self.window * self.rate)
        fft_size = 1 << max(window_samples - 1, 0).bit_length()
        if self.features == "none":
            return
        if window_samples < 2 or round(self.hop * self.rate) < 1 or fft_size > recording_samples:
            raise ValueError(
                f"a recording of {recording_samples} samples, windows of {window_samples} in an FFT of {fft_size}, "
                f"every {round(self.hop * self.rate)}: "
                "an FFT must fit into a recording, a window needs 2 samples, a hop 1"
            )
        low_mel, high_mel = (2595 * math.log10(1 + edge / 700) for edge in (self.fmin, fmax))
        mel_steps = [low_mel + (high_mel - low_mel) * step / (self.mels + 1) for step in range(self.mels + 2)]
        bin_edges = [700 * (10 ** (step / 2595) - 1) * fft_size / self.rate for step in mel_steps]  # in FFT bins
        empty_band_count = sum(math.floor(bin_edges[band]) + 1 >= bin_edges[band + 2] for band in range(self.mels))
        if empty_band_count:
            raise ValueError(
                f"{empty_band_count} of {self.mels} mel bands would be empty: they lie between the frequencies of "
                f"an FFT of {fft_size} points, {self.rate / fft_size:.4g} Hz apart; "
                "use fewer `mels`, a longer `window`, or a higher `fmin`"
            )


@final
class AudioSpec(SoundSpec):
    """A folder with one subfolder of recordings per class, alone or below train/, validation/ (or val/) and test/."""

    audio: str = Field(description="the folder; .wav, .flac, .ogg or .mp3")


@final
class SpokenDigitsSpec(SoundSpec):
    """The ten digits, synthesized by espeak-ng in many voices; each voice stays within one split."""

    spoken_digits: int | None = Field(default=None, ge=10, le=96, description="voices; default 60")


DataSpec = (
    FunctionSpec | NpzSpec | ImagesSpec | FashionSpec | IdxSpec | CsvSpec | ParquetSpec | AudioSpec | SpokenDigitsSpec
)

SPEC_BY_SOURCE: dict[str, type[DataSpec]] = {
    "function": FunctionSpec,
    "npz": NpzSpec,
    "images": ImagesSpec,
    "fashion_mnist": FashionSpec,
    "idx": IdxSpec,
    "csv": CsvSpec,
    "parquet": ParquetSpec,
    "audio": AudioSpec,
    "spoken_digits": SpokenDigitsSpec,
}
SOURCES_WITHOUT_VALUE = ("fashion_mnist", "spoken_digits")  # sources whose value may be null
_EXPECTED_FORMS = (
    f"write module:function (for example edgepipe.data:digits) or a mapping with one of: {', '.join(SPEC_BY_SOURCE)}"
)


def parse(document: Document, path: KeyPath, yaml_value: Any, base_folder: Path) -> DataSpec | None:
    """Parse the `data:` key.

    Args:
        document: the file it is from; problems are added to it.
        path: the key's path in the document.
        yaml_value: the parsed YAML value at `path`.
        base_folder: the folder that relative file names start from.

    Returns:
        The dataset; None if there is any problem.
    """
    problem_count = len(document.problems)
    spec = _parse_value(document, path, yaml_value)
    if spec is not None:
        _check_source(document, path if isinstance(yaml_value, str) else (*path, _source_key(spec)), spec, base_folder)
        _check_files(document, path, spec, base_folder)
        _check_augment(document, (*path, "augment"), spec, base_folder)
    return spec if len(document.problems) == problem_count else None


def _parse_value(document: Document, path: KeyPath, yaml_value: Any) -> DataSpec | None:
    if isinstance(yaml_value, str):
        return _parse_reference(document, path, yaml_value)
    if not isinstance(yaml_value, Mapping):
        document.add_problem(path, f"found {describe_value(yaml_value)}; {_EXPECTED_FORMS}")
        return None
    source_keys = [key for key in SPEC_BY_SOURCE if key in yaml_value]
    if len(source_keys) > 1:
        document.add_problem(
            (*path, source_keys[1]), f"a dataset has one source; '{source_keys[0]}' is there already", anchor="key"
        )
        return None
    if not source_keys:
        _report_missing_source(document, path, yaml_value)
        return None
    if yaml_value[source_keys[0]] is None and source_keys[0] not in SOURCES_WITHOUT_VALUE:
        document.add_problem((*path, source_keys[0]), "names nothing; write what to read")
        return None
    return validate(document, path, yaml_value, SPEC_BY_SOURCE[source_keys[0]])


def _parse_reference(document: Document, path: KeyPath, text: str) -> DataSpec | None:
    if text == "edgepipe.data:fashion_mnist":
        return FashionSpec()  # so that its files are part of the identity
    if references.is_reference(text):
        return FunctionSpec(function=text)
    document.add_problem(path, f"found the text '{text[:60]}'; {_EXPECTED_FORMS}")
    return None


def _report_missing_source(document: Document, path: KeyPath, mapping: Mapping[str, Any]) -> None:
    hint_pairs = ((key, did_you_mean(key, SPEC_BY_SOURCE)) for key in mapping)
    key_and_hint = next(((key, hint) for key, hint in hint_pairs if hint.startswith("; did")), None)
    if key_and_hint is not None:
        document.add_problem((*path, key_and_hint[0]), f"unknown source{key_and_hint[1]}", anchor="key")
    else:
        document.add_problem(path, f"no source; {_EXPECTED_FORMS}")


def _source_key(spec: DataSpec) -> str:
    return next(key for key, spec_class in SPEC_BY_SOURCE.items() if isinstance(spec, spec_class))


def _check_source(document: Document, path: KeyPath, spec: DataSpec, base_folder: Path) -> None:
    """Report what prevents reading the source of `spec`, without reading it."""
    try:
        if isinstance(spec, FunctionSpec):
            if not references.is_reference(spec.function):
                raise InputError(f"'{spec.function[:60]}' is not of the form module:function")
            references.check(spec.function, base_folder)
        elif isinstance(spec, (IdxSpec, FashionSpec)):
            idx.find_files(source_path(spec, base_folder))
        elif isinstance(spec, SpokenDigitsSpec):
            speech.find_espeak()
        elif isinstance(spec, (CsvSpec, ParquetSpec)):
            _check_table_path(source_path(spec, base_folder))
        else:
            _check_path(source_path(spec, base_folder), "file" if isinstance(spec, NpzSpec) else "folder")
    except (InputError, ToolError) as error:
        document.add_problem(path, str(error))


def _check_path(path: Path, kind: str) -> None:
    check_ordinary(path)
    if not path.exists():
        raise InputError(f"no such {kind}: {path}")


def _check_table_path(root: Path) -> None:
    check_ordinary(root)
    if not root.exists() and not (root.parent.is_dir() and any(root.parent.glob(root.name))):
        raise InputError(f"no such file, folder or pattern: {root}")


def _check_files(document: Document, path: KeyPath, spec: DataSpec, base_folder: Path) -> None:
    if isinstance(spec, FunctionSpec):
        for index, file in enumerate(spec.files):
            if not (base_folder / file).exists():
                document.add_problem((*path, "files", index), f"no such file or folder: {base_folder / file}")


def _check_augment(document: Document, path: KeyPath, spec: DataSpec, base_folder: Path) -> None:
    if spec.augment is None:
        return
    for name in spec.augment.waveform_change_names if not isinstance(spec, SoundSpec) else ():
        message = f"{name} changes waveforms, and `{_source_key(spec)}` gives none; audio and spoken_digits do"
        document.add_problem((*path, name), message, anchor="key")
    noise_path = noise_folder(spec, base_folder)
    if noise_path is not None and not noise_path.is_dir():
        document.add_problem((*path, "noise", "folder"), f"no such folder: {noise_path}")


def noise_folder(spec: DataSpec, base_folder: Path) -> Path | None:
    """The folder of noise recordings that `augment:` mixes in; None if it names none."""
    noise_options = spec.augment.noise if spec.augment is not None else None
    return (
        base_folder / noise_options.folder if noise_options is not None and noise_options.folder is not None else None
    )


def source_path(
    spec: NpzSpec | ImagesSpec | FashionSpec | IdxSpec | CsvSpec | ParquetSpec | AudioSpec, base_folder: Path
) -> Path:
    """The file or folder that `spec` reads.

    Raises:
        InputError: Fashion-MNIST is not found.
    """
    if isinstance(spec, FashionSpec):
        return idx.find_fashion_folder() if spec.fashion_mnist is None else base_folder / spec.fashion_mnist
    return base_folder / str(getattr(spec, _source_key(spec)))


def find_table_files(root: Path, spec: TableSpec) -> list[Path]:
    """The files that `root` names: the file itself, all matching files below a folder, or the matches of a pattern.

    Raises:
        InputError: there are none.
    """
    endings = (".parquet",) if isinstance(spec, ParquetSpec) else (".csv", ".tsv", ".txt")
    check_ordinary(root)
    if root.is_file():
        return [root]
    if root.is_dir():
        paths = [path for path in _files_below(root) if path.suffix.lower() in endings and not _is_prose(path)]
    else:
        paths = sorted(path for path in root.parent.glob(root.name) if path.is_file()) if root.parent.is_dir() else []
    if not paths:
        raise InputError(
            f"{root}: no such file, no {' or '.join(endings)} files below such a folder, and no match as a pattern"
        )
    return paths


def find_unread_files(root: Path, spec: TableSpec) -> list[Path]:
    """The files below the folder `root` that are not read: those of other kinds, and texts that are no tables."""
    if not root.is_dir():
        return []
    read_files = set(find_table_files(root, spec))
    return [path for path in _files_below(root) if path not in read_files]


def _files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))


def _is_prose(path: Path) -> bool:
    """Whether a .txt file is a text rather than a table, such as a README."""
    return path.suffix.lower() == ".txt" and not table_format.is_table(path)
