# SPDX-License-Identifier: Apache-2.0
"""Each limit of time by itself: connecting, the first byte, the next bytes.

The other limits are long enough that a test which waited for them would be ended.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from firstread.oci.model import OCI_LAYER, describe
from firstread.oci.reference import parse_reference
from firstread.registry.health import KnownEndpoints
from firstread.registry.hosts import Endpoint
from firstread.registry.open import open_endpoints
from firstread.registry.options import AccessOptions
from firstread.testing.patience import PATIENCE_S
from firstread.testing.scripted import ScriptedRegistry

LONG = 3600.0
SHORT = 0.3
PATIENT = AccessOptions(connect_timeout=LONG, first_byte_timeout=LONG, read_timeout=LONG, retries=0)
DATA = bytes(range(256)) * 40
BLOB = describe(DATA, OCI_LAYER)


@contextmanager
def listener(backlog: int = 8) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield server


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Give the address of a server that takes one connection, and does not end it."""
    with listener() as server, ExitStack() as held:

        def serve() -> None:
            connection = held.enter_context(server.accept()[0])
            connection.recv(65536)
            answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(timeout=PATIENCE_S)


@contextmanager
def full() -> Iterator[str]:
    """Give the address of a server that accepts nobody, and has no room for more who wait."""
    with listener(backlog=0) as server, ExitStack() as waiting:
        for _ in range(4):
            sock = waiting.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"


def read_past(first: Endpoint, options: AccessOptions) -> str:
    """Read a blob that only the second endpoint gives; return what the first did wrong."""
    known = KnownEndpoints()
    with ScriptedRegistry() as good:
        good.add_blob(DATA)
        endpoints = [first, Endpoint("http", good.host)]
        reference = parse_reference("r.example/a/b")
        with (
            open_endpoints(reference, endpoints, options, known) as place,
            place.open_blob(BLOB) as stream,
        ):
            assert stream.readall() == DATA
            assert stream.source == good.host
    return str(known.documents()[0]["last_error"])


@pytest.mark.parametrize("of_the_endpoint", [False, True])
def test_a_connection_that_does_not_come_to_stand(of_the_endpoint: bool) -> None:
    options = PATIENT if of_the_endpoint else replace(PATIENT, connect_timeout=SHORT)
    with full() as host:
        first = Endpoint("http", host, dial_timeout=SHORT if of_the_endpoint else None)
        assert "does not answer" in read_past(first, options)


def test_an_answer_that_does_not_begin() -> None:
    options = replace(PATIENT, first_byte_timeout=SHORT)
    with answering(lambda _: None) as host:
        assert "stopped answering" in read_past(Endpoint("http", host), options)


def test_an_answer_that_stalls_in_the_middle() -> None:
    options = replace(PATIENT, read_timeout=SHORT)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
    with answering(lambda connection: connection.sendall(head + DATA[:5000])) as host:
        assert "stopped answering" in read_past(Endpoint("http", host), options)
