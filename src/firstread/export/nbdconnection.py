# SPDX-License-Identifier: Apache-2.0
"""One client of an NBD export: negotiation, then its requests, several at a time.

Owns the answers and their order on the wire. The thread that receives answers requests for present
bytes at once. Others wait without a thread, and a second thread answers them as their sectors
come, so a slow sector holds up no request behind it. Invariants: a reply is whole, or the
connection ends; a connection holds one piece of data in memory, whatever it asks for.
"""

from __future__ import annotations

import logging
import queue
import ssl
import threading
import time
from itertools import islice
from typing import Final

from firstread.device import nbdwire as wire
from firstread.device.nbdwire import Chunk, Command, Error, Request
from firstread.erofs.extents import NO_SLOT
from firstread.errors import FirstreadError
from firstread.export.diskreads import STEP, DiskReads, Reader
from firstread.export.nbdchannel import Channel
from firstread.export.nbdnegotiation import (
    CONTEXT_ID,
    MAX_REQUEST,
    Export,
    HandshakeError,
    Negotiation,
    Then,
)

log = logging.getLogger("export")

HANDSHAKE_S: Final = 30.0  # from the first byte to the first request
IN_FLIGHT: Final = 64  # requests of a connection; more wait in its socket
DESCRIPTORS: Final = 4096  # of the state of blocks in one answer
_HEAD = 32  # bytes before the data of a piece
_FLAGS: dict[int, int] = {
    Command.READ: wire.DONT_FRAGMENT,
    Command.BLOCK_STATUS: wire.REQUEST_ONE,
}
_WRITES = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)


class Connection:
    """A client.

    Args:
        channel: to it; owned.
        disk: what it reads.
        export: the same, as it is offered.
        tls: encrypts the connection; None if it stays plain.
    """

    def __init__(
        self, channel: Channel, disk: DiskReads, export: Export, tls: ssl.SSLContext | None
    ) -> None:
        self._channel, self._disk, self._tls = channel, disk, tls
        self._agreed = Negotiation(export, "required" if tls else "none")
        self._reader = Reader(disk)
        self._sending = threading.Lock()  # of the reader, the buffer, and what is sent
        self._room = threading.Semaphore(IN_FLIGHT)
        self._ready: queue.SimpleQueue[tuple[Request, FirstreadError | None] | None]
        self._ready = queue.SimpleQueue()
        self._later: threading.Thread | None = None

    def run(self) -> None:
        """Serve the client until it goes, or until `shut`.

        Raises:
            HandshakeError: it does not speak the protocol.
            EOFError: it closed the connection.
            OSError: the connection broke; TimeoutError: it was too slow.
        """
        try:
            self._channel.receive_until(time.monotonic() + HANDSHAKE_S)
            if self._negotiate() is not Then.TRANSMISSION:
                return
            self._channel.receive_until(None)
            self._channel.greedy = True
            self._buffer = memoryview(bytearray(_HEAD + STEP))
            try:
                self._transmit()
            except BaseException:
                self._channel.shut()
                raise
            finally:
                if self._later is not None:
                    self._ready.put(None)
                    self._later.join()
        finally:
            self._disk.feed.forget(self)
            self._reader.close()
            self._channel.close()

    def shut(self) -> None:
        """End the connection, from another thread."""
        self._channel.shut()

    def _negotiate(self) -> Then:
        agreed = self._agreed
        self._channel.send(agreed.greeting())
        agreed.client_flags(self._channel.receive(wire.CLIENT_FLAGS.size))
        then = Then.MORE
        while then is Then.MORE:
            option, length = agreed.option_length(self._channel.receive(wire.OPTION.size))
            answer, then = agreed.option(option, self._channel.receive(length))
            self._channel.send(answer)
            if then is Then.TLS and self._tls:
                self._channel = self._channel.over_tls(self._tls)
                then = Then.MORE
        return then

    # -- transmission --------------------------------------------------------------------------

    def _transmit(self) -> None:
        while True:
            request = self._next()
            if request.command == Command.DISCONNECT:
                for _ in range(IN_FLIGHT):
                    self._room.acquire()  # the answers that are left
                return
            is_read = request.command == Command.READ and not self._refusal(request)
            if not is_read or self._disk.is_here(request.offset, request.length):
                self._answer(request)
            else:
                self._room.acquire()
                self._wait_for(request)

    def _next(self) -> Request:
        magic, *fields = wire.REQUEST.unpack(self._channel.receive(wire.REQUEST.size))
        request = Request(*fields)
        if magic != wire.REQUEST_MAGIC:
            raise HandshakeError("it sent no request")
        if request.command == Command.WRITE:  # its data follows, and nobody wants it
            if request.length > MAX_REQUEST:
                raise HandshakeError("it writes, and too much")
            for start in range(0, request.length, STEP):
                self._channel.receive(min(STEP, request.length - start))
        return request

    def _refusal(self, request: Request) -> int:
        """Return the error of a request that cannot be answered in another way, or 0."""
        command = request.command
        if command in _WRITES:
            return Error.PERM
        if command not in _FLAGS or request.flags & ~_FLAGS[command]:
            return Error.INVALID
        is_possible = self._agreed.structured or not request.flags
        if command == Command.READ:
            is_possible = is_possible and request.length <= MAX_REQUEST
        else:
            is_possible = self._agreed.status and request.length > 0
        is_inside = request.offset + request.length <= self._disk.size
        return 0 if is_possible and is_inside else Error.INVALID

    def _wait_for(self, request: Request) -> None:
        """Answer a request when its bytes are here."""
        if self._later is None:
            later = threading.Thread(target=self._answer_later, name="nbd", daemon=True)
            later.start()
            self._later = later
        ready = self._ready
        offset, length = request.offset, request.length
        self._disk.ask(self, offset, length, lambda error: ready.put((request, error)))

    def _answer_later(self) -> None:
        while (item := self._ready.get()) is not None:
            try:
                self._answer(*item)
            except OSError:
                self._channel.shut()  # the other thread says why
            except BaseException:
                self._channel.shut()
                raise
            finally:
                self._room.release()

    def _answer(self, request: Request, error: FirstreadError | None = None) -> None:
        try:
            if error is not None:
                raise error
            if refusal := self._refusal(request):
                self._fail(request, refusal, "this export does not do that")
            elif request.command == Command.BLOCK_STATUS:
                self._send(self._states(request))
            elif self._agreed.structured and not request.flags & wire.DONT_FRAGMENT:
                self._read_in_chunks(request)
            else:
                self._read_whole(request)
        except FirstreadError as exc:
            log.warning("a read of %d bytes at %d fails: %s", request.length, request.offset, exc)
            self._fail(request, Error.IO, exc.message)

    def _fail(self, request: Request, error: int, message: str) -> None:
        if self._agreed.structured:
            self._send(wire.error_chunk(request.cookie, error, message))
        else:
            self._send(wire.simple_reply(request.cookie, error))

    def _send(self, data: bytes) -> None:
        with self._sending:
            self._channel.send(data)

    def _states(self, request: Request) -> bytes:
        most = 1 if request.flags & wire.REQUEST_ONE else DESCRIPTORS
        runs = islice(self._disk.map.runs(request.offset, request.length), most)
        payload = CONTEXT_ID.to_bytes(4, "big") + b"".join(
            (stop - start).to_bytes(4, "big")
            + (0 if is_data else wire.HOLE | wire.ZERO).to_bytes(4, "big")
            for start, stop, is_data in runs
        )
        return wire.chunk(request.cookie, Chunk.BLOCK_STATUS, payload, done=True)

    def _read_in_chunks(self, request: Request) -> None:
        """Send each piece in a chunk; those of other replies may come between them."""
        cookie, end = request.cookie, request.offset + request.length
        if not request.length:
            self._send(wire.chunk(cookie, Chunk.NONE, done=True))
        for offset, piece in self._disk.pieces(request.offset, request.length, holes=True):
            done = offset + piece.length == end
            if piece.slot == NO_SLOT:
                self._send(wire.hole_chunk(cookie, offset, piece.length, done=done))
                continue
            with self._sending:
                self._reader.read(piece, self._buffer[_HEAD : _HEAD + piece.length])
                self._send_piece(
                    wire.data_chunk(cookie, offset, piece.length, done=done), piece.length
                )

    def _read_whole(self, request: Request) -> None:
        """Send all pieces behind one head, which promises that none will fail."""
        cookie, length = request.cookie, request.length
        if not self._agreed.structured:
            head = wire.simple_reply(cookie)
        elif length:
            head = wire.data_chunk(cookie, request.offset, length, done=True)
        else:
            head = wire.chunk(cookie, Chunk.NONE, done=True)
        with self._sending:
            begun = False
            for _, piece in self._disk.pieces(request.offset, length, holes=False):
                try:
                    self._reader.read(piece, self._buffer[_HEAD : _HEAD + piece.length])
                except FirstreadError as exc:
                    if not begun:
                        raise
                    raise ConnectionError(f"a reply cannot be completed: {exc}") from exc
                self._send_piece(b"" if begun else head, piece.length)
                begun = True
            if not begun:
                self._channel.send(head)

    def _send_piece(self, head: bytes, length: int) -> None:
        """Send `head` and the data in the buffer."""
        start = _HEAD - len(head)
        self._buffer[start:_HEAD] = head
        self._channel.send(self._buffer[start : _HEAD + length])
