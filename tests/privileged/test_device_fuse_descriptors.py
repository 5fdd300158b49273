# SPDX-License-Identifier: Apache-2.0
"""The descriptors of FUSE mounts: how many there are, who has them, and who serves by them next."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.device import fuseprotocol, fusetrial
from firstread.device.base import Read
from firstread.device.erofsmount import unmount
from firstread.device.fuseconnection import FuseConnection
from firstread.device.fusedevice import FuseDevice
from firstread.erofs.tree import Node, chunk_address, directory
from firstread.errors import NodeError
from firstread.mounts.table import mounted_erofs
from firstread.testing.devicebench import output, summary
from firstread.testing.fusemount import FuseMount
from firstread.testing.patience import PATIENCE_S
from firstread.testing.shortage import few_descriptors

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(60)]

PARTS = 8  # of one READ


@pytest.fixture
def many_parts(tmp_path: Path) -> Iterator[FuseMount]:
    """An image whose one file has a block of each sector."""
    root, chunks = directory(), [chunk_address(slot, 0) for slot in range(PARTS)]
    file = Node(0o100644, size=PARTS * 4096, chunk_size=4096, chunks=chunks)
    root.children = {b"0": file}
    with FuseMount(tmp_path, sectors=PARTS, sector_bytes=4096, root=root) as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[FuseMount]:
    with FuseMount(tmp_path) as made:
        yield made


def test_a_mount_that_fails_leaves_nothing(bench: FuseMount) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NodeError, match="cannot mount"):
        bench.device.attach(bench.metadata, bench.ids, bench.mountpoint / "missing")
    with pytest.raises(NodeError, match="cannot mount"):
        bench.device.attach(bench.metadata.with_name("none"), bench.ids, bench.mountpoint)
    deadline = time.monotonic() + PATIENCE_S
    while len(os.listdir("/proc/self/fd")) > before + 2:  # two are kept by the bench
        assert time.monotonic() < deadline
        gc.collect()  # a memory map has a descriptor of its own
    pairs = bench.device.pairs()
    assert len(pairs) == 1
    close(*pairs.values())


def close(*pairs: tuple[int, int]) -> None:
    for pair in pairs:
        for fd in pair:
            os.close(fd)


def test_a_mount_without_descriptors_leaves_none(bench: FuseMount) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for spare in (0, 1, 2):
        with few_descriptors(os.getpid(), spare), pytest.raises(NodeError, match="cannot mount"):
            bench.device.attach(bench.metadata, bench.ids, bench.mountpoint)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_waits_for_descriptors(many_parts: FuseMount) -> None:
    """Of one READ over several sectors, all are asked for or none."""
    bench, code = (
        many_parts,
        (
            "import hashlib, os, sys\n"
            "fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
            "print(flush=True)\n"
            "sys.stdin.readline()\n"
            "data = os.pread(fd, 1 << 20, 0)\n"
            "print(len(data), hashlib.sha256(data).hexdigest())\n"
        ),
    )
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    command = [sys.executable, "-c", code, str(bench.mountpoint / "0")]
    pipe = subprocess.PIPE
    reader = bench.started(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stdout.readline() == "\n"
    requests = bench.device.requests()
    with few_descriptors(os.getpid(), 3):
        print(file=reader.stdin, flush=True)
        deadline = time.monotonic() + PATIENCE_S
        while bench.device.requests() == requests:
            assert time.monotonic() < deadline
        assert not bench.reads(timeout=1.5)  # an attempt more has been made
        assert reader.poll() is None
    reads = bench.reads()
    while len(reads) < PARTS:
        reads += bench.reads()
    for read in reads:
        bench.fill(read)
    assert output(reader) == summary(b"".join(bench.data))
    while len(os.listdir("/proc/self/fd")) > before:
        assert time.monotonic() < deadline


def test_the_number_of_waiting_reads_is_bounded(many_parts: FuseMount) -> None:
    bench = many_parts
    bench.device._most = PARTS + 2
    first = bench.read(0, 0, PARTS * 4096, "direct")
    reads = bench.reads()
    while len(reads) < PARTS:
        reads += bench.reads()
    second = bench.read(0, 0, PARTS * 4096, "direct")
    assert not bench.reads(timeout=1.5)
    for read in reads:
        bench.complete(read)
    assert output(first) == output(second) == summary(b"".join(bench.data))


def test_a_number_that_comes_again_is_the_new_mounts(bench: FuseMount, tmp_path: Path) -> None:
    """Its connection and watches are kept, whenever the end of the one before is noticed."""
    asked, go_on = threading.Event(), threading.Event()

    def hold(read: Read) -> None:
        os.close(read.fd)
        asked.set()
        assert go_on.wait(PATIENCE_S)

    bench.device.ask = hold  # the thread of the first connection stands in here
    reader = bench.read(0, how="random")
    assert asked.wait(PATIENCE_S)
    number = os.stat(bench.mountpoint).st_dev
    bench.lose()
    reader.wait(timeout=PATIENCE_S)
    unmount(bench.mountpoint)
    bench.device.attach(bench.metadata, bench.ids, bench.mountpoint)
    if os.stat(bench.mountpoint).st_dev != number:
        go_on.set()
        pytest.skip("somebody else has got the number")
    old = len(bench.device._watches)
    assert old == 2
    go_on.set()
    deadline = time.monotonic() + PATIENCE_S
    while len(bench.device._watches) == old:
        assert time.monotonic() < deadline
    with bench.device._keeping:
        assert bench.dropped == []
    pairs = bench.device.pairs()
    assert list(pairs) == [number]
    close(*pairs.values())


@pytest.mark.parametrize("resends", [True, False])
def test_the_next_process_answers_waiting_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resends: bool
) -> None:
    """Linux before 6.9 refuses to send it again, as it does with any word that it does not know."""
    if not resends:
        monkeypatch.setattr(fuseprotocol, "_NOTIFY_RESEND", 99)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            bench = FuseMount(tmp_path)
            ((number, pair),) = bench.kept.items()
            socket.send_fds(theirs, [b"%d" % number], pair)
            bench.reads()
            theirs.send(b"asked")
            time.sleep(2 * PATIENCE_S)
        finally:
            os._exit(1)
    theirs.close()
    ours.settimeout(PATIENCE_S)
    data, fds, _, _ = socket.recv_fds(ours, 100, 2)
    readers = []
    with ours, FuseMount(tmp_path, given={int(data): (fds[0], fds[1])}) as bench:
        readers.append(bench.read(0, 0, 4096, "direct"))
        assert ours.recv(100) == b"asked"
        readers.append(bench.read(0, 8192, 4096, "direct"))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert bench.device.is_watching()
        assert bench.device.adopt(bench.metadata, bench.ids, int(data))
        bench.device.go_on(int(data))
        seen = 0
        while seen < len(readers):
            for read in bench.reads():
                bench.fill(read)
                seen += 1
        expected = [summary(bench.data[0][at : at + 4096]) for at in (0, 8192)]
        assert [output(reader) for reader in readers] == expected


def test_a_connection_that_has_ended_is_dropped_by_the_next_process(bench: FuseMount) -> None:
    given = {number: (os.dup(a), os.dup(b)) for number, (a, b) in bench.kept.items()}
    unmount(bench.mountpoint)
    while bench.device.is_watching():
        pass
    dropped: list[int] = []
    device = FuseDevice(bench.store, given, drop=dropped.append)
    assert dropped == list(given)
    assert device.pairs() == {}


def test_a_trial_that_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that waits for a name cannot be killed."""

    def handle(connection: FuseConnection, request: fuseprotocol.Request, *rest: Any) -> None:
        if request.opcode != fuseprotocol.LOOKUP:
            usual(connection, request, *rest)

    usual = FuseConnection._handle
    monkeypatch.setattr(fusetrial, "TIMEOUT_S", 1)
    monkeypatch.setattr(FuseConnection, "_handle", handle)
    with pytest.raises(NodeError, match="did not return"):
        fusetrial.prove_fuse(tmp_path)
    assert str(tmp_path / "mnt") not in mounted_erofs()
