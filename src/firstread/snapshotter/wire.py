# SPDX-License-Identifier: Apache-2.0
"""Protocol buffers on the wire, for messages that are dataclasses.

Owns encoding and decoding of the kinds of fields that containerd's API has. Invariant: a reader
takes what it knows and passes over the rest, and raises `ValueError` for what is no message.

Source: protobuf.dev, "Encoding". A field is a key (number << 3 | wire type) and a value; wire type
0 is a varint, 1 and 5 are fixed numbers, 2 is a length and that many bytes. A map is a repeated
message of key (1) and value (2). A field with its default value is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, TypeVar, cast

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10

M = TypeVar("M")


class Kind(Enum):
    """What a field holds."""

    TEXT = "string"
    RAW = "bytes"
    NUMBER = "int64, uint64, an enum or bool"
    MESSAGE = "message"
    LABELS = "map<string, string>"


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    number: int
    kind: Kind
    message: type[Any] | None
    repeated: bool


def text(number: int) -> Any:
    """Declare a field of text."""
    return field(default="", metadata={"wire": (number, Kind.TEXT, None, False)})


def texts(number: int) -> Any:
    """Declare a repeated field of text."""
    return field(default_factory=list, metadata={"wire": (number, Kind.TEXT, None, True)})


def raw(number: int) -> Any:
    """Declare a field of bytes."""
    return field(default=b"", metadata={"wire": (number, Kind.RAW, None, False)})


def number(number: int) -> Any:
    """Declare a field with an integer of up to 64 bits."""
    return field(default=0, metadata={"wire": (number, Kind.NUMBER, None, False)})


def labels(number: int) -> Any:
    """Declare a map from text to text."""
    return field(default_factory=dict, metadata={"wire": (number, Kind.LABELS, None, False)})


def message(number: int, kind: type[Any]) -> Any:
    """Declare a field with a message, None if it is not there."""
    return field(default=None, metadata={"wire": (number, Kind.MESSAGE, kind, False)})


def messages(number: int, kind: type[Any]) -> Any:
    """Declare a repeated field of messages."""
    return field(default_factory=list, metadata={"wire": (number, Kind.MESSAGE, kind, True)})


@cache
def _fields(kind: Any) -> dict[int, _Field]:
    fields = dataclasses.fields(kind)
    declared = [(item.name, *item.metadata["wire"]) for item in fields]
    return {item[1]: _Field(*item) for item in declared}


def encode(document: Any) -> bytes:
    """Return a message as bytes."""
    out = bytearray()
    for item in _fields(cast(Hashable, type(document))).values():
        value = getattr(document, item.name)
        if item.kind is Kind.LABELS:
            for key, label in value.items():
                entry = _text(1, key) + _text(2, label)
                out += _delimited(item.number, entry)
        elif item.kind is Kind.NUMBER:
            if value:
                out += _varint(item.number << 3 | _VARINT) + _varint(int(value) & (1 << 64) - 1)
        elif item.repeated:
            for element in value:
                out += _delimited(item.number, _payload(element))
        elif value is not None and value not in ("", b""):
            out += _delimited(item.number, _payload(value))
    return bytes(out)


def _payload(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else encode(value)


def _text(number: int, value: str) -> bytes:
    return _delimited(number, value.encode()) if value else b""


def _delimited(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(kind: type[M], data: bytes) -> M:
    """Return the message of this kind that `data` is.

    Raises:
        ValueError: it is none.
    """
    known = _fields(cast(Hashable, kind))
    document = kind()
    for number_, value in _read(data):
        item = known.get(number_)
        if item is not None:
            _take(document, item, value)
    return document


def _take(document: Any, item: _Field, value: int | bytes) -> None:
    if (item.kind is Kind.NUMBER) != isinstance(value, int):
        raise ValueError(f"field {item.number} has another type")
    if isinstance(value, int):
        setattr(document, item.name, value - (1 << 64) if value >> 63 else value)
        return
    if item.kind is Kind.LABELS:
        entry = {number_: part for number_, part in _read(value) if isinstance(part, bytes)}
        getattr(document, item.name)[entry.get(1, b"").decode()] = entry.get(2, b"").decode()
        return
    element: Any = value
    if item.kind is Kind.TEXT:
        element = value.decode()
    elif item.message is not None:
        element = decode(item.message, value)
    if item.repeated:
        getattr(document, item.name).append(element)
    else:
        setattr(document, item.name, element)


def _read(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield field numbers and values; fixed numbers are passed over."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _read_varint(data, position)
            yield key >> 3, value
            continue
        length = _FIXED_BYTES.get(kind)
        if length is None:
            if kind != _BYTES:
                raise ValueError(f"wire type {kind} is not known")
            length, position = _read_varint(data, position)
        if position + length > len(data):
            raise ValueError("the message is cut off")
        if kind == _BYTES:
            yield key >> 3, data[position : position + length]
        position += length


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(_MAX_VARINT_BYTES):
        if position >= len(data):
            raise ValueError("the message is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise ValueError("a number has more than 64 bits")
