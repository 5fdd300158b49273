# SPDX-License-Identifier: Apache-2.0
"""The messages of the NBD protocol: layouts and numbers, no I/O.

Owns what a server for reading needs of them: that of an export, or of a device. All numbers are
big-endian.
Source: NetworkBlockDevice/nbd ``doc/proto.md`` (newstyle negotiation, structured replies, metadata
contexts).
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final, NamedTuple

GREETING = Struct(">8sQH")  # "NBDMAGIC", OPTION_MAGIC, handshake flags
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")  # OPTION_MAGIC, option, bytes that follow
OPTION_REPLY = Struct(">QIII")  # REPLY_MAGIC, option, type, bytes that follow
EXPORT = Struct(">QH")  # bytes, transmission flags
REQUEST = Struct(">IHHQQI")  # REQUEST_MAGIC, flags, command, cookie, offset, length
SIMPLE_REPLY = Struct(">IIQ")  # SIMPLE_MAGIC, error, cookie
CHUNK = Struct(">IHHQI")  # CHUNK_MAGIC, flags, type, cookie, bytes that follow

NBD_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF

FIXED_NEWSTYLE: Final = 1  # handshake flags, of both sides
NO_ZEROES: Final = 2

HAS_FLAGS, READ_ONLY, SEND_DF, CAN_MULTI_CONN = 1 << 0, 1 << 1, 1 << 7, 1 << 8  # of transmission

REPLY_DONE: Final = 1
HOLE, ZERO = 1, 2  # states of base:allocation
DONT_FRAGMENT, REQUEST_ONE = 1 << 2, 1 << 3  # flags of commands


class Option(enum.IntEnum):
    """What a client asks for before transmission."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(enum.IntEnum):
    """What a server answers to that."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    UNSUPPORTED = 1 << 31 | 1
    POLICY = 1 << 31 | 2
    INVALID = 1 << 31 | 3
    TLS_REQUIRED = 1 << 31 | 5
    UNKNOWN = 1 << 31 | 6


class Info(enum.IntEnum):
    """What a server tells about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(enum.IntEnum):
    """What a client asks for in transmission."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class Chunk(enum.IntEnum):
    """Types of the chunks of a structured reply."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 1 << 15 | 1


class Error(enum.IntEnum):
    """Errors of a request."""

    PERM = 1
    IO = 5
    INVALID = 22


class Request(NamedTuple):
    """A command of a client.

    Args:
        flags: of the command.
        command: a `Command`, or any other number.
        cookie: names the request in its reply.
        offset: on the disk.
        length: bytes.
    """

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """Return a simple reply; the data of a read follows one without an error."""
    return SIMPLE_REPLY.pack(SIMPLE_MAGIC, error, cookie)


def chunk(cookie: int, kind: Chunk, payload: bytes = b"", *, more: int = 0, done: bool) -> bytes:
    """Return a chunk of a structured reply.

    Args:
        cookie: of the request.
        kind: of the chunk.
        payload: what follows its head.
        more: bytes that the caller sends behind `payload`.
        done: it is the last one of the reply.
    """
    flags = REPLY_DONE if done else 0
    return CHUNK.pack(CHUNK_MAGIC, flags, kind, cookie, len(payload) + more) + payload


def error_chunk(cookie: int, error: int, message: str) -> bytes:
    """Return the last chunk of a structured reply that failed; cuts a long message."""
    text = message.encode(errors="replace")[:1000]
    payload = error.to_bytes(4, "big") + len(text).to_bytes(2, "big") + text
    return chunk(cookie, Chunk.ERROR, payload, done=True)


def data_chunk(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """Return the head of a chunk with `length` bytes of data, which follow it."""
    return chunk(cookie, Chunk.OFFSET_DATA, offset.to_bytes(8, "big"), more=length, done=done)


def hole_chunk(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """Return a chunk that stands for zeros."""
    payload = offset.to_bytes(8, "big") + length.to_bytes(4, "big")
    return chunk(cookie, Chunk.OFFSET_HOLE, payload, done=done)
