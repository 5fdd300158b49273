# SPDX-License-Identifier: Apache-2.0
"""The bodies of answers: read to their end, into the memory of the reader."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from firstread.oci.model import OCI_LAYER, describe
from firstread.oci.reference import parse_reference
from firstread.registry.open import AccessOptions, open_source
from firstread.testing.serving import serving
from firstread.units import KiB, MiB

DATA = bytes(range(256)) * (4 * MiB // 256)
BLOB = describe(DATA, OCI_LAYER)
OPTIONS = AccessOptions(plain_http=True, retries=0)


class Server(ThreadingHTTPServer):
    """Gives `DATA`, in chunks if it is told to; counts its connections."""

    daemon_threads = True
    in_chunks = False
    connections = 0

    def process_request(self, request, address):  # type: ignore[no-untyped-def]
        self.connections += 1
        super().process_request(request, address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        first, last = 0, len(DATA) - 1
        if wanted := self.headers.get("Range", "").removeprefix("bytes="):
            first, last = map(int, wanted.split("-"))
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(DATA)}")
        data = DATA[first : last + 1]
        if self.server.in_chunks:
            self.send_header("Transfer-Encoding", "chunked")
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server(("127.0.0.1", 0), Handler)) as running:
        yield running


def reference_of(server: Server) -> str:
    return f"127.0.0.1:{server.server_address[1]}/a/b"


@pytest.mark.parametrize("in_chunks", [False, True])
def test_ranges_come_whole_and_leave_the_connection_to_the_next(
    server: Server, in_chunks: bool
) -> None:
    server.in_chunks = in_chunks
    length, found = MiB - 1, b""
    with open_source(parse_reference(reference_of(server)), OPTIONS) as place:
        while len(found) < len(DATA):
            count = min(length, len(DATA) - len(found))
            with place.open_blob(BLOB, offset=len(found), length=count) as stream:
                found += stream.readall()
    assert found == DATA
    assert server.connections == 1 or in_chunks  # nothing says how much is left of those


def test_a_body_takes_no_memory_beside_that_of_its_reader(server: Server) -> None:
    buffer = memoryview(bytearray(len(DATA)))
    with (
        open_source(parse_reference(reference_of(server)), OPTIONS) as place,
        place.open_blob(BLOB) as stream,
    ):
        tracemalloc.start()
        try:
            assert stream.readinto(buffer) == len(DATA)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert buffer == DATA
    assert peak < 512 * KiB
