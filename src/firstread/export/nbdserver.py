# SPDX-License-Identifier: Apache-2.0
"""Serves the disk of an image over NBD until a signal.

Owns the connections and their number, and the server's side of TLS.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from firstread.errors import UsageError
from firstread.export.diskreads import DiskReads
from firstread.export.flatdisk import FlatDisk
from firstread.export.nbdaddress import Address, listening, uri
from firstread.export.nbdchannel import Channel
from firstread.export.nbdconnection import Connection
from firstread.export.nbdnegotiation import Export, HandshakeError
from firstread.export.sectorfeed import SectorFeed
from firstread.oci.repository import Repository
from firstread.sectors.image import BlockImage
from firstread.sectors.sectorstore import SectorStore
from firstread.signals import ending_on_signals

log = logging.getLogger("export")

MAX_CONNECTIONS: Final = 64
_END_S = 5.0  # for all threads of clients to end
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
    """Serve an image until SIGTERM, SIGINT or SIGHUP.

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
    with contextlib.ExitStack() as stack:
        listeners = stack.enter_context(listening(address, encrypted=context is not None))
        await_end = stack.enter_context(ending_on_signals())
        feed = SectorFeed(repository, image, store, stall_s)
        export = Export(disk.size, str(repository.reference))
        stack.enter_context(Server(DiskReads(disk, feed), export, context).accepting(listeners))
        stack.callback(feed.close)  # first: clients wait for it
        addresses = (uri(address, each, encrypted=context is not None) for each in listeners)
        on_ready(list(dict.fromkeys(addresses)), disk.size)
        await_end()
    log.info("stopped after %d bytes of sectors had come", feed.fetched)


class Server:
    """Accepts clients of one export, each with a thread of its own.

    Args:
        disk: what they read.
        export: the same, as it is offered.
        tls: encrypts all connections; None leaves them plain.
    """

    def __init__(self, disk: DiskReads, export: Export, tls: ssl.SSLContext | None) -> None:
        self._disk, self._export, self._tls = disk, export, tls
        self._clients: dict[Connection, threading.Thread] = {}
        self._lock = threading.Lock()
        self._is_closing = False

    @contextlib.contextmanager
    def accepting(self, listeners: list[socket.socket]) -> Iterator[None]:
        """Accept clients during the block; end all connections afterwards."""
        threads = [
            threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True)
            for listener in listeners
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._is_closing = True
                clients = dict(self._clients)
            for listener in listeners:
                listener.shutdown(socket.SHUT_RDWR)
            for client in clients:
                client.shut()
            until = time.monotonic() + _END_S
            for thread in [*threads, *clients.values()]:
                thread.join(max(0.0, until - time.monotonic()))

    def _accept(self, listener: socket.socket) -> None:
        while not self._is_closing:
            try:
                connection, _ = listener.accept()
            except OSError as exc:
                self._failed(exc)
                continue
            try:
                self._begin(connection)
            except (OSError, RuntimeError) as exc:  # such as too many threads
                connection.close()
                self._failed(exc)

    def _failed(self, error: Exception) -> None:
        if not self._is_closing:
            log.warning("cannot accept a client: %s", error)
            time.sleep(_PAUSE_S)

    def _begin(self, connection: socket.socket) -> None:
        with self._lock:
            if self._is_closing or len(self._clients) >= MAX_CONNECTIONS:
                log.warning("there are %d clients: a new one is refused", len(self._clients))
                connection.close()
                return
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client = Connection(Channel(connection), self._disk, self._export, self._tls)
            thread = threading.Thread(target=self._serve, args=(client,), name="nbd", daemon=True)
            thread.start()
            self._clients[client] = thread

    def _serve(self, client: Connection) -> None:
        try:
            client.run()
        except EOFError:
            pass  # it has gone
        except (HandshakeError, OSError) as exc:
            log.info("a client is left: %s", str(exc) or "it is too slow")
        finally:
            with self._lock:
                del self._clients[client]


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
