# SPDX-License-Identifier: Apache-2.0
"""The bodies of answers: read to their end, into the memory of the reader."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
from collections.abc import Iterator

import pytest

from firstread.errors import TransportError
from firstread.oci.model import OCI_LAYER, describe
from firstread.oci.reference import parse_reference
from firstread.registry.api import LEAST_PART
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.testing.serving import QuietHandler, QuietServer, serving
from firstread.units import KiB, MiB

DATA = bytes(range(256)) * (4 * MiB // 256)
BLOB = describe(DATA, OCI_LAYER)
OPTIONS = AccessOptions(plain_http=True, retries=0)


class Server(QuietServer):
    """Gives `DATA`, in chunks if it is told to; counts its connections.

    Attributes:
        packed: whole, with the encoding gzip; None for `DATA` as it is.
        says_gzip: whether it calls that gzip.
        most: bytes of the part of a range that it sends.
        chunked: what it sends of a body in chunks instead, and then again and again.
        lengths: that it states, instead of the right one.
    """

    in_chunks = False
    packed: bytes | None = None
    says_gzip = False
    most = len(DATA)
    chunked: tuple[bytes, bytes] | None = None
    lengths: tuple[str, ...] | None = None
    connections = 0

    def process_request(self, request, address):  # type: ignore[no-untyped-def]
        self.connections += 1
        super().process_request(request, address)


class Handler(QuietHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.server.chunked is not None:
            self._without_end(*self.server.chunked)
            return
        first, last = 0, len(DATA) - 1
        if wanted := self.headers.get("Range", "").removeprefix("bytes="):
            first, last = map(int, wanted.split("-"))
            last = min(last, first + self.server.most - 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(DATA)}")
        data = DATA[first : last + 1]
        if self.server.packed is not None and not wanted:
            data = self.server.packed
        if self.server.says_gzip:
            self.send_header("Content-Encoding", "gzip")
        for length in self.server.lengths or ():
            self.send_header("Content-Length", length)
        if self.server.in_chunks:
            self.send_header("Transfer-Encoding", "chunked")
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
        elif self.server.lengths is None:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.close_connection = True
        self.end_headers()
        self.wfile.write(data)

    def _without_end(self, first: bytes, more: bytes) -> None:
        self.close_connection = True
        self.send_response(200)
        if self.server.says_gzip:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(first)
            while more:
                self.wfile.write(more)


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


@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_range_in_parts(server: Server, in_chunks: bool) -> None:
    """Nothing is tried again: each part is an answer."""
    server.in_chunks, server.most = in_chunks, MiB + 7
    with open_source(parse_reference(reference_of(server)), OPTIONS) as place:
        with place.open_blob(BLOB, offset=5) as stream:
            assert stream.readall() == DATA[5:]
        server.most = LEAST_PART - 1
        with (
            pytest.raises(TransportError, match="too short"),
            place.open_blob(BLOB, offset=5) as stream,
        ):
            stream.readall()


ENDLESS = {
    "minus one is all that comes": (b"-1\r\n", bytes(KiB)),
    "less than nothing": (b"-5\r\n", bytes(KiB)),
    "a sign": (b"+5\r\nhello\r\n", b""),
    "an underscore": (b"1_0\r\n", bytes(KiB)),
    "a prefix": (b"0x5\r\nhello\r\n", b""),
    "no size": (b"\r\n", bytes(KiB)),
    "a size without end": (b"", b"f" * KiB),
    "an extension without end": (b"5;", b"f" * KiB),
    "trailers without end": (b"0\r\n", b"A: b\r\n" * KiB),
    "a trailer without end": (b"0\r\nA: ", b"b" * KiB),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_chunked_coding_that_is_wrong_or_does_not_end(server: Server, name: str) -> None:
    server.chunked = ENDLESS[name]
    with open_source(parse_reference(reference_of(server)), OPTIONS) as place:
        tracemalloc.start()
        try:
            with pytest.raises(TransportError, match="hung up"):
                place.get_manifest()
            with pytest.raises(TransportError, match=r"hung up|too short"):
                place.read_blob(BLOB, len(DATA))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 16 * MiB


def test_a_chunked_coding_with_all_that_it_may_have(server: Server) -> None:
    half = MiB * 2
    chunks = b"".join(
        b'%X ;name="value"\r\n%b\r\n' % (half, DATA[start : start + half])
        for start in range(0, len(DATA), half)
    )
    server.chunked = (chunks + b"000\r\nA: b\r\n\r\n", b"")
    with open_source(parse_reference(reference_of(server)), OPTIONS) as place:
        assert place.read_blob(BLOB, len(DATA)) == DATA


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("lengths", [(), ("x",), ("-1",), (str(len(DATA)),) * 2])
def test_a_blob_of_no_clear_length(
    server: Server, lengths: tuple[str, ...], in_chunks: bool
) -> None:
    server.lengths, server.in_chunks = lengths, in_chunks
    with open_source(parse_reference(reference_of(server)), OPTIONS) as place:
        assert place.read_blob(BLOB, len(DATA)) == DATA


def test_a_length_beside_chunks_does_not_count(server: Server) -> None:
    server.lengths, server.in_chunks = ("3",), True
    with open_source(parse_reference(reference_of(server)), OPTIONS) as place:
        assert place.read_blob(BLOB, len(DATA)) == DATA


@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_blob_that_is_compressed_unasked(server: Server, in_chunks: bool) -> None:
    server.in_chunks, server.says_gzip = in_chunks, True
    server.packed = gzip.compress(DATA)
    with open_source(parse_reference(reference_of(server)), OPTIONS) as place:
        assert place.read_blob(BLOB, len(DATA)) == DATA
        with place.open_blob(BLOB) as stream:
            assert b"".join(iter(lambda: stream.read(7919), b"")) == DATA
        server.packed = server.packed[:-9]
        with pytest.raises(TransportError, match="breaks off"):
            place.read_blob(BLOB, len(DATA))
        server.packed = gzip.compress(DATA, 0).replace(bytes(range(9)), bytes(9))
        with pytest.raises(TransportError, match="damaged"):
            place.read_blob(BLOB, len(DATA))


def test_an_encoding_without_end(server: Server) -> None:
    """Its empty blocks come as fast as a body may, and give no byte of one."""
    begun = gzip.compress(b"")[:10]
    empty = b"\0\0\0\xff\xff" * 20_000
    server.says_gzip = True
    server.chunked = (
        b"%x\r\n%b\r\n" % (len(begun), begun),
        b"%x\r\n%b\r\n" % (len(empty), empty),
    )
    with (
        open_source(parse_reference(reference_of(server)), OPTIONS) as place,
        pytest.raises(TransportError, match="does not end"),
    ):
        place.read_blob(BLOB, len(DATA))


def test_a_store_that_names_the_encoding_of_what_it_keeps(server: Server) -> None:
    server.says_gzip = True
    with open_source(parse_reference(reference_of(server)), OPTIONS) as place:
        assert place.read_blob(BLOB, len(DATA)) == DATA
        with place.open_blob(BLOB, offset=5, length=1000) as stream:
            assert stream.readall() == DATA[5:1005]
