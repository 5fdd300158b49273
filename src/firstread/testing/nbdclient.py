# SPDX-License-Identifier: Apache-2.0
"""A blocking NBD client that says whatever a test wants, and a server for it.

Owns one connection, and the reading of replies of both kinds. Knows nothing of what is right.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from firstread.device import nbdwire as wire
from firstread.device.nbdwire import Chunk, Command, Option
from firstread.export.diskreads import DiskReads
from firstread.export.flatdisk import FlatDisk
from firstread.export.nbdnegotiation import Export
from firstread.export.nbdserver import Server
from firstread.export.sectorfeed import SectorFeed
from firstread.oci.repository import Repository
from firstread.sectors.image import BlockImage
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.patience import PATIENCE_S


class Answer(NamedTuple):
    """A reply to a request: its error, or what came."""

    error: int
    data: bytes = b""
    chunks: tuple[Chunk, ...] = ()


class NbdClient:
    """A connection. A context manager.

    Args:
        connection: to the server.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.socket = connection
        self.structured = False
        self._cookie = 0

    @classmethod
    def connect(cls, path: Path) -> Self:
        """Connect to a Unix socket, and say what every client says."""
        client = cls(socket.socket(socket.AF_UNIX))
        try:
            client.socket.connect(str(path))
            assert client.receive(18)[:8] == wire.NBD_MAGIC
            client.socket.sendall(wire.CLIENT_FLAGS.pack(wire.FIXED_NEWSTYLE | wire.NO_ZEROES))
        except BaseException:
            client.socket.close()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def receive(self, count: int) -> bytes:
        """Return `count` bytes. Raises EOFError if the server closes before."""
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; return the replies to it, as type and data."""
        self.socket.sendall(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
        replies = []
        while True:
            _, named, kind, length = wire.OPTION_REPLY.unpack(self.receive(20))
            assert named == option
            replies.append((kind, self.receive(length)))
            if kind == wire.Reply.ACK or kind >> 31:
                return replies

    def go(self, *, structured: bool = True, status: bool = False, name: bytes = b"") -> int:
        """Agree on an export; return its size."""
        if structured:
            assert self.option(Option.STRUCTURED_REPLY) == [(wire.Reply.ACK, b"")]
            self.structured = True
        if status:
            query = string(name) + struct.pack(">I", 1) + string(b"base:allocation")
            assert len(self.option(Option.SET_META_CONTEXT, query)) == 2
        replies = self.option(Option.GO, string(name) + bytes(2))
        assert replies[-1] == (wire.Reply.ACK, b"")
        size, _ = wire.EXPORT.unpack(replies[0][1][2:])
        return int(size)

    def ask(self, command: int, offset: int, length: int, flags: int = 0) -> int:
        """Send a request; return its cookie."""
        self._cookie += 1
        self.socket.sendall(
            wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        )
        return self._cookie

    def request(self, command: int, offset: int, length: int, flags: int = 0) -> Answer:
        """Send a request and return its reply, the only one that is due."""
        cookie = self.ask(command, offset, length, flags)
        if self.structured:
            return self._chunks(cookie, offset, length)
        magic, error, named = wire.SIMPLE_REPLY.unpack(self.receive(16))
        assert (magic, named) == (wire.SIMPLE_MAGIC, cookie)
        has_data = command == Command.READ and not error
        return Answer(error, self.receive(length) if has_data else b"")

    def read(self, offset: int, length: int, flags: int = 0) -> Answer:
        """Read a range."""
        return self.request(Command.READ, offset, length, flags)

    def states(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        """Return bytes and state of each run of blocks."""
        answer = self.request(Command.BLOCK_STATUS, offset, length, flags)
        assert not answer.error
        return list(struct.iter_unpack(">II", answer.data[4:]))

    def _chunks(self, cookie: int, offset: int, length: int) -> Answer:
        data = bytearray(min(length, 1 << 28))  # what is refused can be longer
        kinds, error, flags = [], 0, 0
        while not flags & wire.REPLY_DONE:
            magic, flags, kind, named, size = wire.CHUNK.unpack(self.receive(20))
            assert (magic, named) == (wire.CHUNK_MAGIC, cookie)
            payload = self.receive(size)
            kinds.append(Chunk(kind))
            if kind == Chunk.ERROR:
                (error,) = struct.unpack_from(">I", payload)
            elif kind == Chunk.OFFSET_DATA:
                start = int.from_bytes(payload[:8], "big") - offset
                data[start : start + size - 8] = payload[8:]
            elif kind == Chunk.BLOCK_STATUS:
                data = bytearray(payload)
        return Answer(error, b"" if error else bytes(data), tuple(kinds))


def string(text: bytes) -> bytes:
    """Return a string behind its length."""
    return struct.pack(">I", len(text)) + text


@contextlib.contextmanager
def serving(
    repository: Repository,
    image: BlockImage,
    root: Path,
    *,
    stall_s: float = 300.0,
) -> Iterator[Path]:
    """Serve an image in a thread; yield the path of the socket.

    Args:
        repository: has the sectors.
        image: the converted image.
        root: directory of the store and the socket.
        stall_s: how long a read waits for a failing source.
    """
    place = root / "nbd"
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(SectorStore(root / "store", filesystems=None))
        store.claim()
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(place))
        stack.callback(place.unlink)
        listener.listen()
        feed = SectorFeed(repository, image, store, stall_s)
        stack.callback(feed.close)
        disk = FlatDisk(image.erofs)
        server = Server(DiskReads(disk, feed), Export(disk.size, "an image"), None)
        stack.enter_context(server.accepting([listener]))
        yield place
