# SPDX-License-Identifier: Apache-2.0
"""The declared limits of docs/errors.md that have no test beside what they limit.

And the table itself: each of its rows names a test that exists.
"""

from __future__ import annotations

import re
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstread.config import load_config
from firstread.convert.record import LayerRecord
from firstread.errors import (
    AuthError,
    FirstreadError,
    ImageError,
    LimitError,
    SourceError,
    TransportError,
    UsageError,
)
from firstread.nesting import MAX_DEPTH
from firstread.oci.model import MAX_MANIFEST_SIZE, encode, parse_config, parse_manifest
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Repository
from firstread.registry.answer import MAX_ANSWER
from firstread.registry.auth import look_up
from firstread.registry.bearer import MAX_TOKEN, Authorizer
from firstread.registry.credentials import Credentials
from firstread.registry.faults import MAX_ERROR_BODY
from firstread.registry.open import open_source
from firstread.registry.options import AccessOptions
from firstread.sectors.format import Geometry, Header, SectorIndex
from firstread.testing.patience import PATIENCE_S
from firstread.units import KiB, MiB

ROOT = Path(__file__).parents[2]
DEEP = b"[" * 200_000


# Answers of a registry.


@contextmanager
def saying(words: Iterator[bytes]) -> Iterator[Repository]:
    """Give a repository of a registry that answers one request with `words`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(PATIENCE_S)
            try:
                peer.recv(65536)
                for piece in words:
                    peer.sendall(piece)
            except OSError:
                return  # it has had enough

    thread = threading.Thread(target=serve)
    thread.start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    repository = open_source(
        parse_reference(f"{address}/a:b"), AccessOptions(retries=0, read_timeout=PATIENCE_S)
    )
    try:
        yield repository
    finally:
        repository.close()
        thread.join(timeout=PATIENCE_S)
        listener.close()
        assert not thread.is_alive()


def endless(head: bytes, piece: bytes, total: int) -> Iterator[bytes]:
    yield head
    for _ in range(total // len(piece)):
        yield piece


ANSWERS: dict[str, tuple[bytes, bytes, type[FirstreadError]]] = {
    "a manifest": (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * MiB, LimitError),
    "a manifest of a stated length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"x" * MiB,
        LimitError,
    ),
    "a chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
        b"x" * MiB,
        LimitError,
    ),
    "the text of an error": (b"HTTP/1.1 404 Not Found\r\n\r\n", b"x" * MiB, SourceError),
    "a header line": (b"HTTP/1.1 200 OK\r\nA: ", b"x" * MiB, TransportError),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 1000, TransportError),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, TransportError),
    "a status line": (b"HTTP/1.1 200 ", b"x" * MiB, TransportError),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_without_end_takes_no_memory(what: str) -> None:
    head, piece, error = ANSWERS[what]
    tracemalloc.start()
    try:
        # Interim answers are read one by one, which takes a third of a second for each MiB.
        size = (4 if what == "interim answers" else 64) * MiB
        with saying(endless(head, piece, size)) as repository, pytest.raises(error):
            repository.get_manifest()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_ANSWER
    assert MAX_ERROR_BODY < MAX_ANSWER


# Documents.


def token(answer: bytes) -> object:
    challenge = 'Bearer realm="https://t.test/"'
    authorizer = Authorizer(["a"], lambda: Credentials("u", "p"), lambda request: answer)
    return authorizer.refused(challenge, None)


def docker_config(data: bytes) -> object:
    path = ROOT / ".pytest_cache/limits.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return look_up("a.test", "b", path).credentials


def toml(data: bytes) -> object:
    path = ROOT / ".pytest_cache/limits.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a = " + data)
    return load_config(path)


DOCUMENTS: dict[str, tuple[Callable[[bytes], object], type[FirstreadError]]] = {
    "manifest": (parse_manifest, ImageError),
    "config": (parse_config, ImageError),
    "layer record": (LayerRecord.decode, ImageError),
    "token": (token, AuthError),
    "docker config": (docker_config, UsageError),
    "configuration": (toml, UsageError),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("nested", [DEEP, DEEP + b"]" * len(DEEP), b'{"a":' * 200_000])
def test_nesting_is_bounded(name: str, nested: bytes) -> None:
    parse, error = DOCUMENTS[name]
    with pytest.raises(error):
        parse(nested)


def test_a_document_is_nested_so_far() -> None:
    """A document that is read is written again, and there the stack would end."""

    def config(depth: int) -> bytes:
        return b'{"x":' + b"[" * depth + b"]" * depth + b',"y":["[[[",{"[":0}]}'

    assert encode(parse_config(config(MAX_DEPTH - 1)))
    for depth in (MAX_DEPTH, 500):
        with pytest.raises(ImageError, match=f"nested more than {MAX_DEPTH} deep"):
            parse_config(config(depth))


@pytest.mark.parametrize("field", ["config", "layers", "annotations", "unknown"])
def test_nesting_within_a_manifest_is_bounded(field: str) -> None:
    with pytest.raises(ImageError):
        parse_manifest(b'{"schemaVersion":2,"%s":%s}' % (field.encode(), DEEP))


def test_a_manifest_of_too_many_bytes() -> None:
    with pytest.raises(LimitError):
        parse_manifest(b" " * (MAX_MANIFEST_SIZE + 1))


def test_frames_are_bounded() -> None:
    """A node takes memory for a whole frame, and the image says how large that is."""
    assert Geometry(8 * MiB, 4 * MiB).frame_size == 4 * MiB
    with pytest.raises(UsageError, match="frame size is above"):
        Geometry(8 * MiB, 8 * MiB)
    good = SectorIndex(Geometry(8 * MiB, 4 * MiB), [], []).header()
    assert Header.unpack(good).geometry.frame_size == 4 * MiB
    bad = bytearray(good)
    bad[11] += 1  # log2 of the frame size: docs/format.md
    with pytest.raises(ImageError):
        Header.unpack(bytes(bad))


def test_tokens_are_bounded() -> None:
    assert token(b'{"token":"%s"}' % (b"t" * MAX_TOKEN))
    with pytest.raises(AuthError, match=f"more than {MAX_TOKEN} bytes"):
        token(b'{"token":"%s"}' % (b"t" * (MAX_TOKEN + 1)))
    assert len(b"t" * MAX_TOKEN) == 64 * KiB


# The table.


def rows() -> list[str]:
    text = (ROOT / "docs/errors.md").read_text().partition("## Limits")[2]
    return [line for line in text.splitlines() if line.startswith("| ") and "test_" in line]


def test_each_limit_names_its_test() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = [re.findall(r"`(test_\w+)`", row) for row in rows()]
    assert len(named) >= 30
    for names in named:
        assert names
        for name in names:
            assert f"def {name}(" in tests, name
