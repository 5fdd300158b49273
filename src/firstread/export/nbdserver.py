# SPDX-License-Identifier: Apache-2.0
"""Serves the disk of an image over NBD until a signal.

Owns the connections and their number, and the server's side of TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

from firstread.errors import UsageError
from firstread.export.diskreads import DiskReads
from firstread.export.flatdisk import FlatDisk
from firstread.export.nbdaddress import Address, listening, uri
from firstread.export.nbdchannel import PlainChannel
from firstread.export.nbdconnection import Connection
from firstread.export.nbdnegotiation import Export, HandshakeError
from firstread.export.sectorfeed import SectorFeed
from firstread.oci.repository import Repository
from firstread.sectors.image import BlockImage
from firstread.sectors.sectorstore import SectorStore

log = logging.getLogger("export")

MAX_CONNECTIONS: Final = 64
_PAUSE_S = 0.2  # after an accept that failed, such as for want of descriptors


def serve_image(
    repository: Repository,
    image: BlockImage,
    store: SectorStore,
    address: Address,
    *,
    tls_dir: Path | None,
    stall_s: float,
    on_ready: Callable[[list[str], int], None],
) -> None:
    """Serve an image until SIGTERM or SIGINT.

    Args:
        repository: has the sectors.
        image: the converted image.
        store: keeps them; claimed.
        address: to listen on.
        tls_dir: with the certificates; None serves plain connections.
        stall_s: how long a read waits for a failing source.
        on_ready: called once clients can connect, with their addresses for it, and the disk's size.

    Raises:
        UsageError: the address or the certificates are no good.
        ImageError: the metadata is damaged.
        NodeError: the address cannot be listened on.
    """
    context = _tls_context(tls_dir) if tls_dir else None
    disk = FlatDisk(image.erofs)
    with listening(address, encrypted=context is not None) as listeners:

        async def main() -> None:
            feed = SectorFeed(repository, image, store, stall_s)
            export = Export(disk.size, str(repository.reference))
            server = Server(DiskReads(disk, feed), export, context)
            with contextlib.closing(feed), _stopping() as stopped:
                async with server.accepting(listeners):
                    addresses = (uri(address, s, encrypted=context is not None) for s in listeners)
                    on_ready(list(dict.fromkeys(addresses)), disk.size)
                    await stopped.wait()
            log.info("stopped after %d bytes of sectors had come", feed.fetched)

        asyncio.run(main())


class Server:
    """Accepts clients of one export.

    Args:
        disk: what they read.
        export: the same, as it is offered.
        tls: encrypts all connections; None leaves them plain.
    """

    def __init__(self, disk: DiskReads, export: Export, tls: ssl.SSLContext | None) -> None:
        self._disk, self._export, self._tls = disk, export, tls
        self._clients: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def accepting(self, listeners: list[socket.socket]) -> AsyncIterator[None]:
        """Accept clients during the block; end all connections afterwards."""
        accepting = [asyncio.create_task(self._accept(listener)) for listener in listeners]
        try:
            yield
        finally:
            tasks = [*accepting, *self._clients]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as exc:
                log.warning("cannot accept a client: %s", exc)
                await asyncio.sleep(_PAUSE_S)
                continue
            if len(self._clients) >= MAX_CONNECTIONS:
                log.warning("there are %d clients: a new one is refused", MAX_CONNECTIONS)
                connection.close()
                continue
            task = asyncio.create_task(self._serve(connection))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, connection: socket.socket) -> None:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client = Connection(PlainChannel(connection), self._disk, self._export, self._tls)
        try:
            await client.run()
        except* EOFError:
            pass  # it has gone
        except* (HandshakeError, OSError) as group:
            reasons = [str(exc) or "it is too slow" for exc in group.exceptions]
            log.info("a client is left: %s", "; ".join(reasons))
        except* Exception:
            log.exception("a client is left, by a defect of firstread")
        finally:
            client.close()


@contextlib.contextmanager
def _stopping() -> Iterator[asyncio.Event]:
    """Yield what SIGTERM and SIGINT set."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stopped.set)
    try:
        yield stopped
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _tls_context(directory: Path) -> ssl.SSLContext:
    """Return the server's side of TLS, with the names that qemu gives certificates.

    A client needs a certificate of the same authority.

    Raises:
        UsageError: one of the files is missing or no good.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem")
        context.load_verify_locations(directory / "ca-cert.pem")
        if (revoked := directory / "ca-crl.pem").exists():
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"cannot use the certificates in {directory}: {exc}",
            hint="it needs ca-cert.pem, server-cert.pem and server-key.pem, as for qemu",
        ) from exc
    return context
