# SPDX-License-Identifier: Apache-2.0
"""One client of an NBD export: negotiation, then its requests, several at a time.

Owns the answers and their order on the wire. A request for present bytes is answered at once;
others wait in tasks of their own, so a sector that comes slowly holds up no request behind it.
Invariants: a reply is whole, or the connection ends; a connection holds one piece of data in
memory, whatever it asks for.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from itertools import islice
from typing import Final

from firstread.errors import FirstreadError
from firstread.export import nbdwire as wire
from firstread.export.diskreads import STEP, DiskReads
from firstread.export.flatdisk import NO_SLOT
from firstread.export.nbdchannel import Channel, PlainChannel
from firstread.export.nbdnegotiation import (
    CONTEXT_ID,
    MAX_REQUEST,
    Export,
    HandshakeError,
    Negotiation,
    Then,
)
from firstread.export.nbdwire import Chunk, Command, Error, Request

log = logging.getLogger("export")

HANDSHAKE_S: Final = 30.0  # from the first byte to the first request
IN_FLIGHT: Final = 64  # requests of a connection; more wait in its socket
DESCRIPTORS: Final = 4096  # of the state of blocks in one answer
_HEAD = 32  # bytes before the data of a piece
_TURN = 32  # requests until others have their turn
_FLAGS = {Command.READ: wire.DONT_FRAGMENT, Command.BLOCK_STATUS: wire.REQUEST_ONE}
_WRITES = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)


class Connection:
    """A client.

    Args:
        channel: to it.
        disk: what it reads.
        export: the same, as it is offered.
        tls: encrypts the connection; None if it stays plain.
    """

    def __init__(
        self, channel: PlainChannel, disk: DiskReads, export: Export, tls: ssl.SSLContext | None
    ) -> None:
        self._plain, self._disk, self._tls = channel, disk, tls
        self._channel: Channel = channel
        self._agreed = Negotiation(export, "required" if tls else "none")
        self._sending = asyncio.Lock()
        self._room = asyncio.Semaphore(IN_FLIGHT)

    async def run(self) -> None:
        """Serve the client until it goes.

        Raises:
            HandshakeError: it does not speak the protocol.
            EOFError: it closed the connection.
            OSError: the connection broke; TimeoutError: it was too slow.
            ExceptionGroup: of these.
        """
        async with asyncio.timeout(HANDSHAKE_S):
            then = await self._negotiate()
        if then is Then.TRANSMISSION:
            self._plain.greedy = True
            self._buffer = memoryview(bytearray(_HEAD + STEP))
            await self._transmit()

    def close(self) -> None:
        """Close the connection at once."""
        self._channel.close()

    async def _negotiate(self) -> Then:
        agreed = self._agreed
        await self._channel.send(agreed.greeting())
        agreed.client_flags(await self._channel.receive(wire.CLIENT_FLAGS.size))
        then = Then.MORE
        while then is Then.MORE:
            option, length = agreed.option_length(await self._channel.receive(wire.OPTION.size))
            data = await self._channel.receive(length) if length else b""
            answer, then = agreed.option(option, data)
            await self._channel.send(answer)
            if then is Then.TLS and self._tls:
                self._channel = await self._plain.over_tls(self._tls)
                then = Then.MORE
        return then

    # -- transmission --------------------------------------------------------------------------

    async def _transmit(self) -> None:
        count = 0
        async with asyncio.TaskGroup() as group:
            while True:
                request = await self._next()
                if request.command == Command.DISCONNECT:
                    return  # the group waits for the answers that are left
                await self._room.acquire()
                if self._is_quick(request):
                    await self._answer(request)
                else:
                    group.create_task(self._answer(request))
                count += 1
                if not count % _TURN:
                    await asyncio.sleep(0)

    async def _next(self) -> Request:
        magic, *fields = wire.REQUEST.unpack(await self._channel.receive(wire.REQUEST.size))
        request = Request(*fields)
        if magic != wire.REQUEST_MAGIC:
            raise HandshakeError("it sent no request")
        if request.command == Command.WRITE:  # its data follows, and nobody wants it
            if request.length > MAX_REQUEST:
                raise HandshakeError("it writes, and too much")
            for start in range(0, request.length, STEP):
                await self._channel.receive(min(STEP, request.length - start))
        return request

    def _is_quick(self, request: Request) -> bool:
        if request.command != Command.READ or self._refusal(request):
            return True
        pieces = self._disk.pieces(request.offset, request.length, holes=True)
        return all(self._disk.is_here(piece) for _, piece in pieces)

    def _refusal(self, request: Request) -> int:
        """Return the error of a request that cannot be answered in another way, or 0."""
        command = request.command
        if command in _WRITES:
            return Error.PERM
        if command not in _FLAGS or request.flags & ~_FLAGS[Command(command)]:
            return Error.INVALID
        is_possible = self._agreed.structured or not request.flags
        if command == Command.READ:
            is_possible = is_possible and request.length <= MAX_REQUEST
        else:
            is_possible = self._agreed.status and request.length > 0
        is_inside = request.offset + request.length <= self._disk.size
        return 0 if is_possible and is_inside else Error.INVALID

    async def _answer(self, request: Request) -> None:
        try:
            if error := self._refusal(request):
                await self._fail(request, error, "this export does not do that")
            elif request.command == Command.BLOCK_STATUS:
                await self._send(self._states(request))
            elif self._agreed.structured and not request.flags & wire.DONT_FRAGMENT:
                await self._read_in_chunks(request)
            else:
                await self._read_whole(request)
        except FirstreadError as exc:
            log.warning("a read of %d bytes at %d fails: %s", request.length, request.offset, exc)
            await self._fail(request, Error.IO, exc.message)
        finally:
            self._room.release()

    async def _fail(self, request: Request, error: int, message: str) -> None:
        if self._agreed.structured:
            await self._send(wire.error_chunk(request.cookie, error, message))
        else:
            await self._send(wire.simple_reply(request.cookie, error))

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            await self._channel.send(data)

    def _states(self, request: Request) -> bytes:
        most = 1 if request.flags & wire.REQUEST_ONE else DESCRIPTORS
        runs = islice(self._disk.runs(request.offset, request.length), most)
        payload = CONTEXT_ID.to_bytes(4, "big") + b"".join(
            (stop - start).to_bytes(4, "big")
            + (0 if is_data else wire.HOLE | wire.ZERO).to_bytes(4, "big")
            for start, stop, is_data in runs
        )
        return wire.chunk(request.cookie, Chunk.BLOCK_STATUS, payload, done=True)

    async def _read_in_chunks(self, request: Request) -> None:
        """Send each piece as it comes; other replies may go between them."""
        cookie, end = request.cookie, request.offset + request.length
        if not request.length:
            await self._send(wire.chunk(cookie, Chunk.NONE, done=True))
        for offset, piece in self._disk.pieces(request.offset, request.length, holes=True):
            done = offset + piece.length == end
            if piece.slot == NO_SLOT:
                await self._send(wire.hole_chunk(cookie, offset, piece.length, done=done))
                continue
            await self._disk.cover(piece)
            async with self._sending:
                await self._disk.read(piece, self._buffer[_HEAD : _HEAD + piece.length])
                head = wire.data_chunk(cookie, offset, piece.length, done=done)
                await self._send_piece(head, piece.length)

    async def _read_whole(self, request: Request) -> None:
        """Send all pieces behind one head, which promises that none will fail."""
        pieces = [
            piece for _, piece in self._disk.pieces(request.offset, request.length, holes=False)
        ]
        for piece in pieces:
            await self._disk.cover(piece)
        cookie, length = request.cookie, request.length
        if self._agreed.structured and length:
            head = wire.data_chunk(cookie, request.offset, length, done=True)
        elif self._agreed.structured:
            head = wire.chunk(cookie, Chunk.NONE, done=True)
        else:
            head = wire.simple_reply(cookie)
        async with self._sending:
            for number, piece in enumerate(pieces):
                try:
                    await self._disk.read(piece, self._buffer[_HEAD : _HEAD + piece.length])
                except FirstreadError as exc:
                    if not number:
                        raise
                    raise ConnectionError(f"a reply cannot be completed: {exc}") from exc
                await self._send_piece(b"" if number else head, piece.length)
            if not pieces:
                await self._channel.send(head)

    async def _send_piece(self, head: bytes, length: int) -> None:
        """Send `head` and the data in the buffer."""
        start = _HEAD - len(head)
        self._buffer[start:_HEAD] = head
        await self._channel.send(self._buffer[start : _HEAD + length])
