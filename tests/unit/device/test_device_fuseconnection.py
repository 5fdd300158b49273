# SPDX-License-Identifier: Apache-2.0
"""What becomes of READs that cannot be answered at once. A socket is the kernel, files are real."""

from __future__ import annotations

import errno
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from firstread.device import connection as module
from firstread.device import fuseconnection, fusejournal, fusesignals, syscalls
from firstread.device import fuseprotocol as fuse
from firstread.device.connection import Connection
from firstread.device.fuseconnection import FuseConnection
from firstread.device.fusefilesystem import open_fuse
from firstread.device.fusejournal import Unanswered
from firstread.device.fusereads import SectorReader
from firstread.device.fusetree import FuseTree
from firstread.device.waiting import ATTEMPTS, Waiting
from firstread.device.watches import Watches, make_watches
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import Extent
from firstread.erofs.tree import Node, chunk_address, directory
from firstread.errors import BusyError
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.lazymount import write_metadata
from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import no_threads

BLOCK = 4096
CONTENT = [bytes([65 + slot]) * BLOCK for slot in range(3)]
IDS = [bytes([slot]) * 32 for slot in range(3)]
SELF = os.getpid()


class Server:
    """A connection to a kernel that is a socket; one file, ``0``, has a block of each sector.

    Attributes:
        asked: parts that were asked for, with their READ.
        errors: are raised by what asks, one each.
    """

    def __init__(self, scratch: Path, watches_fd: int = -1) -> None:
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(PATIENCE_S)
        self.store = SectorStore(scratch / "store", filesystems=None)
        self.store.ensure(IDS)
        self.watches_fd = watches_fd if watches_fd >= 0 else make_watches(IDS)
        self.watches = Watches(self.watches_fd, IDS)
        self.asked: queue.SimpleQueue[tuple[Waiting, Extent]] = queue.SimpleQueue()
        self.errors: list[OSError] = []
        self.lock = threading.Lock()  # as that of `Answers`: held by who answers, and by who asks
        self.ended = threading.Event()
        tree = FuseTree(ErofsImage(_metadata(scratch)))
        found = tree.answer(fuse.Request(fuse.LOOKUP, 1, 1, 0, 1), memoryview(b"0\0"))
        self.node = struct.unpack_from("=Q", found)[0]
        self.connection = FuseConnection(
            "image",
            ours.detach(),
            tree,
            lambda: SectorReader(self.store, IDS, self.watches, lambda: 2),
            self.watches.journal,
            self._ask,
            lambda _: self.ended.set(),
        )

    def _ask(self, _: Connection, waiting: Waiting, parts: Sequence[Extent]) -> None:
        assert self.lock.acquire(timeout=PATIENCE_S), "who answers has it, and waits for us"
        self.lock.release()
        if self.errors:
            raise self.errors.pop()
        for part in parts:
            self.asked.put((waiting, part))

    def take(self) -> tuple[Waiting, Extent]:
        """Return the next part that is asked for."""
        return self.asked.get(timeout=PATIENCE_S)

    def fill(self, slot: int) -> None:
        self.store.path(IDS[slot]).write_bytes(CONTENT[slot])

    def allow(self, waiting: Waiting, *, allow: bool = True) -> None:
        """Answer a part, as the fetcher does: under a lock that it also needs to be asked."""
        with self.lock:
            self.connection.answered(waiting, allow=allow)

    def request(self, opcode: int, unique: int, body: bytes) -> bytes:
        size = fuse.BODY + len(body)
        return struct.pack("=IIQQIIIHH", size, opcode, unique, self.node, 0, 0, SELF, 0, 0) + body

    def read(self, unique: int, size: int = len(IDS) * BLOCK) -> bytes:
        return self.request(fuse.READ, unique, struct.pack("=QQI20x", 0, 0, size))

    def answer(self) -> tuple[int, int, bytes]:
        """Return unique, errno and bytes of the next answer."""
        message = self.kernel.recv(1 << 20)
        size, error, unique = struct.unpack_from("=IiQ", message)
        assert size == len(message)
        return unique, -error, message[16:]

    def close(self) -> None:
        self.kernel.close()
        assert self.ended.wait(PATIENCE_S)
        self.store.close()


def _metadata(scratch: Path) -> bytes:
    root = directory()
    chunks = [chunk_address(slot, 0) for slot in range(len(IDS))]
    size = len(IDS) * BLOCK
    root.children = {b"0": Node(0o100644, size=size, chunk_size=BLOCK, chunks=chunks)}
    write_metadata(scratch / "metadata", IDS, BLOCK, root)
    return (scratch / "metadata").read_bytes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.connection.start()
    yield made
    made.close()
    os.close(made.watches_fd)


def watch(server: Server, *slots: int, on: bool = True) -> None:
    server.watches.set([IDS[slot] for slot in slots], on=on)


def test_a_sector_that_becomes_watched_meanwhile_is_asked_for_too(server: Server) -> None:
    """The fetcher answers under a lock that it also takes to be asked."""
    for slot in (0, 1):
        server.fill(slot)
    watch(server, 2)
    server.kernel.send(server.read(6))
    waiting, part = server.take()
    assert part.slot == 2
    watch(server, 0)  # another image was mounted
    server.fill(2)
    server.allow(waiting)
    waiting, part = server.take()
    assert part.slot == 0
    server.allow(waiting)
    assert server.answer() == (6, 0, b"".join(CONTENT))
    while not server.connection.is_settled():
        pass
    assert not server.watches.journal.records()


def test_a_read_is_asked_for_once_more_only_so_often(server: Server) -> None:
    watch(server, 0, 1, 2)
    server.kernel.send(server.read(6, BLOCK))
    for _ in range(ATTEMPTS):
        server.allow(server.take()[0])  # and it is absent
    assert server.answer() == (6, errno.EIO, b"")


def test_a_read_outlasts_any_number_of_evictions(server: Server) -> None:
    """The evictor empties a file and a fetch fills it anew, so it is not the one of before."""
    watch(server, 0)
    server.kernel.send(server.read(6, BLOCK))
    path = server.store.path(IDS[0])
    for number in range(3 * ATTEMPTS):
        waiting, _ = server.take()
        server.fill(0)
        server.store.empty(IDS[0])
        os.utime(path, ns=(number, number))  # the clock of a file system ticks slowly
        server.allow(waiting)
    waiting, _ = server.take()
    server.fill(0)
    server.allow(waiting)
    assert server.answer() == (6, 0, CONTENT[0])


def test_no_read_is_taken_that_the_journal_has_no_room_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.9 it would be lost with this process."""
    monkeypatch.setattr(fusejournal, "RECORDS", 2)
    watch(server, 0)
    for unique in (6, 8, 10, 12):
        server.kernel.send(server.read(unique, BLOCK))
    asked = {}
    for answered in (6, 8, 10, 12):
        while answered not in asked:
            waiting, _ = server.take()
            asked[waiting.request.unique] = waiting
        recorded = {read.unique for read in server.watches.journal.records()}
        assert set(asked) <= recorded
        assert len(recorded) <= 2
        server.fill(0)
        server.allow(asked.pop(answered))
        assert server.answer() == (answered, 0, CONTENT[0])


def test_a_denied_part_fails_the_read(server: Server) -> None:
    watch(server, 0, 1)
    server.fill(2)
    server.kernel.send(server.read(6))
    server.allow(server.take()[0], allow=False)
    server.allow(server.take()[0])
    assert server.answer() == (6, errno.EIO, b"")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_read_waits_while_the_process_is_short_of_something(
    server: Server, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    watch(server, 0)
    server.errors = [OSError(number, "short") for _ in range(3)]
    server.kernel.send(server.read(6, BLOCK))
    server.fill(0)  # and nobody has allowed it: it may be wrong
    waiting, part = server.take()
    assert part == (0, 0, BLOCK)
    assert not server.errors
    server.allow(waiting)
    assert server.answer() == (6, 0, CONTENT[0])


def test_a_read_waits_while_there_can_be_no_more_threads(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [RuntimeError("can't start new thread")] * 2

    class Thread(threading.Thread):
        def start(self) -> None:
            if left:
                raise left.pop()
            super().start()

    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(threading, "Thread", Thread)
    watch(server, 0)
    for unique in (6, 8):
        server.kernel.send(server.read(unique, BLOCK))
        waiting, _ = server.take()
        server.fill(0)
        server.allow(waiting)
        assert server.answer() == (unique, 0, CONTENT[0])


def test_another_error_fails_the_read(server: Server) -> None:
    watch(server, 0)
    server.errors = [OSError(errno.ENOENT, "gone")]
    server.kernel.send(server.read(6, BLOCK))
    assert server.answer() == (6, errno.ENOENT, b"")


def test_a_request_that_makes_no_sense_fails_alone(server: Server) -> None:
    server.kernel.send(server.request(fuse.READ, 7, b"\0" * 8))
    assert server.answer() == (7, errno.EIO, b"")
    server.kernel.send(server.request(fuse.GETATTR, 8, b""))
    assert server.answer()[:2] == (8, 0)


def test_the_descriptor_is_open_when_the_end_is_told(tmp_path: Path) -> None:
    """Else another process is given the number of another file."""
    server = Server(tmp_path)
    fds: list[int] = []
    fd = server.connection._fd
    server.connection._ended = lambda _: fds.append(os.fstat(fd).st_ino)
    server.connection.start()
    server.kernel.send(server.read(6, BLOCK))
    assert server.answer()[1] == errno.EIO  # absent, and not watched
    server.kernel.close()
    while not fds:
        pass
    server.store.close()


def test_the_next_process_answers_recorded_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.9 the kernel does not send it again."""
    first = Server(tmp_path)
    first.connection.start()
    watch(first, 0, 1, 2)
    first.kernel.send(first.read(6))
    parts = [first.take()[1].slot for _ in IDS]
    assert parts == [0, 1, 2]
    first.kernel.send(first.request(fuse.GETATTR, 8, b""))
    assert first.answer()[0] == 8
    first.kernel.send(first.read(10, BLOCK))
    first.take()  # it has a record, and is the last message
    # The first process is as good as dead from here on.
    monkeypatch.setattr(fuse, "resend", lambda: bytes(1 << 22))  # which the kernel refuses
    second = Server(tmp_path, first.watches_fd)
    second.connection.go_on()
    taken = [second.take() for _ in range(4)]
    assert [waiting.request.unique for waiting, _ in taken] == [6, 6, 6, 10]
    for slot in range(3):
        second.fill(slot)
    for waiting, _ in taken:
        second.allow(waiting)
    assert sorted(second.answer()[:2] for _ in range(2)) == [(6, 0), (10, 0)]
    assert second.asked.empty()
    for server in (first, second):
        server.close()
    os.close(first.watches_fd)


def test_each_reader_that_another_process_has_left_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be killed by now. With a look at all for each, a thousand took half a minute."""
    looked: list[int] = []
    monkeypatch.setattr(fuseconnection, "is_being_killed", looked.append)
    monkeypatch.setattr(fusesignals, "is_being_killed", looked.append)
    monkeypatch.setattr(fuse, "resend", lambda: bytes(1 << 22))
    server, count = Server(tmp_path), 300
    for unique in range(2, 2 + 2 * count, 2):
        server.watches.journal.add(Unanswered(unique, server.node, 0, BLOCK, SELF))
    watch(server, 0)
    server.fill(0)
    server.connection.go_on()
    for waiting in [server.take()[0] for _ in range(count)]:
        server.allow(waiting)
    assert {server.answer()[:2] for _ in range(count)} == {(2 * n + 2, 0) for n in range(count)}
    assert len(looked) <= count + fusesignals.LOOKS
    server.close()


def test_a_defect_met_while_recorded_reads_are_answered_fails_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each next process would meet it, and end, for as long as the READ waits."""
    monkeypatch.setattr(fuse, "resend", lambda: bytes(1 << 22))
    monkeypatch.setattr(fuseconnection, "is_being_killed", lambda pid: 1 // (pid - SELF))
    server = Server(tmp_path)
    for unique, pid in ((2, SELF), (4, SELF + 1)):
        server.watches.journal.add(Unanswered(unique, server.node, 0, BLOCK, pid))
    watch(server, 0)
    server.connection.go_on()
    assert server.answer() == (2, errno.EIO, b"")
    assert server.answer() == (4, errno.EINTR, b"")
    server.close()


def test_a_reader_may_have_any_name() -> None:
    """The kernel shows it as it is."""
    name = "open('/proc/self/comm', 'wb').write(b'\\xff\\xfe'); print(flush=True); input()"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", name]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "\n"
        assert Path(f"/proc/{reader.pid}/status").read_bytes().startswith(b"Name:\t\xff\xfe")
        assert not fusesignals.is_being_killed(reader.pid)
        reader.communicate("")


def test_a_connection_that_no_thread_can_be_had_for_is_tried_again(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with no_threads(), pytest.raises(BusyError, match="no more threads"):
        server.connection.go_on()
    server.connection.go_on()
    server.kernel.send(server.request(fuse.GETATTR, 8, b""))
    for _ in range(2):
        assert server.kernel.recv(1 << 20) == fuse.resend()
    assert server.answer()[:2] == (8, 0)
    server.close()


def test_a_mount_that_no_thread_can_be_had_for_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("fsconfig_string", "fsconfig_flag", "fsconfig_create"):
        monkeypatch.setattr(syscalls, call, lambda *_: None)
    monkeypatch.setattr(syscalls, "fsopen", lambda _: os.open(os.devnull, os.O_RDONLY))
    server = Server(tmp_path)
    fd = server.connection._fd
    with (
        no_threads(),
        pytest.raises(BusyError),
        open_fuse(fd, tmp_path / "metadata", server.connection, 0o40755),
    ):
        pytest.fail("nobody serves it")
    assert server.kernel.recv(1) == b"", "its descriptor is closed"
    server.close()


def test_a_message_that_nobody_has_looked_at_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is killed behind read(2)."""
    server = Server(tmp_path)
    message = server.request(fuse.GETATTR, 12, b"")
    server.watches.journal.message[: len(message)] = message
    monkeypatch.setattr(fuse, "resend", lambda: bytes(1 << 22))
    server.connection.go_on()
    assert server.answer()[:2] == (12, 0)
    server.close()


def test_the_journal_is_not_used_when_the_kernel_resends(tmp_path: Path) -> None:
    server = Server(tmp_path)
    message = server.request(fuse.GETATTR, 12, b"")
    server.watches.journal.message[: len(message)] = message
    server.connection.go_on()
    assert server.kernel.recv(64) == fuse.resend()
    server.kernel.send(server.request(fuse.GETATTR, 14, b""))
    assert server.answer()[:2] == (14, 0)
    server.close()
