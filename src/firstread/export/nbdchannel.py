# SPDX-License-Identifier: Apache-2.0
"""The bytes of a connection, plain or over TLS, with limits on the time that a peer may take.

Owns the change from plain to TLS. Invariant: no byte that came before it counts as one that came
through it, since the plain side takes no more from the socket than it is asked for until then.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from abc import ABC, abstractmethod
from typing import Final

PATIENCE_S: Final = 30.0  # for the rest of a message that has begun, or for a piece to be taken
_TAKEN = 64 * 1024  # bytes at a time in transmission: many requests


class Channel(ABC):
    """A connection."""

    @abstractmethod
    async def receive(self, count: int) -> bytes:
        """Return the next `count` bytes; wait for the first as long as it takes.

        Raises:
            EOFError: the peer has closed the connection.
            TimeoutError: the rest does not come.
            OSError: the connection broke.
        """

    @abstractmethod
    async def send(self, data: memoryview | bytes) -> None:
        """Send all of `data`, which may change afterwards.

        Raises:
            TimeoutError: the peer does not take it.
            OSError: the connection broke.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection at once."""


class PlainChannel(Channel):
    """A socket.

    Args:
        connection: of the client.

    Attributes:
        greedy: take what comes, however little is asked for.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self.greedy = False

    async def receive(self, count: int) -> bytes:
        while (missing := count - len(self._buffer)) > 0:
            most = max(missing, _TAKEN) if self.greedy else missing
            async with asyncio.timeout(PATIENCE_S if self._buffer else None):
                data = await self._loop.sock_recv(self._socket, most)
            if not data:
                raise EOFError
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def send(self, data: memoryview | bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._loop.sock_sendall(self._socket, data)

    def close(self) -> None:
        self._socket.close()

    async def over_tls(self, context: ssl.SSLContext) -> Channel:
        """Shake hands; return the encrypted channel, which owns the socket.

        Raises:
            OSError: the client has no acceptable certificate, or does not speak TLS.
        """
        reader = asyncio.StreamReader(limit=_TAKEN, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        transport, _ = await self._loop.connect_accepted_socket(
            lambda: protocol, self._socket, ssl=context, ssl_handshake_timeout=PATIENCE_S
        )
        return _TlsChannel(reader, asyncio.StreamWriter(transport, protocol, reader, self._loop))


class _TlsChannel(Channel):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def receive(self, count: int) -> bytes:
        data = await self._reader.read(count)
        if not data:
            raise EOFError
        if len(data) < count:
            async with asyncio.timeout(PATIENCE_S):
                data += await self._reader.readexactly(count - len(data))
        return data

    async def send(self, data: memoryview | bytes) -> None:
        self._writer.write(bytes(data))  # a copy: the transport may keep it
        async with asyncio.timeout(PATIENCE_S):
            await self._writer.drain()

    def close(self) -> None:
        self._writer.transport.abort()
