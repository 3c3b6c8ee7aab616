"""What a device must do to its samples before a model sees them, kept inside the .tflite.

A flatbuffer may hold bytes that nothing refers to, and refers forward only: a new root, a longer list of buffers and of
metadata are laid before the file as it was, so that every operator, tensor and constant in it stays as it is.

Schema: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/schema/schema.fbs, tables Model, Buffer, Metadata.
"""

import struct
from typing import Any, Literal, final

from pydantic import Field, ValidationError

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.tflite.model import Model

NAME = "edgepipe.preprocessing"
ALIGNMENT = 16  # of constants, as the schema asks
_IDENTIFIER = b"TFL3"
_FIELDS, _BUFFERS, _METADATA = 10, 4, 6  # of the table Model in the schema that this follows: how many, and which
_DAMAGE = (struct.error, ValueError, TypeError, IndexError, AttributeError, OverflowError, AssertionError)


@final
class Sound(Record):
    """How a recording becomes what the model takes: frames without padding, the first at sample 0."""

    features: Literal["log_mel", "mfcc", "none"]
    rate: int = Field(description="samples a second, -1 to 1")
    samples: int = Field(description="of a recording; longer ones cropped, shorter ones padded, both ends alike")
    window: int | None = Field(default=None, description="samples of a frame")
    hop: int | None = Field(default=None, description="samples from frame to frame")
    fft: int | None = Field(default=None, description="points; the window stands in their middle")
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
    """How stored integers become what the model takes: linearly, `stored` to `given`."""

    stored: tuple[float, float] = Field(description="the least and the largest that the type holds")
    given: tuple[float, float] = Field(description="what the model takes for these")
    shape: tuple[int, ...] = Field(default=(), description="of a sample, such as (height, width, channels)")
    mode: str | None = Field(default=None, description="of colours: L (grey) or RGB")
    resize: str | None = None


@final
class Standardize(Record):
    """(value - mean) / deviation, in this order, for each channel or each band of a spectrogram."""

    axis: Literal["channels", "bands"]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@final
class Windows(Record):
    """Which columns a sample is made of, in their order."""

    channels: tuple[str, ...]
    rows: int | None = Field(default=None, description="of one window; null: a sample is one row")
    step: int | None = Field(default=None, description="rows from window to window in training")


@final
class Preprocessing(Record):
    """Everything between what a sensor gives and what the model takes, in this order; null is not done."""

    format: Literal["edgepipe.preprocessing/1"] = Field(default="edgepipe.preprocessing/1", alias="schema")
    sound: Sound | None = None
    pixels: Pixels | None = None
    windows: Windows | None = None
    standardize: Standardize | None = None
    classes: tuple[str, ...] = Field(default=(), description="names, in the order of the outputs")

    @property
    def anything(self) -> bool:
        """Whether there is something to know."""
        return any((self.sound, self.pixels, self.windows, self.standardize, self.classes))

    def document(self) -> str:
        """As JSON in one line, without what is not done."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


def told(model: Model) -> Preprocessing | None:
    """What the file says of preprocessing, None if nothing.

    Raises:
        InputError: the entry cannot be read.
    """
    content = model.metadata.get(NAME)
    if content is None:
        return None
    try:
        return Preprocessing.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        where = f" at {place}" if place else ""
        raise InputError(f"{model.path}: metadata '{NAME}' cannot be read{where}: {first['msg']}") from None


def with_preprocessing(content: bytes, found: Preprocessing | None) -> bytes:
    """The .tflite `content` with `found` inside; as it was if there is nothing to say."""
    if found is None or not found.anything:
        return content
    return added(content, NAME, found.document().encode())


def added(content: bytes, name: str, data: bytes) -> bytes:
    """The .tflite `content` with a metadata entry `name` that holds `data`; one of that name is no longer listed.

    Raises:
        InputError: a damaged file, one of a newer schema, or one over 2 GB, with constants beside the tables.
    """
    try:
        return _added(content, name, data)
    except _DAMAGE as error:
        raise InputError(f"metadata '{name}' cannot be added to this .tflite: {error}") from None


def _added(content: bytes, name: str, data: bytes) -> bytes:
    from ai_edge_litert.schema_py_generated import Model as Root

    root = Root.GetRootAs(content, 0)
    buffers = [root.Buffers(index) for index in range(root.BuffersLength())]
    _check(content, root, buffers)
    builder, end = _before(content)
    buffer, entry = _entry(builder, name, data, len(buffers))
    kept = [item for item in map(root.Metadata, range(root.MetadataLength())) if item.Name() != name.encode()]
    lists = {
        _BUFFERS: _vector(builder, [*(end - item._tab.Pos for item in buffers), buffer]),
        _METADATA: _vector(builder, [*(end - item._tab.Pos for item in kept), entry]),
    }
    builder.StartObject(_FIELDS)
    builder.PrependUint32Slot(0, root.Version(), 0)
    for slot in range(1, _FIELDS):
        place = root._tab.Offset(4 + 2 * slot)
        old = end - root._tab.Indirect(root._tab.Pos + place) if place else 0
        builder.PrependUOffsetTRelativeSlot(slot, lists.get(slot, old), 0)
    builder.Finish(builder.EndObject(), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _check(content: bytes, root: Any, buffers: list[Any]) -> None:
    table = root._tab.Pos - struct.unpack_from("<i", content, root._tab.Pos)[0]
    if struct.unpack_from("<H", content, table)[0] > 4 + 2 * _FIELDS:
        raise ValueError("its schema is newer than the one that edgepipe knows")
    if any(buffer.Offset() > 1 for buffer in buffers):
        raise ValueError("its constants stand outside of the tables")


def _before(content: bytes) -> tuple[Any, int]:
    """A builder that writes before `content`, and where the end of that is: places are counted from there."""
    from flatbuffers import Builder

    builder = Builder(0)
    builder.Bytes = bytearray(content) + bytes(-len(content) % ALIGNMENT)
    builder.minalign = ALIGNMENT  # what is written takes a multiple of it, so all that was aligned stays so
    return builder, len(builder.Bytes)


def _entry(builder: Any, name: str, data: bytes, index: int) -> tuple[int, int]:
    """The buffer of `data`, which becomes number `index`, and the entry that names it."""
    from ai_edge_litert import schema_py_generated as schema

    builder.StartVector(1, len(data), ALIGNMENT)
    builder.head -= len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    written, title = builder.EndVector(), builder.CreateString(name)
    schema.BufferStart(builder)
    schema.BufferAddData(builder, written)
    buffer = schema.BufferEnd(builder)
    schema.MetadataStart(builder)
    schema.MetadataAddName(builder, title)
    schema.MetadataAddBuffer(builder, index)
    return buffer, schema.MetadataEnd(builder)


def _vector(builder: Any, places: list[int]) -> int:
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return int(builder.EndVector())
