# SPDX-License-Identifier: Apache-2.0
"""Peers that send little, or nothing, and callers who wait no longer.

A limit that a test waits for is short, and all others are so long that it would be ended.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from firstread.errors import FirstreadError, NotFoundError, TransportError
from firstread.oci.model import OCI_LAYER, describe
from firstread.oci.reference import parse_reference
from firstread.registry.calls import Call, TooSlowError, calling, current, within
from firstread.registry.health import KnownEndpoints
from firstread.registry.hedge import Race
from firstread.registry.hosts import Endpoint
from firstread.registry.open import open_destination, open_endpoints, open_source
from firstread.registry.options import AccessOptions
from firstread.testing.patience import PATIENCE_S

LONG = 3600.0
SHORT = 0.3
PATIENT = AccessOptions(
    connect_timeout=LONG,
    first_byte_timeout=LONG,
    read_timeout=LONG,
    answer_timeout=LONG,
    least_rate=0,
    retries=0,
)
OK = b"HTTP/1.1 200 OK\r\n"
DATA = bytes(range(256)) * 40
BLOB = describe(DATA, OCI_LAYER)


@contextmanager
def peer(head: bytes, drop: bytes = b"") -> Iterator[str]:
    """Give the address of a server that sends `head` to everyone, and then `drop` after `drop`."""
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(head)
                while not over.wait(0.02):
                    connection.sendall(drop)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as threads:

        def serve() -> None:
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                thread = threading.Thread(target=answer, args=(connection,))
                threads.callback(thread.join, PATIENCE_S)
                thread.start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)


def manifest_of(host: str, options: AccessOptions, scheme: str = "http") -> None:
    endpoints = [Endpoint(scheme, host)]
    reference = parse_reference(f"{host}/a/b:1")
    with open_endpoints(reference, endpoints, options, KnownEndpoints()) as place:
        place.get_manifest()


WHOLE = replace(PATIENT, answer_timeout=SHORT)
HEAD = replace(PATIENT, first_byte_timeout=SHORT)
TRICKLED = {
    "a manifest": (OK + b"Content-Length: 4000000\r\n\r\n", b" ", WHOLE),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", WHOLE),
    "a manifest to the end": (OK + b"Connection: close\r\n\r\n", b" ", WHOLE),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n", WHOLE),
    "a manifest below the least rate": (
        OK + b"Content-Length: 4000000\r\n\r\n",
        b" ",
        replace(PATIENT, read_timeout=SHORT, least_rate=1e6),
    ),
    "a status line": (b"HTTP/1.1 ", b"2", HEAD),
    "a header": (OK + b"A: ", b"b", HEAD),
    "headers": (OK, b"A: b\r\n", HEAD),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", HEAD),
}


@pytest.mark.parametrize("what", TRICKLED)
def test_a_trickled_answer_ends(what: str) -> None:
    head, drop, options = TRICKLED[what]
    with peer(head, drop) as host, pytest.raises(TransportError, match="takes too long"):
        manifest_of(host, options)


def test_the_text_of_an_error_that_is_trickled_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.registry.transport.ERROR_S", SHORT)
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4000\r\n\r\n"
    with peer(head, b"x") as host, pytest.raises(FirstreadError, match=r"404 Not Found$"):
        manifest_of(host, PATIENT)


def test_what_nobody_reads_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstread.registry.answer.DRAIN_S", SHORT)
    head = b"HTTP/1.1 307 Moved\r\nLocation: /x\r\nContent-Length: 4000\r\n\r\n"
    with peer(head, b"x") as host, pytest.raises(FirstreadError, match="redirects without end"):
        manifest_of(host, PATIENT)


@pytest.mark.parametrize("rate", [0, 100])
def test_a_blob_that_comes_slowly_but_fast_enough_comes(rate: float) -> None:
    head = OK + f"Content-Length: {len(DATA)}\r\n\r\n".encode()
    options = replace(PATIENT, read_timeout=SHORT, least_rate=rate, answer_timeout=SHORT)
    sent = iter([DATA[i : i + 512] for i in range(0, len(DATA), 512)])

    with pieces(head, sent) as host:
        place = open_source(parse_reference(f"{host}/a/b:1"), options)
        with place, place.open_blob(BLOB) as stream:
            assert stream.readall() == DATA


@contextmanager
def pieces(head: bytes, sent: Iterator[bytes]) -> Iterator[str]:
    """Give the address of a server that sends an answer in pieces, fifty a second."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head)
                for piece in sent:
                    threading.Event().wait(0.02)
                    connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(PATIENCE_S)


def test_a_blob_below_the_least_rate_is_given_up() -> None:
    options = replace(PATIENT, read_timeout=SHORT, least_rate=1e6)
    with peer(OK + f"Content-Length: {len(DATA)}\r\n\r\n".encode(), b" ") as host:
        place = open_source(parse_reference(f"{host}/a/b:1"), options)
        slow = pytest.raises(TransportError, match="takes too long")
        with place, place.open_blob(BLOB) as stream, slow:
            stream.readall()


# Cancelling.


@contextmanager
def full() -> Iterator[str]:
    """Give the address of a server that accepts nobody, and has no room for more who wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as waiting:
        for _ in range(4):
            sock = waiting.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"


def cancelled(work: Callable[[], object]) -> BaseException | None:
    """Do something in a thread, cancel it when it waits, and return what it raised."""
    call = Call()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            with calling(call):
                work()
        except BaseException as exc:  # noqa: BLE001 - the test looks at it
            raised.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(SHORT)
    assert thread.is_alive()
    call.cancel()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    return raised[0] if raised else None


BUSY = b"HTTP/1.1 429 Busy\r\nRetry-After: 50\r\nContent-Length: 0\r\n\r\n"
HANGING = {
    "the handshake": (b"", "https", PATIENT),
    "the head": (b"", "http", PATIENT),
    "the body": (OK + b"Content-Length: 9\r\n\r\n", "http", PATIENT),
    "the text of an error": (
        b"HTTP/1.1 404 No\r\nContent-Length: 99999\r\n\r\n",
        "http",
        PATIENT,
    ),
    "the next attempt": (BUSY, "http", replace(PATIENT, retries=3)),
}


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("what", HANGING)
def test_what_waits_for_a_registry_can_be_cancelled(what: str, reads: bool) -> None:
    head, scheme, options = HANGING[what]
    known = KnownEndpoints()
    with peer(head) as host:
        reference, endpoint = parse_reference(f"{host}/a/b:1"), Endpoint(scheme, host)
        place = (
            open_endpoints(reference, [endpoint], options, known)
            if reads
            else open_destination(reference, replace(options, insecure_tls=scheme == "https"))
        )
        with place:
            error = cancelled(place.get_manifest)
    assert isinstance(error, NotFoundError if what == "the text of an error" else TransportError)
    if reads and what != "the next attempt":
        assert known.documents()[0]["state"] == "healthy"  # it is not to blame


def test_a_connection_that_does_not_come_to_stand_can_be_cancelled() -> None:
    with full() as host:
        error = cancelled(lambda: manifest_of(host, PATIENT))
    assert isinstance(error, TransportError)
    assert "nobody waits" in str(error)


def test_a_stream_can_be_cancelled() -> None:
    with peer(OK + f"Content-Length: {len(DATA)}\r\n\r\n".encode()) as host:
        place = open_source(parse_reference(f"{host}/a/b:1"), replace(PATIENT, retries=9))
        with place:
            assert isinstance(cancelled(lambda: place.read_blob(BLOB, 99999)), TransportError)


def test_both_who_race_end_with_the_call() -> None:
    """A call that asks two endpoints at a time waits for the threads of the race."""
    with peer(b"") as host:

        def race() -> None:
            ask: Race[str, None] = Race(lambda _, call: manifest_of(host, PATIENT), lambda _: None)
            assert ask.run("first", 0.01, lambda: "second") is None

        assert cancelled(race) is None


def test_a_cancelled_call_sends_nothing_more() -> None:
    call = Call()
    call.cancel()
    with calling(call), pytest.raises(TransportError, match="nobody waits"):
        manifest_of("127.0.0.1:1", replace(PATIENT, retries=3))


def test_time_within_time() -> None:
    with within(LONG):
        outer = current()
        with within(2 * LONG):
            inner = current()
            assert outer is not None
            assert inner is not None
            assert inner.until == outer.until
            outer.cancel()
            assert inner.cancelled
        assert current() is outer
    assert current() is None
    with within(0), pytest.raises(TooSlowError):
        Call(LONG, current()).check()


def test_no_time_is_left_for_the_next_attempt() -> None:
    with peer(BUSY) as host, within(5), pytest.raises(TransportError, match="429"):
        manifest_of(host, replace(PATIENT, retries=3))
