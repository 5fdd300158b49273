# SPDX-License-Identifier: Apache-2.0
"""One NBD device's requests, over one socket after the other. The kernel is a socket here."""

from __future__ import annotations

import errno
import os
import queue
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest

from firstread.device import connection, nbdnetlink, nbdstream
from firstread.device import nbdwire as wire
from firstread.device.connection import Connection
from firstread.device.flattree import FlatTree
from firstread.device.fusereads import SectorReader
from firstread.device.nbdstream import NbdStream
from firstread.device.waiting import Waiting
from firstread.device.watches import Watches, make_watches
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import METADATA_SLOT, Extent
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.lazymount import write_metadata
from firstread.testing.patience import PATIENCE_S
from firstread.units import MiB

BLOCK = 4096
CONTENT = [bytes([65 + slot]) * BLOCK for slot in range(3)]
IDS = [bytes([slot]) * 32 for slot in range(3)]
INDEX, BACKEND = 3, "firstread /metadata"


class Kernel:
    """What the kernel does with sockets, without the device.

    Attributes:
        socket: that it has now; others before have ended.
        refuses: errors that it answers, one each.
    """

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.refuses: list[OSError] = []
        self.given: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

    def connect(self, sock: int, size: int, backend: str, *_: int) -> int:
        assert (size % BLOCK, backend) == (0, BACKEND)
        self.reconnect(INDEX, backend, sock)
        return INDEX

    def reconnect(self, index: int, backend: str, sock: int, _: int = 0) -> None:
        assert (index, backend) == (INDEX, BACKEND)
        if self.refuses:
            raise self.refuses.pop()
        ours = socket.socket(fileno=os.dup(sock))
        ours.settimeout(PATIENCE_S)
        self.given.put(ours)

    def use(self) -> None:
        """Use the socket that we were given last, once there is one."""
        if self.socket is not None:
            self.socket.close()
        self.socket = self.given.get(timeout=PATIENCE_S)

    def ask(self, cookie: int, offset: int, length: int = BLOCK, command: int = 0) -> None:
        assert self.socket is not None
        request = (wire.REQUEST_MAGIC, 0, command, cookie, offset, length)
        self.socket.send(wire.REQUEST.pack(*request))

    def answer(self, length: int = BLOCK) -> tuple[int, int, bytes]:
        """Return cookie, error and bytes of the next reply."""
        cookie, error = self.head()
        return cookie, error, b"" if error else self._take(length)

    def head(self) -> tuple[int, int]:
        """Return cookie and error of the next reply, whose data comes behind it."""
        magic, error, cookie = wire.SIMPLE_REPLY.unpack(self._take(wire.SIMPLE_REPLY.size))
        assert magic == wire.SIMPLE_MAGIC
        return cookie, error

    def _take(self, length: int) -> bytes:
        assert self.socket is not None
        data = self.socket.recv(length, socket.MSG_WAITALL)
        assert len(data) == length
        return data

    def leave(self) -> None:
        """Read to the end and hang up, as the receiver does; use the next socket."""
        assert self.socket is not None
        while self.socket.recv(1 << 16):
            pass
        self.use()

    def end(self) -> None:
        """End the device."""
        self.ask(0, 0, 0, wire.Command.DISCONNECT)
        if self.socket is not None:
            self.socket.close()


class Server:
    """A stream, with what it reads.

    Attributes:
        asked: parts that were asked for, with their read.
        kept: descriptors that somebody else holds, the last one of a socket that lives.
    """

    def __init__(self, scratch: Path, fd: int = -1, watches_fd: int = -1) -> None:
        self.store = SectorStore(scratch / "store", filesystems=None)
        self.store.ensure(IDS)
        self.watches_fd = watches_fd if watches_fd >= 0 else make_watches(IDS)
        self.watches = Watches(self.watches_fd, IDS)
        self.asked: queue.SimpleQueue[tuple[Waiting, Extent]] = queue.SimpleQueue()
        self.kept: list[int] = []
        self.ended: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        write_metadata(scratch / "metadata", IDS, BLOCK)
        self.tree = FlatTree(ErofsImage((scratch / "metadata").read_bytes()))
        if fd < 0:
            ours, theirs = socket.socketpair()
            theirs.close()
            fd = ours.detach()
        self.stream = NbdStream(
            "image",
            fd,
            self.tree,
            lambda: SectorReader(
                self.store, IDS, self.watches, lambda: 2, lambda at, length: bytes(length)
            ),
            self.watches.journal,
            self._ask,
            self.ended.put,
        )
        self.stream.backend, self.stream.renewed = BACKEND, self._keep
        self._fd = fd

    def _keep(self, _: Connection) -> None:
        self.kept.append(os.dup(self._fd))

    def _ask(self, _: Connection, waiting: Waiting, parts: Sequence[Extent]) -> None:
        for part in parts:
            self.asked.put((waiting, part))

    def connect(self) -> None:
        self.stream.connect()
        self.stream.start()

    def go_on(self) -> None:
        self.stream.index = INDEX
        self.stream.go_on()

    def at(self, slot: int) -> int:
        """Return where a sector begins on the device."""
        for offset in range(0, self.tree.size, BLOCK):
            (extent, *_) = self.tree.extents(1, offset, BLOCK)
            if extent.slot == slot:
                return offset
        raise AssertionError(slot)

    def fill(self, slot: int) -> None:
        self.store.path(IDS[slot]).write_bytes(CONTENT[slot])

    def take(self) -> Waiting:
        return self.asked.get(timeout=PATIENCE_S)[0]

    def allow(self, waiting: Waiting, *, allow: bool = True) -> None:
        self.stream.answered(waiting, allow=allow)

    def has_ended(self) -> bool:
        self.ended.get(timeout=PATIENCE_S)
        return True

    def close(self) -> None:
        self.store.close()
        for fd in self.kept:
            os.close(fd)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(nbdnetlink, "connect", made.connect)
    monkeypatch.setattr(nbdnetlink, "reconnect", made.reconnect)
    monkeypatch.setattr(nbdnetlink, "backend_of", lambda _: BACKEND)
    return made


@pytest.fixture
def server(tmp_path: Path, kernel: Kernel) -> Iterator[Server]:
    made = Server(tmp_path)
    made.watches.set(IDS, on=True)
    made.connect()
    kernel.use()
    yield made
    kernel.end()
    assert made.has_ended()
    made.close()
    os.close(made.watches_fd)


def settled(server: Server) -> bool:
    """Wait until everything is answered; return whether nothing is left of it."""
    while not server.stream.is_settled() or server.stream._waiting:
        pass
    return not server.watches.journal.records()


def test_present_bytes_and_metadata_come_at_once(server: Server, kernel: Kernel) -> None:
    server.fill(1)
    server.watches.set([IDS[1]], on=False)
    kernel.ask(1 << 32 | 5, server.at(1))
    kernel.ask(1 << 32 | 6, server.at(METADATA_SLOT))
    assert kernel.answer() == (1 << 32 | 5, 0, CONTENT[1])
    assert kernel.answer() == (1 << 32 | 6, 0, bytes(BLOCK))
    assert server.asked.empty()


def test_absent_bytes_are_waited_for(server: Server, kernel: Kernel) -> None:
    kernel.ask(7, server.at(0))
    kernel.ask(8, server.at(1))
    first, second = server.take(), server.take()
    server.fill(1)
    server.allow(second)
    assert kernel.answer() == (8, 0, CONTENT[1])
    server.allow(first, allow=False)
    assert kernel.answer() == (7, errno.EIO, b"")
    assert settled(server)


@pytest.mark.parametrize(
    ("command", "beyond", "length"),
    [(wire.Command.WRITE, 0, 0), (wire.Command.READ, 1, BLOCK), (wire.Command.READ, 0, 1 << 31)],
    ids=["a write", "beyond the end", "too long"],
)
def test_a_request_that_is_not_offered_fails_alone(
    server: Server, kernel: Kernel, command: int, beyond: int, length: int
) -> None:
    kernel.ask(9, server.tree.size * beyond, length, command)
    assert kernel.answer()[:2] == (9, errno.EIO)
    kernel.ask(10, 0)
    assert kernel.answer()[:2] == (10, 0)


def cookie(place: int, count: int, order: Literal["big", "little"]) -> int:
    """Return a cookie as we read it: big-endian, as Linux 6.12 writes it, or as Linux 6.1 does."""
    return int.from_bytes((count << 32 | place).to_bytes(8, order), "big")


@pytest.mark.parametrize("order", ["big", "little"])
def test_a_request_in_the_place_of_another_makes_that_void(
    server: Server, kernel: Kernel, order: Literal["big", "little"]
) -> None:
    old, new, other = (cookie(5, 1, order), cookie(5, 2, order), cookie(6, 2, order))
    for each in (old, other, new):
        kernel.ask(each, server.at(0))
    reads = [server.take() for _ in range(3)]
    server.fill(0)
    for waiting in reads:
        server.allow(waiting)
    assert {kernel.answer()[0] for _ in range(2)} == {other, new}
    kernel.ask(7, 0)
    assert kernel.answer()[0] == 7
    assert settled(server)


def test_a_socket_that_the_kernel_leaves_is_replaced(server: Server, kernel: Kernel) -> None:
    kernel.ask(5, server.at(0))
    waiting = server.take()
    assert kernel.socket is not None
    kernel.socket.shutdown(socket.SHUT_RDWR)
    kernel.use()
    server.fill(0)
    server.allow(waiting)
    assert kernel.answer() == (5, 0, CONTENT[0])


def test_a_reply_that_finds_no_socket_is_sent_over_the_next(server: Server, kernel: Kernel) -> None:
    kernel.refuses = [OSError(errno.ENOMEM, "not now") for _ in range(3)]
    kernel.ask(5, server.at(0))
    waiting = server.take()
    assert kernel.socket is not None
    kernel.socket.shutdown(socket.SHUT_RDWR)
    server.fill(0)
    server.allow(waiting)
    kernel.use()
    assert kernel.answer() == (5, 0, CONTENT[0])
    assert settled(server)


def test_a_socket_is_replaced_before_a_request_is_too_old(
    server: Server, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LOOK_S", 0.01)
    kernel.ask(5, server.at(0))
    waiting = server.take()
    with monkeypatch.context() as patch:  # the kernel is patched in, too, and has to stay
        patch.setattr(nbdstream, "TIMEOUT_S", 0.02)
        kernel.leave()
    server.fill(0)
    server.allow(waiting)
    assert kernel.socket is not None
    while not kernel.socket.recv(1, socket.MSG_PEEK):  # it was too old once more before the undo
        kernel.use()
    assert kernel.answer() == (5, 0, CONTENT[0])


def test_reads_that_wait_fail_when_the_daemon_stops(
    server: Server, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, str]] = []
    monkeypatch.setattr(nbdnetlink, "wait_no_longer", lambda *device: told.append(device))
    kernel.ask(5, server.at(0))
    server.take()
    server.stream.let_fail()
    assert kernel.answer() == (5, errno.EIO, b"")
    assert told == [(INDEX, BACKEND)]


# -- the next process ------------------------------------------------------------------------------


def successor(server: Server, scratch: Path) -> Server:
    """Return a server that goes on, once the process of another one is dead."""
    return Server(scratch, os.dup(server.kept[-1]), server.watches_fd)


@pytest.fixture
def dead(tmp_path: Path, kernel: Kernel) -> Iterator[Server]:
    """A server whose process never runs: the socket and the watches are there, held by others."""
    made = Server(tmp_path)
    made.watches.set(IDS, on=True)
    made.stream.connect()
    made.kept.append(os.dup(made._fd))
    kernel.use()
    yield made
    os.close(made.watches_fd)


def test_the_next_process_answers_what_was_read_and_what_was_not(
    tmp_path: Path, dead: Server, kernel: Kernel
) -> None:
    dead.fill(1)
    for cookie, slot in ((5, 0), (6, 1), (7, 2)):
        kernel.ask(cookie, dead.at(slot))
    os.readv(dead._fd, [dead.stream._message])  # the first: killed behind read(2)
    assert kernel.socket is not None
    head = wire.simple_reply(5) + CONTENT[0][:100]
    os.write(dead._fd, head)  # killed within the reply
    second = successor(dead, tmp_path)
    second.go_on()
    assert kernel.socket.recv(len(head), socket.MSG_WAITALL) == head
    kernel.leave()
    waiting = {read.request.unique: read for read in (second.take() for _ in range(3))}
    assert waiting.keys() == {5, 6, 7}
    for slot, cookie in enumerate((5, 6, 7)):
        second.fill(slot)
        second.allow(waiting[cookie])
        assert kernel.answer() == (cookie, 0, CONTENT[slot])
    assert settled(second)
    kernel.end()
    assert second.has_ended()
    second.close()


@pytest.mark.parametrize("waits", [False, True])
def test_an_answer_that_the_kernel_has_got_already_costs_no_other(
    tmp_path: Path, dead: Server, kernel: Kernel, *, waits: bool
) -> None:
    """A process is killed between a reply and the note that it was sent."""
    for slot in range(3):
        dead.fill(slot)
    dead.watches.set(IDS, on=waits)
    kernel.ask(5, dead.at(0) + BLOCK - MiB, MiB)  # more than a socket takes
    for cookie, slot in ((6, 1), (7, 2)):
        kernel.ask(cookie, dead.at(slot))
    second = successor(dead, tmp_path)
    second.go_on()
    kernel.leave()
    for _ in range(3 if waits else 0):
        second.allow(second.take())
    unexpected = kernel.head()[0]  # the data behind it is not read
    assert kernel.socket is not None
    kernel.socket.shutdown(socket.SHUT_RDWR)
    kernel.use()
    assert unexpected == 5
    assert {kernel.answer()[0] for _ in range(2)} == {6, 7}
    kernel.end()
    assert second.has_ended()
    second.close()


def test_a_device_that_has_ended_meanwhile_is_not_served(
    tmp_path: Path, dead: Server, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.refuses = [OSError(errno.EINVAL, "not configured")]
    monkeypatch.setattr(nbdnetlink, "backend_of", lambda _: "")
    second = successor(dead, tmp_path)
    second.go_on()
    assert kernel.socket is not None
    kernel.socket.close()
    assert second.has_ended()
    second.close()


def test_an_end_that_nobody_has_read_is_heard(tmp_path: Path, dead: Server, kernel: Kernel) -> None:
    kernel.end()
    second = successor(dead, tmp_path)
    second.go_on()
    assert second.has_ended()
    second.close()
