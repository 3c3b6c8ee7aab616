"""Reads single fields of protocol buffers by their numbers, without the generated classes, which come with TensorFlow.

Encoding: https://protobuf.dev/programming-guides/encoding/
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edgepipe.core.errors import InputError

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True)
class Message:
    """The bytes of one message."""

    content: bytes

    def messages(self, number: int) -> list["Message"]:
        """Every message in the field `number`."""
        return [Message(value) for value in self._values(number) if isinstance(value, bytes)]

    def message(self, number: int) -> "Message":
        """The last message in the field, or an empty one."""
        return (self.messages(number) or [Message(b"")])[-1]

    def texts(self, number: int) -> list[str]:
        """Every text in the field."""
        return [value.decode("utf-8", "replace") for value in self._values(number) if isinstance(value, bytes)]

    def text(self, number: int) -> str:
        """The last text in the field, or an empty one."""
        return (self.texts(number) or [""])[-1]

    def integer(self, number: int, default: int = 0) -> int:
        """The last signed integer in the field."""
        integers = [value for value in self._values(number) if isinstance(value, int)]
        unsigned = integers[-1] if integers else default
        return unsigned - 2**64 if unsigned >= 2**63 else unsigned

    def floats(self, number: int) -> list[float]:
        """Every 32-bit float in the field, packed or not."""
        numbers: list[float] = []
        for value in self._values(number):
            raw = value if isinstance(value, bytes) else struct.pack("<I", value & 0xFFFFFFFF)
            numbers += [entry[0] for entry in struct.iter_unpack("<f", raw[: len(raw) // 4 * 4])]
        return numbers

    def map_entries(self, number: int) -> dict[str, "Message"]:
        """A map of texts to messages."""
        return {entry.text(1): entry.message(2) for entry in self.messages(number)}

    def _values(self, number: int) -> Iterator[bytes | int]:
        return (value for field_number, value in self._fields() if field_number == number)

    def _fields(self) -> Iterator[tuple[int, bytes | int]]:
        position = 0
        while position < len(self.content):
            tag, position = self._read_varint(position)
            value: bytes | int
            if tag & 7 == _VARINT:
                value, position = self._read_varint(position)
            elif tag & 7 == _LENGTH:
                length, position = self._read_varint(position)
                value, position = self._read_bytes(position, length)
            elif tag & 7 in (_FIXED32, _FIXED64):
                raw, position = self._read_bytes(position, 4 if tag & 7 == _FIXED32 else 8)
                value = int.from_bytes(raw, "little")
            else:
                raise InputError(f"not a protocol buffer: wire type {tag & 7} at byte {position}")
            yield tag >> 3, value

    def _read_bytes(self, position: int, length: int) -> tuple[bytes, int]:
        if position + length > len(self.content):
            raise InputError(f"a truncated protocol buffer: {length} bytes at byte {position} of {len(self.content)}")
        return self.content[position : position + length], position + length

    def _read_varint(self, position: int) -> tuple[int, int]:
        number = 0
        for index in range(_MAX_VARINT_BYTES):
            if position + index >= len(self.content):
                break
            byte = self.content[position + index]
            number |= (byte & 0x7F) << 7 * index
            if not byte & 0x80:
                return number, position + index + 1
        raise InputError(f"a truncated protocol buffer: no end of a number at byte {position}")
