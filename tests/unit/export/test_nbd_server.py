# SPDX-License-Identifier: Apache-2.0
"""An NBD export, served to a client of our own: bytes, states, errors, and peers that misbehave."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.device import nbdwire as wire
from firstread.device.nbdwire import Chunk, Command, Error, Option
from firstread.erofs.format import BLOCK
from firstread.export import nbdchannel, nbdconnection, nbdserver, sectorfeed, sectorfetch
from firstread.export.nbdnegotiation import MAX_REQUEST
from firstread.export.sectorfeed import SectorFeed
from firstread.sectors.image import BlockImage
from firstread.sectors.source import Wanted
from firstread.testing.faultsource import FaultSource
from firstread.testing.featurestory import content
from firstread.testing.images import Dir, File, Image, Layer, Whiteout
from firstread.testing.machine import until
from firstread.testing.nbdclient import NbdClient, serving, string
from firstread.testing.packed import MemoryRepository, converted, opened
from firstread.testing.patience import PATIENCE_S
from firstread.testing.wholedisk import whole_disk

IMAGE = Image(
    [
        Layer([Dir("d/"), File("d/old", content("old", 150_000)), File("a", content("a", 90_000))]),
        Layer([Whiteout("d/old"), File("b", content("b", 700_000))]),
    ]
)


@pytest.fixture(scope="module")
def image() -> tuple[MemoryRepository, BlockImage, bytes, set[int]]:
    place, manifest = converted(IMAGE)
    block_image = opened(place, manifest)
    return place, block_image, *whole_disk(place, block_image)


Served = tuple[MemoryRepository, BlockImage, bytes, set[int]]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sectorfetch, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def path(image: Served, tmp_path: Path) -> Iterator[Path]:
    with serving(image[0], image[1], tmp_path) as place:
        yield place


@pytest.mark.parametrize("structured", [False, True])
def test_every_range_is_that_of_the_disk(image: Served, path: Path, structured: bool) -> None:
    disk = image[2]
    chance = random.Random(2)
    with NbdClient.connect(path) as client:
        assert client.go(structured=structured) == len(disk)
        for flags in (0, wire.DONT_FRAGMENT) if structured else (0,):
            for _ in range(100):
                offset = chance.randrange(len(disk))
                length = min(chance.choice([1, 512, 4096, 70_000, 400_000]), len(disk) - offset)
                answer = client.read(offset, length, flags)
                assert (answer.error, answer.data == disk[offset : offset + length]) == (0, True)
                if flags:
                    assert answer.chunks == (Chunk.OFFSET_DATA,)
        assert client.read(0, len(disk)).data == disk
        assert client.read(0, 0) == (0, b"", (Chunk.NONE,) if structured else ())


def test_holes_are_not_sent(image: Served, path: Path) -> None:
    _, _, disk, used = image
    with NbdClient.connect(path) as client:
        client.go(status=True)
        states = client.states(0, len(disk))
        assert sum(length for length, _ in states) == len(disk)
        position, found = 0, set[int]()
        for length, state in states:
            if not state:
                found.update(range(position // BLOCK, (position + length) // BLOCK))
            else:
                assert state == wire.HOLE | wire.ZERO
                assert client.read(position, length).chunks == (Chunk.OFFSET_HOLE,)
            position += length
        assert found == used
        assert client.states(0, len(disk), wire.REQUEST_ONE) == states[:1]
        assert client.states(5, 7) == [(7, 0)]


def test_a_sector_is_fetched_once_for_all_clients(image: Served, tmp_path: Path) -> None:
    place, block_image, disk, _ = image
    place.reads.clear()
    results: list[bool] = []

    def whole(path: Path) -> None:
        with NbdClient.connect(path) as client:
            client.go()
            results.append(client.read(0, len(disk)).data == disk)

    with serving(place, block_image, tmp_path) as path:
        threads = [threading.Thread(target=whole, args=(path,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 8
    assert sum(place.reads.values()) == len(block_image.index.sectors)
    with serving(place, block_image, tmp_path) as path:  # they have been kept
        whole(path)
    assert sum(place.reads.values()) == len(block_image.index.sectors)


def test_a_read_fetches_only_its_sector(image: Served, tmp_path: Path) -> None:
    place, block_image, disk, _ = image
    place.reads.clear()
    with serving(place, block_image, tmp_path) as path, NbdClient.connect(path) as client:
        client.go()
        client.read(0, block_image.erofs.size)
        assert not place.reads
        client.read(len(disk) - 1, 1)
    assert sum(place.reads.values()) == 1


def test_a_failure_that_passes_is_not_seen(image: Served, tmp_path: Path) -> None:
    source = FaultSource(image[0], "Ebf")
    with serving(source, image[1], tmp_path) as path, NbdClient.connect(path) as client:
        client.go()
        assert client.read(0, len(image[2])).data == image[2]
    assert source.injected == {"E": 1, "b": 1, "f": 1}


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("script", ["n*", "f*"])
def test_a_failure_that_stays_is_an_error_of_the_read(
    image: Served, tmp_path: Path, script: str, structured: bool
) -> None:
    place, block_image, disk, _ = image
    source = FaultSource(place, script)
    with serving(source, block_image, tmp_path) as path, NbdClient.connect(path) as client:
        client.go(structured=structured)
        assert client.read(len(disk) - BLOCK, BLOCK).error == Error.IO
        metadata = block_image.erofs.size
        assert client.read(0, metadata).data == disk[:metadata]


def test_a_source_that_stays_away_fails_reads_in_time(image: Served, tmp_path: Path) -> None:
    source = FaultSource(image[0], "E*")
    with (
        serving(source, image[1], tmp_path, stall_s=0.2) as path,
        NbdClient.connect(path) as client,
    ):
        client.go()
        assert client.read(len(image[2]) - BLOCK, BLOCK).error == Error.IO


def test_a_slow_sector_holds_up_nothing_else(image: Served, tmp_path: Path) -> None:
    place, block_image, disk, _ = image
    source = FaultSource(place, "h")
    with serving(source, block_image, tmp_path) as path, NbdClient.connect(path) as client:
        client.go(structured=False)
        slow = client.ask(Command.READ, len(disk) - BLOCK, BLOCK)
        for _ in range(3):
            assert client.read(0, BLOCK).data == disk[:BLOCK]
        source.wake()
        assert client.receive(16) == wire.SIMPLE_REPLY.pack(wire.SIMPLE_MAGIC, 0, slow)
        assert client.receive(BLOCK) == disk[-BLOCK:]


REFUSED = {
    "write": (Command.TRIM, 0, BLOCK, 0, Error.PERM),
    "write zeroes": (Command.WRITE_ZEROES, 0, BLOCK, 0, Error.PERM),
    "flush": (Command.FLUSH, 0, 0, 0, Error.INVALID),
    "unknown": (99, 0, 0, 0, Error.INVALID),
    "beyond the end": (Command.READ, 1 << 40, BLOCK, 0, Error.INVALID),
    "across the end": (Command.READ, 0, MAX_REQUEST, 0, Error.INVALID),
    "as far as numbers go": (Command.READ, (1 << 64) - 1, 0xFFFFFFFF, 0, Error.INVALID),
    "with another's flag": (Command.READ, 0, BLOCK, wire.REQUEST_ONE, Error.INVALID),
    "states of nothing": (Command.BLOCK_STATUS, 0, 0, 0, Error.INVALID),
    "states beyond the end": (Command.BLOCK_STATUS, 1 << 40, 1, 0, Error.INVALID),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_requests_that_are_refused(path: Path, case: tuple[int, int, int, int, int]) -> None:
    command, offset, length, flags, error = case
    with NbdClient.connect(path) as client:
        client.go(status=True)
        assert client.request(command, offset, length, flags).error == error
        assert client.read(0, 1).error == 0  # the connection stays


def test_states_have_to_be_negotiated(path: Path) -> None:
    with NbdClient.connect(path) as client:
        client.go()
        assert client.request(Command.BLOCK_STATUS, 0, BLOCK).error == Error.INVALID


def test_what_a_client_writes_is_taken_and_refused(path: Path) -> None:
    with NbdClient.connect(path) as client:
        client.go(structured=False)
        head = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.WRITE, 7, 0, 3_000_000)
        client.socket.sendall(head + bytes(3_000_000))
        assert client.receive(16) == wire.SIMPLE_REPLY.pack(wire.SIMPLE_MAGIC, Error.PERM, 7)
        assert client.read(0, 1).error == 0


def test_a_disconnect_waits_for_answers(image: Served, tmp_path: Path) -> None:
    source = FaultSource(image[0], "h")
    with serving(source, image[1], tmp_path) as path, NbdClient.connect(path) as client:
        client.go(structured=False)
        client.ask(Command.READ, len(image[2]) - BLOCK, BLOCK)
        client.ask(Command.DISCONNECT, 0, 0)
        source.wake()
        assert client.receive(16 + BLOCK)[16:] == image[2][-BLOCK:]
        with pytest.raises(EOFError):
            client.receive(1)


BAD = {
    "no option": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "too long an option": wire.OPTION.pack(wire.OPTION_MAGIC, Option.GO, 1 << 31),
    "the name of nothing": wire.OPTION.pack(wire.OPTION_MAGIC, Option.EXPORT_NAME, 1) + b"x",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_client_that_does_not_negotiate_is_left(path: Path, data: bytes) -> None:
    with NbdClient.connect(path) as client:
        client.socket.sendall(data)
        with pytest.raises((EOFError, ConnectionError)):
            client.receive(1)
    with NbdClient.connect(path) as client:
        client.go()


@pytest.mark.parametrize(
    "data",
    [b"x" * 28, wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.WRITE, 1, 0, MAX_REQUEST + 1)],
    ids=["no request", "too large a write"],
)
def test_a_client_that_sends_no_requests_is_left(path: Path, data: bytes) -> None:
    with NbdClient.connect(path) as client:
        client.go()
        client.socket.sendall(data)
        with pytest.raises((EOFError, ConnectionError)):
            client.receive(1)


def test_options_go_on_for_so_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbdconnection, "HANDSHAKE_S", 0.3)
    with NbdClient.connect(path) as client, pytest.raises((EOFError, ConnectionError)):
        client.receive(1)


def test_half_a_request_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbdchannel, "PATIENCE_S", 0.2)
    with NbdClient.connect(path) as client:
        client.go()
        client.socket.sendall(b"\x25")
        with pytest.raises((EOFError, ConnectionError)):
            client.receive(1)


def test_a_peer_that_takes_nothing_is_left(
    image: Served, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbdchannel, "PATIENCE_S", 0.2)
    with NbdClient.connect(path) as client:
        client.go()
        length = len(image[2])
        request = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.READ, 1, 0, length)
        client.socket.sendall(request * 20)
        client.socket.recv(1, socket.MSG_PEEK)  # it has begun
        left = threading.Event()
        while not left.wait(0.1):  # the server's end is closed: sending fails
            try:
                client.socket.sendall(wire.REQUEST.pack(0, 0, 0, 0, 0, 0))
            except ConnectionError:
                left.set()


def test_there_is_room_for_so_many_clients(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbdserver, "MAX_CONNECTIONS", 2)
    with NbdClient.connect(path) as first, NbdClient.connect(path):
        with socket.socket(socket.AF_UNIX) as third:
            third.connect(str(path))
            assert third.recv(1) == b""
        first.go()
        assert first.read(0, 1).error == 0
    while True:
        with contextlib.suppress(EOFError, ConnectionError):  # they may not have been missed yet
            with NbdClient.connect(path) as client:
                client.go()
            break


def test_requests_beyond_the_room_wait(image: Served, tmp_path: Path) -> None:
    disk = image[2]
    source = FaultSource(image[0], "h")
    with serving(source, image[1], tmp_path) as path, NbdClient.connect(path) as client:
        client.go(structured=False)
        count = 3 * nbdconnection.IN_FLIGHT
        cookies = set(range(count))
        client.socket.sendall(
            b"".join(
                wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.READ, n, len(disk) - BLOCK, BLOCK)
                for n in cookies
            )
        )
        source.wake()
        for _ in range(count):
            _, error, cookie = wire.SIMPLE_REPLY.unpack(client.receive(16))
            cookies.remove(cookie)
            assert (error, client.receive(BLOCK)) == (0, disk[-BLOCK:])
    assert not cookies


def test_a_client_that_goes_in_a_read_leaves_the_others(image: Served, tmp_path: Path) -> None:
    source = FaultSource(image[0], "h")
    disk = image[2]
    with serving(source, image[1], tmp_path) as path:
        with NbdClient.connect(path) as client:
            client.go()
            client.ask(Command.READ, len(disk) - BLOCK, BLOCK)
        source.wake()
        with NbdClient.connect(path) as client:
            client.go()
            assert client.read(0, len(disk)).data == disk


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """One sector at a time; the ids of those that were begun."""
    begun: list[bytes] = []
    fetch = sectorfetch.fetch_sector

    def noted(sector: Wanted, *arguments: Any) -> None:
        begun.append(sector.entry.id)
        fetch(sector, *arguments)

    monkeypatch.setattr(sectorfeed, "WORKERS", 1)
    monkeypatch.setattr(sectorfeed, "fetch_sector", noted)
    return begun


def test_clients_take_turns(image: Served, tmp_path: Path, order: list[bytes]) -> None:
    source, disk = FaultSource(image[0], "h"), image[2]
    with (
        serving(source, image[1], tmp_path) as path,
        NbdClient.connect(path) as greedy,
        NbdClient.connect(path) as modest,
    ):
        for client in (greedy, modest):
            client.go(structured=False)
        greedy.ask(Command.READ, 0, len(disk) - BLOCK)
        greedy.ask(Command.READ, 0, BLOCK)  # it is answered, so the first has asked for all
        greedy.receive(16 + BLOCK)
        until(lambda: source.requests, PATIENCE_S)  # else the turns begin when both have asked
        modest.ask(Command.READ, len(disk) - BLOCK, BLOCK)
        modest.ask(Command.READ, 0, BLOCK)
        modest.receive(16 + BLOCK)
        source.wake()
        assert modest.receive(16 + BLOCK)[16:] == disk[-BLOCK:]
        assert greedy.receive(16 + len(disk) - BLOCK)[16:] == disk[:-BLOCK]
    last = image[1].index.sectors[-1].id
    assert order.index(last) == 2  # behind the one in flight, and one more
    assert len(order) == len(set(order))


def test_sectors_of_one_read_come_side_by_side(
    image: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a worker is idle that has fetched one before."""
    begun = threading.Semaphore(0)
    fetch = sectorfetch.fetch_sector

    def noted(*arguments: Any) -> None:
        begun.release()
        fetch(*arguments)

    monkeypatch.setattr(sectorfeed, "fetch_sector", noted)
    source, disk = FaultSource(image[0]), image[2]
    with serving(source, image[1], tmp_path) as path, NbdClient.connect(path) as client:
        client.go(structured=False)
        assert client.read(len(disk) - BLOCK, BLOCK).data == disk[-BLOCK:]
        source.script("h*")
        client.ask(Command.READ, 0, len(disk))
        for _ in range(1 + sectorfeed.WORKERS):
            assert begun.acquire(timeout=PATIENCE_S)
        source.script("")
        source.wake()
        assert client.receive(16 + len(disk))[16:] == disk


def test_nothing_is_begun_for_a_client_that_is_gone(
    image: Served, tmp_path: Path, order: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()
    forget = SectorFeed.forget

    def forgotten(feed: SectorFeed, client: Hashable) -> None:
        forget(feed, client)
        left.set()

    monkeypatch.setattr(SectorFeed, "forget", forgotten)
    source, disk = FaultSource(image[0], "hE"), image[2]
    with serving(source, image[1], tmp_path) as path:
        with NbdClient.connect(path) as client:
            client.go(structured=False)
            client.ask(Command.READ, 0, len(disk) - BLOCK)
            client.read(0, BLOCK)
            until(lambda: source.requests, PATIENCE_S)
        assert left.wait(PATIENCE_S)
        with NbdClient.connect(path) as client:
            client.go()
            cookie = client.ask(Command.READ, len(disk) - BLOCK, BLOCK)
            source.wake()
            assert client._chunks(cookie, len(disk) - BLOCK, BLOCK).data == disk[-BLOCK:]
    assert order == [order[0], image[1].index.sectors[-1].id]


def test_a_server_waits_for_all_clients_as_long_as_for_one(
    image: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbdserver, "_END_S", 1.0)
    source = FaultSource(image[0], "h*")
    with contextlib.ExitStack() as clients:
        with serving(source, image[1], tmp_path) as path:
            for _ in range(10):
                client = clients.enter_context(NbdClient.connect(path))
                client.go(structured=False)
                client.ask(Command.READ, len(image[2]) - BLOCK, BLOCK)
                client.ask(Command.DISCONNECT, 0, 0)  # which waits for the answer
            began = time.monotonic()
        assert time.monotonic() - began < 8.0
    source.wake()


def test_an_option_with_a_name_that_is_cut_off(path: Path) -> None:
    with NbdClient.connect(path) as client:
        for data in (b"", b"\0", struct.pack(">I", 0xFFFFFFFF), string(b""), string(b"") + b"\0\1"):
            assert client.option(Option.GO, data) == [(wire.Reply.INVALID, b"")]
        client.go()
