"""The preprocessing that a device must apply to its samples, stored inside the .tflite.

A flatbuffer may hold unreferenced bytes, and its offsets point forward only: a new root and longer lists of buffers and
metadata are written in front of the old file, so that its operators, tensors and constants stay unchanged.

Schema: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/schema/schema.fbs, tables Model, Buffer, Metadata.
"""

import struct
from typing import Any, Literal, final

from pydantic import Field, ValidationError

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.tflite.model import Model

PREPROCESSING_NAME = "edgepipe.preprocessing"
ALIGNMENT = 16  # of constants, as the schema asks
_IDENTIFIER = b"TFL3"
_MODEL_FIELD_COUNT, _BUFFERS_SLOT, _METADATA_SLOT = 10, 4, 6  # table Model of the schema: number of fields, two slots
_DAMAGE_ERRORS = (struct.error, ValueError, TypeError, IndexError, AttributeError, OverflowError, AssertionError)


@final
class Sound(Record):
    """How a recording becomes the model's input: frames without padding, the first at sample 0."""

    features: Literal["log_mel", "mfcc", "none"]
    rate: int = Field(description="samples per second, -1 to 1")
    samples: int = Field(description="of a recording; longer ones are cropped and shorter ones padded at both ends")
    window: int | None = Field(default=None, description="samples of a frame")
    hop: int | None = Field(default=None, description="samples from frame to frame")
    fft: int | None = Field(default=None, description="points; the window is centred in them")
    window_function: str | None = None
    spectrum: str | None = None
    mels: int | None = None
    mel_scale: str | None = Field(default=None, description="edges of the bands are evenly spaced on it")
    mel_shape: str | None = None
    fmin: float | None = Field(default=None, description="Hz, where the lowest band begins")
    fmax: float | None = Field(default=None, description="Hz, where the highest band ends")
    log: str | None = None
    floor: float | None = None
    coefficients: int | None = Field(default=None, description="of MFCC")
    dct: str | None = None


@final
class Pixels(Record):
    """How stored integers become the model's input: linearly from `stored` to `given`."""

    stored: tuple[float, float] = Field(description="smallest and largest value of the type")
    given: tuple[float, float] = Field(description="the model's inputs for these")
    shape: tuple[int, ...] = Field(default=(), description="of a sample, such as (height, width, channels)")
    mode: str | None = Field(default=None, description="of colours: L (grey) or RGB")
    resize: str | None = None


@final
class Standardization(Record):
    """(value - mean) / deviation, in this order, for each channel or each band of a spectrogram."""

    axis: Literal["channels", "bands"]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@final
class Windows(Record):
    """The columns of a sample, in order."""

    channels: tuple[str, ...]
    rows: int | None = Field(default=None, description="of one window; null: a sample is one row")
    step: int | None = Field(default=None, description="rows from window to window in training")


@final
class Preprocessing(Record):
    """All steps from the sensor to the model's input, in this order; null: no such step."""

    format: Literal["edgepipe.preprocessing/1"] = Field(default="edgepipe.preprocessing/1", alias="schema")
    sound: Sound | None = None
    pixels: Pixels | None = None
    windows: Windows | None = None
    standardize: Standardization | None = None
    classes: tuple[str, ...] = Field(default=(), description="names, in the order of the outputs")

    @property
    def has_steps(self) -> bool:
        """Whether there is anything to store."""
        return any((self.sound, self.pixels, self.windows, self.standardize, self.classes))

    def to_json(self) -> str:
        """As one line of JSON, without null."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


def read_preprocessing(model: Model) -> Preprocessing | None:
    """The preprocessing that is stored in the file; None if there is none.

    Raises:
        InputError: the entry cannot be read.
    """
    content = model.metadata.get(PREPROCESSING_NAME)
    if content is None:
        return None
    try:
        return Preprocessing.model_validate_json(content)
    except ValidationError as error:
        validation_error = error.errors()[0]
        location = ".".join(map(str, validation_error["loc"]))
        location_suffix = f" at {location}" if location else ""
        raise InputError(
            f"{model.path}: metadata '{PREPROCESSING_NAME}' cannot be read{location_suffix}: {validation_error['msg']}"
        ) from None


def embed_preprocessing(content: bytes, preprocessing: Preprocessing | None) -> bytes:
    """The .tflite `content` with `preprocessing` inside; unchanged if there is none."""
    if preprocessing is None or not preprocessing.has_steps:
        return content
    return add_metadata(content, PREPROCESSING_NAME, preprocessing.to_json().encode())


def add_metadata(content: bytes, name: str, payload: bytes) -> bytes:
    """The .tflite `content` with a metadata entry `name` that holds `payload`; an older one of that name is unlisted.

    Raises:
        InputError: a damaged file, one of a newer schema, or one over 2 GB, with constants beside the tables.
    """
    try:
        return _insert_metadata(content, name, payload)
    except _DAMAGE_ERRORS as error:
        raise InputError(f"metadata '{name}' cannot be added to this .tflite: {error}") from None


def _insert_metadata(content: bytes, name: str, payload: bytes) -> bytes:
    from ai_edge_litert.schema_py_generated import Model as Root

    root_table = Root.GetRootAs(content, 0)
    buffers = [root_table.Buffers(index) for index in range(root_table.BuffersLength())]
    _check_layout(content, root_table, buffers)
    builder, content_end = _prepend_builder(content)
    buffer_offset, entry_offset = _write_metadata_entry(builder, name, payload, len(buffers))
    kept_metadata = [
        old_entry
        for old_entry in map(root_table.Metadata, range(root_table.MetadataLength()))
        if old_entry.Name() != name.encode()
    ]
    vector_by_field = {
        _BUFFERS_SLOT: _write_offset_vector(
            builder, [*(content_end - old_buffer._tab.Pos for old_buffer in buffers), buffer_offset]
        ),
        _METADATA_SLOT: _write_offset_vector(
            builder, [*(content_end - old_entry._tab.Pos for old_entry in kept_metadata), entry_offset]
        ),
    }
    builder.StartObject(_MODEL_FIELD_COUNT)
    builder.PrependUint32Slot(0, root_table.Version(), 0)
    for slot in range(1, _MODEL_FIELD_COUNT):
        field_offset = root_table._tab.Offset(4 + 2 * slot)
        old_position = content_end - root_table._tab.Indirect(root_table._tab.Pos + field_offset) if field_offset else 0
        builder.PrependUOffsetTRelativeSlot(slot, vector_by_field.get(slot, old_position), 0)
    builder.Finish(builder.EndObject(), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _check_layout(content: bytes, root_table: Any, buffers: list[Any]) -> None:
    vtable_position = root_table._tab.Pos - struct.unpack_from("<i", content, root_table._tab.Pos)[0]
    if struct.unpack_from("<H", content, vtable_position)[0] > 4 + 2 * _MODEL_FIELD_COUNT:
        raise ValueError("its schema is newer than the one that edgepipe knows")
    if any(buffer.Offset() > 1 for buffer in buffers):
        raise ValueError("its constants are stored outside the tables")


def _prepend_builder(content: bytes) -> tuple[Any, int]:
    """A builder that writes in front of `content`, and the position of its end, from which offsets count."""
    from flatbuffers import Builder

    builder = Builder(0)
    builder.Bytes = bytearray(content) + bytes(-len(content) % ALIGNMENT)
    builder.minalign = ALIGNMENT  # new bytes take a multiple of it, so aligned data stays aligned
    return builder, len(builder.Bytes)


def _write_metadata_entry(builder: Any, name: str, payload: bytes, buffer_index: int) -> tuple[int, int]:
    """The buffer of `payload`, which becomes number `index`, and its metadata entry."""
    from ai_edge_litert import schema_py_generated as schema

    builder.StartVector(1, len(payload), ALIGNMENT)
    builder.head -= len(payload)
    builder.Bytes[builder.head : builder.head + len(payload)] = payload
    payload_offset, name_offset = builder.EndVector(), builder.CreateString(name)
    schema.BufferStart(builder)
    schema.BufferAddData(builder, payload_offset)
    buffer_offset = schema.BufferEnd(builder)
    schema.MetadataStart(builder)
    schema.MetadataAddName(builder, name_offset)
    schema.MetadataAddBuffer(builder, buffer_index)
    return buffer_offset, schema.MetadataEnd(builder)


def _write_offset_vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
