# SPDX-License-Identifier: Apache-2.0
"""What client and server of an NBD export agree on before the first read. Pure.

Owns the options and their order: fixed newstyle, TLS first where it is required, one export, which
has the empty name and the name of its image. Invariants: nothing about the export leaves before TLS
where TLS is required; any bytes give a reply or a `HandshakeError`.

Source: NetworkBlockDevice/nbd ``doc/proto.md``, "Fixed newstyle negotiation".
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from struct import Struct, unpack_from
from typing import Final, Literal

from firstread.device import nbdwire as wire
from firstread.device.nbdwire import Info, Option, Reply

MAX_OPTION_BYTES: Final = 16 * 1024  # names and strings have 4096 bytes at most
MAX_OPTIONS: Final = 64  # until transmission; clients send some five
MAX_REQUEST: Final = 32 * 1024 * 1024  # bytes of a read; what clients take for granted
PREFERRED: Final = 4096  # bytes: a block of EROFS
CONTEXT: Final = b"base:allocation"
CONTEXT_ID: Final = 1

_BLOCK_SIZES = Struct(">HIII")


class HandshakeError(Exception):
    """The client does not speak the protocol, or goes too far."""


class Then(enum.Enum):
    """What follows an answer."""

    MORE = enum.auto()  # another option
    TLS = enum.auto()  # the handshake of TLS, then more
    TRANSMISSION = enum.auto()
    CLOSE = enum.auto()


@dataclass(frozen=True)
class Export:
    """The one thing that a server offers.

    Args:
        size: bytes.
        name: of the image; the empty name is served as well.
    """

    size: int
    name: str


class Negotiation:
    """The state of one connection before transmission.

    Args:
        export: what is served.
        tls: whether the connection can be, or has to be, encrypted.

    Attributes:
        structured: replies are structured.
        status: the client may ask for the state of blocks.
    """

    def __init__(self, export: Export, tls: Literal["none", "required"]) -> None:
        self.structured = self.status = False
        self._export, self._tls_left = export, tls == "required"
        self._names = {b"", export.name.encode()}
        self._is_encrypted = self._no_zeroes = False
        self._context_of: bytes | None = None  # the export whose blocks' state was asked for
        self._options = 0

    @staticmethod
    def greeting() -> bytes:
        """Return what the server sends first."""
        flags = wire.FIXED_NEWSTYLE | wire.NO_ZEROES
        return wire.GREETING.pack(wire.NBD_MAGIC, wire.OPTION_MAGIC, flags)

    def client_flags(self, data: bytes) -> None:
        """Take the flags of the client."""
        (flags,) = wire.CLIENT_FLAGS.unpack(data)
        if flags & ~(wire.FIXED_NEWSTYLE | wire.NO_ZEROES) or not flags & wire.FIXED_NEWSTYLE:
            raise HandshakeError(f"it has the flags {flags:#x}")
        self._no_zeroes = bool(flags & wire.NO_ZEROES)

    def option_length(self, head: bytes) -> tuple[int, int]:
        """Return the option that `head` announces, and the bytes that follow it."""
        magic, option, length = wire.OPTION.unpack(head)
        self._options += 1
        if magic != wire.OPTION_MAGIC or length > MAX_OPTION_BYTES or self._options > MAX_OPTIONS:
            raise HandshakeError("it sent no option, or too long or too many ones")
        return option, length

    def option(self, option: int, data: bytes) -> tuple[bytes, Then]:
        """Return the answer to an option, and what follows it."""
        if option == Option.ABORT:
            return _reply(option, Reply.ACK), Then.CLOSE
        if self._tls_left and option != Option.STARTTLS:
            if option == Option.EXPORT_NAME:
                raise HandshakeError("it does not use TLS")
            return _reply(option, Reply.TLS_REQUIRED), Then.MORE
        try:
            return self._answer(option, data)
        except (_InvalidError, struct.error) as exc:
            if option == Option.EXPORT_NAME:
                raise HandshakeError("it asks for an export that does not exist") from exc
            kind = exc.args[0] if isinstance(exc, _InvalidError) else Reply.INVALID
            return _reply(option, kind), Then.MORE

    def _answer(self, option: int, data: bytes) -> tuple[bytes, Then]:
        if option == Option.EXPORT_NAME:
            self._choose(data)
            zeros = b"" if self._no_zeroes else bytes(124)
            return wire.EXPORT.pack(self._export.size, self._flags()) + zeros, Then.TRANSMISSION
        if option in (Option.INFO, Option.GO):
            return self._info(option, data)
        if option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            return self._contexts(option, data), Then.MORE
        if option not in (Option.LIST, Option.STARTTLS, Option.STRUCTURED_REPLY):
            return _reply(option, Reply.UNSUPPORTED), Then.MORE
        if data:
            raise _InvalidError(Reply.INVALID)
        if option == Option.STARTTLS:
            return self._starttls()
        if option == Option.STRUCTURED_REPLY:
            self.structured = True
            return _reply(option, Reply.ACK), Then.MORE
        listed = _reply(option, Reply.SERVER, bytes(4) + self._export.name.encode())
        return listed + _reply(option, Reply.ACK), Then.MORE

    def _starttls(self) -> tuple[bytes, Then]:
        if not self._tls_left:
            refusal = Reply.INVALID if self._is_encrypted else Reply.POLICY
            return _reply(Option.STARTTLS, refusal), Then.MORE
        self._tls_left, self._is_encrypted = False, True
        return _reply(Option.STARTTLS, Reply.ACK), Then.TLS

    def _info(self, option: int, data: bytes) -> tuple[bytes, Then]:
        name, rest = _string(data)
        (count,) = unpack_from(">H", rest)
        if len(rest) != 2 + 2 * count:
            raise _InvalidError(Reply.INVALID)
        self._choose(name)
        asked = set(unpack_from(f">{count}H", rest, 2))
        texts = {Info.NAME: name, Info.DESCRIPTION: self._export.name.encode()}
        infos = [
            Info.EXPORT.to_bytes(2, "big") + wire.EXPORT.pack(self._export.size, self._flags()),
            _BLOCK_SIZES.pack(Info.BLOCK_SIZE, 1, PREFERRED, MAX_REQUEST),
            *(kind.to_bytes(2, "big") + text for kind, text in texts.items() if kind in asked),
        ]
        replies = b"".join(_reply(option, Reply.INFO, info) for info in infos)
        then = Then.TRANSMISSION if option == Option.GO else Then.MORE
        return replies + _reply(option, Reply.ACK), then

    def _contexts(self, option: int, data: bytes) -> bytes:
        if option == Option.SET_META_CONTEXT:
            self._context_of = None  # whatever becomes of this request
        name, rest = _string(data)
        (count,) = unpack_from(">I", rest)
        rest = rest[4:]
        queries = []
        while rest:
            query, rest = _string(rest)
            queries.append(query)
        if len(queries) != count or not self.structured:
            raise _InvalidError(Reply.INVALID)
        self._check(name)
        if option == Option.LIST_META_CONTEXT:
            is_asked = not queries or CONTEXT in queries or b"base:" in queries
        else:
            is_asked = CONTEXT in queries
            self._context_of = name if is_asked else None
        number = CONTEXT_ID if option == Option.SET_META_CONTEXT else 0
        found = number.to_bytes(4, "big") + CONTEXT
        listed = _reply(option, Reply.META_CONTEXT, found) if is_asked else b""
        return listed + _reply(option, Reply.ACK)

    def _check(self, name: bytes) -> None:
        if name not in self._names:
            raise _InvalidError(Reply.UNKNOWN)

    def _choose(self, name: bytes) -> None:
        """Take the export that transmission is about; contexts of another one are void."""
        self._check(name)
        self.status = self._context_of == name

    def _flags(self) -> int:
        flags = wire.HAS_FLAGS | wire.READ_ONLY | wire.CAN_MULTI_CONN
        return flags | wire.SEND_DF if self.structured else flags


class _InvalidError(Exception):
    """The data of an option is not valid; the argument is the reply."""


def _string(data: bytes) -> tuple[bytes, bytes]:
    """Return a string that follows its length, and the rest."""
    (length,) = unpack_from(">I", data)
    if length > len(data) - 4:
        raise _InvalidError(Reply.INVALID)
    return data[4 : 4 + length], data[4 + length :]


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return wire.OPTION_REPLY.pack(wire.REPLY_MAGIC, option, kind, len(data)) + data
