# SPDX-License-Identifier: Apache-2.0
"""What an NBD device does, and what becomes of reads when those who serve it die."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstread.daemon.protocol import Keep, receive_answered, send_held
from firstread.device import nbdnetlink
from firstread.device.base import Read
from firstread.device.nbddevice import NbdDevice
from firstread.errors import NodeError
from firstread.mounts.table import mounted_erofs
from firstread.sectors.sectorstore import SectorStore
from firstread.testing.devicebench import output, summary
from firstread.testing.nbdmount import NbdMount, needs_nbd
from firstread.testing.patience import PATIENCE_S
from firstread.units import KiB, MiB

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.timeout(120),
    needs_nbd,
]

log = logging.getLogger("tests")

KILLS = int(os.environ.get("FIRSTREAD_KILLS", "12"))
LONGEST_S = 20.0  # of a read: a request that a successor does not know waits for its timeout

LOOP = """
import hashlib, os, sys, time
place, stop, *digests = sys.argv[1:]
count, longest = 0, 0.0
while not os.path.exists(stop):
    for name, digest in enumerate(digests):
        fd = os.open(f"{place}/{name}", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        data = hashlib.sha256()
        while True:
            began = time.monotonic()
            block = os.read(fd, 65536)
            longest = max(longest, time.monotonic() - began)
            if not block:
                break
            data.update(block)
        assert data.hexdigest() == digest, name
        os.close(fd)
        count += 1
print(count, longest)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[NbdMount]:
    with NbdMount(tmp_path) as made:
        yield made


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def connected(backend: str) -> Iterator[int]:
    """Connect a device that nobody mounts; give its index."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            index = nbdnetlink.connect(theirs.fileno(), MiB, backend, 60, 0)
        yield index
        nbdnetlink.disconnect(index)


# -- the device ------------------------------------------------------------------------------------


def test_a_mount_has_a_device_of_its_own_for_reading(bench: NbdMount) -> None:
    place = Path(f"/sys/block/nbd{bench.index}")
    assert nbdnetlink.backend_of(bench.index) == f"firstread {bench.metadata}"
    assert (place / "ro").read_text() == "1\n"
    assert (place / "queue/logical_block_size").read_text() == "512\n"
    assert mounted_erofs()[str(bench.mountpoint)] == str(bench.metadata)


def test_everything_ends_with_the_mount(bench: NbdMount) -> None:
    index, number = bench.index, os.stat(bench.mountpoint).st_dev
    assert list(bench.device.pairs()) == [number]
    bench.device.detach(bench.mountpoint)
    wait(lambda: not bench.device.pairs())
    assert bench.dropped == [number]
    wait(lambda: nbdnetlink.backend_of(index) == "")


def test_a_mount_that_fails_leaves_nothing(bench: NbdMount) -> None:
    before = list(nbdnetlink.connected())
    damaged = bench.metadata.with_name("damaged")
    content = bytearray(bench.metadata.read_bytes())
    content[1024 + 14] ^= 0xFF  # the number of the root
    damaged.write_bytes(content)
    with pytest.raises(NodeError, match="cannot mount"):
        bench.device.attach(damaged, bench.ids, bench.mountpoint)
    wait(lambda: list(nbdnetlink.connected()) == before)


def test_devices_of_others_are_left_alone(bench: NbdMount) -> None:
    with connected("others") as index:
        with pytest.raises(OSError, match="Invalid argument"):
            nbdnetlink.disconnect_on_close(index, "firstread /")
        number = os.makedev(*map(int, Path(f"/sys/block/nbd{index}/dev").read_text().split(":")))
        assert not bench.device.adopt(bench.metadata, bench.ids, number)
        other = NbdDevice(SectorStore(bench.metadata.parent / "store", filesystems=None))
        assert not other.pairs()
        assert nbdnetlink.backend_of(index) == "others"


def test_a_device_that_was_not_mounted_any_more_is_ended(bench: NbdMount) -> None:
    """A process dies between connecting and mounting."""
    root = bench.store.directory.parent
    with connected(f"firstread {root}/images/metadata") as index:
        NbdDevice(SectorStore(root, filesystems=None))
        assert nbdnetlink.backend_of(index) == ""
    with connected("firstread /elsewhere/metadata") as index:
        NbdDevice(SectorStore(root, filesystems=None))
        assert nbdnetlink.backend_of(index)


def test_a_number_without_a_device_cannot_be_given_a_socket() -> None:
    with pytest.raises(OSError, match="netlink") as caught:
        nbdnetlink.disconnect_on_close(1 << 20, "firstread /")
    assert caught.value.errno == errno.EINVAL


# -- reads -----------------------------------------------------------------------------------------


def test_a_read_waits_longer_than_the_kernel_does(bench: NbdMount) -> None:
    """The socket is replaced meanwhile; the kernel sends the request again after its timeout."""
    reader = bench.read(1, how="random")
    first = bench.reads()
    again = bench.reads()  # after `TIMEOUT_S`
    assert {bench.slot_of(read) for read in [*first, *again]} == {1}
    for read in first:
        bench.fill(read)
    for read in again:
        bench.fill(read)
    assert output(reader) == summary(bench.data[1][:4096])


# -- servers that die ------------------------------------------------------------------------------


class Servers:
    """Processes that serve one mount, one after the other; this one holds what they leave.

    Args:
        bench: not mounted; its store and image.
    """

    def __init__(self, bench: NbdMount) -> None:
        self._bench = bench
        self.pair: tuple[int, tuple[int, int]] | None = None
        self._child = 0
        self._channel: socket.socket | None = None

    def start(self) -> None:
        """Start the next one; return when it serves."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child = os.fork()
        if self._child == 0:
            try:
                self._serve(theirs)
            finally:
                os._exit(1)
        theirs.close()
        ours.settimeout(PATIENCE_S)
        self._channel = ours
        while (said := receive_answered(ours)) != [1]:
            self._hear(said)

    def _hear(self, said: object) -> None:
        if isinstance(said, Keep) and said.pair:
            self.close()
            self.pair = said.device, said.pair

    def close(self) -> None:
        """Hold nothing any more."""
        if self.pair is not None:
            for fd in self.pair[1]:
                os.close(fd)
        self.pair = None

    def kill(self) -> None:
        """Kill it, and hear what it had to say."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        assert self._channel is not None
        while (said := receive_answered(self._channel)) is not None:
            self._hear(said)
        self._channel.close()

    def _serve(self, channel: socket.socket) -> None:
        bench, asked = self._bench, queue.SimpleQueue[Read]()
        given = dict([self.pair]) if self.pair else {}
        device = NbdDevice(
            bench.store, given, lambda number, pair: send_held(channel, Keep(number, pair))
        )
        device.ask = asked.put
        chance = random.Random(os.getpid())

        def answer() -> None:
            while True:
                read, slot = (got := asked.get()), bench.slot_of(got)
                time.sleep(chance.random() * 0.02)
                os.pwrite(read.fd, bench.data[slot], 0)
                os.close(read.fd)
                if slot % 2:  # the others are asked for again and again
                    device.unwatch([bench.ids[slot]])
                device.answer(read.number)

        for _ in range(4):
            threading.Thread(target=answer, daemon=True).start()
        if self.pair is None:
            device.attach(bench.metadata, bench.ids, bench.mountpoint)
        else:
            assert device.adopt(bench.metadata, bench.ids, self.pair[0])
            device.go_on(self.pair[0])
        channel.send((1).to_bytes(4, sys.byteorder))
        threading.Event().wait()


def test_servers_die_under_readers_and_no_read_fails(tmp_path: Path) -> None:
    with NbdMount(tmp_path, timeout_s=60, dead_timeout_s=30, sector_bytes=256 * KiB) as bench:
        bench.device.detach(bench.mountpoint)
        servers, stop = Servers(bench), tmp_path / "stop"
        servers.start()
        digests = [summary(data).split()[1] for data in bench.data]
        command = [sys.executable, "-I", "-S", "-c", LOOP, str(bench.mountpoint), str(stop)]
        readers = [
            bench.started(subprocess.Popen([*command, *digests], stdout=subprocess.PIPE, text=True))
            for _ in range(3)
        ]
        chance = random.Random(1)
        for _ in range(KILLS):
            time.sleep(chance.random())
            servers.kill()
            assert [reader.poll() for reader in readers] == [None] * 3
            servers.start()
        stop.touch()
        said = [output(reader).split() for reader in readers]
        servers.kill()
        servers.close()
    log.info("files read, and the longest read in seconds, of each reader: %s", said)
    assert all(int(count) >= KILLS for count, _ in said), said
    assert all(float(longest) < LONGEST_S for _, longest in said), said
