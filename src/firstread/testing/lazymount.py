# SPDX-License-Identifier: Apache-2.0
"""A small lazy mount for tests: one file per sector, every sector absent and marked.

Owns a sector store, a fanotify group and an EROFS mount below a scratch directory, and the child
processes that read. Serves only in `serve`, so that a test decides what is answered when.
Invariant: the process that serves never reads through the mount; that could wait for itself.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from firstread.device.erofsmount import mount_erofs, unmount
from firstread.device.fanotify import Event, Group
from firstread.erofs.tree import Device, Node, chunk_address, directory
from firstread.erofs.writer import write_erofs
from firstread.sectors.store import SectorStore
from firstread.testing.patience import PATIENCE_S
from firstread.units import MiB

SECTOR_BYTES = 1 * MiB

_READER = """
import hashlib, mmap, os, sys
path, offset, count, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
data = b""
try:
    fd = os.open(path, os.O_RDONLY)
    if how == "mmap":
        data = mmap.mmap(fd, 0, prot=mmap.PROT_READ)[offset:offset + count]
    elif how == "sendfile":
        source, sink = os.pipe()
        while len(data) < count:
            done = os.sendfile(sink, fd, offset + len(data), min(count - len(data), 65536))
            data += os.read(source, done)
    else:
        if how == "random":
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        data = os.pread(fd, count, offset)
    print(len(data), hashlib.sha256(data).hexdigest())
except OSError as exc:
    print("errno", exc.errno)
"""


def summary(data: bytes) -> str:
    """Return what a reader prints that got `data`."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


class LazyMount:
    """`sectors` files ``0``, ``1`` … of one sector each, mounted with nothing of them here.

    Args:
        scratch: an empty directory on ext4, xfs or btrfs.
    """

    def __init__(
        self, scratch: Path, *, sectors: int = 4, sector_bytes: int = SECTOR_BYTES
    ) -> None:
        random_bytes = random.Random(1).randbytes
        self.data = [random_bytes(sector_bytes) for _ in range(sectors)]
        self.ids = [hashlib.sha256(data).digest() for data in self.data]
        self.mountpoint = scratch / "mnt"
        self.mountpoint.mkdir()
        self.metadata = scratch / "metadata"
        write_metadata(self.metadata, self.ids, sector_bytes)
        self.store = SectorStore(scratch / "store")
        self.store.ensure(self.ids)
        self.group = Group.open()
        self.group.mark_names(self.store.fileno(), self.store.names(self.ids))
        mount_erofs(self.metadata, [self.path(i) for i in range(sectors)], self.mountpoint)
        self._readers: list[subprocess.Popen[str]] = []
        self._buffer = memoryview(bytearray(4096))

    def close(self) -> None:
        """Unmount, and end the readers that still wait."""
        self.group.close()
        for reader in self._readers:
            reader.kill()
            reader.wait(timeout=PATIENCE_S)
            assert reader.stdout is not None
            reader.stdout.close()
        unmount(self.mountpoint, lazy=True)
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, sector: int) -> Path:
        """Return the sector file of slot `sector`."""
        return self.store.path(self.ids[sector])

    def sector_of(self, event: Event) -> int:
        """Return the slot that an event is about."""
        return self.ids.index(self.store.id_of(event.fd))

    def read(
        self, sector: int, offset: int = 0, count: int = 4096, how: str = "read"
    ) -> subprocess.Popen[str]:
        """Start a child that reads from file `sector`; `how`: read, random, mmap or sendfile."""
        arguments = [str(self.mountpoint / str(sector)), str(offset), str(count), how]
        command = [sys.executable, "-I", "-S", "-c", _READER, *arguments]
        self._readers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return self._readers[-1]

    def events(self, timeout: float = PATIENCE_S) -> list[Event]:
        """Return the events that come within `timeout` seconds, at the first that does."""
        select.select([self.group], [], [], timeout)
        return self.group.read(self._buffer)

    def fill(self, event: Event, *, short: int = 0) -> None:
        """Grow the sector file until it covers the event but for `short` bytes, and allow."""
        sector = self.sector_of(event)
        have, need = os.fstat(event.fd).st_size, event.offset + event.count - short
        os.pwrite(event.fd, self.data[sector][have:need], have)
        self.group.finish([event.fd])

    def complete(self, event: Event) -> None:
        """Fill the whole sector, unmark it, and allow."""
        data = self.data[self.sector_of(event)]
        have = os.fstat(event.fd).st_size
        os.pwrite(event.fd, data[have:], have)
        self.group.unmark(event.fd)
        self.group.finish([event.fd])

    def deny(self, event: Event) -> None:
        """Let the read fail."""
        self.group.finish([event.fd], allow=False)

    def serve(
        self, reader: subprocess.Popen[str], answer: Callable[[Event], None]
    ) -> tuple[str, list[tuple[int, int, int]]]:
        """Answer events until `reader` ends; return its output and (slot, offset, count) of each.

        Raises:
            TimeoutError: it has not ended in 10 seconds.
        """
        seen: list[tuple[int, int, int]] = []
        deadline = time.monotonic() + PATIENCE_S
        while reader.poll() is None:
            if time.monotonic() > deadline:
                reader.kill()
                raise TimeoutError(f"the reader still waits after the events {seen}")
            for event in self.events(timeout=0.01):
                seen.append((self.sector_of(event), event.offset, event.count))
                answer(event)
        return output(reader), seen


def output(reader: subprocess.Popen[str]) -> str:
    """Wait for a reader and return what it printed: a `summary`, ``errno N``, or nothing."""
    return reader.communicate(timeout=PATIENCE_S)[0].strip()


def write_metadata(path: Path, ids: list[bytes], sector_bytes: int) -> None:
    """Write metadata with a file ``0``, ``1`` … that is exactly the sector of that slot."""
    root = directory()
    for slot in range(len(ids)):
        assert root.children is not None
        root.children[str(slot).encode()] = Node(
            0o100755,
            size=sector_bytes,
            chunk_size=sector_bytes,
            chunks=[chunk_address(slot, 0)],
        )
    with path.open("wb") as out:
        write_erofs(out, root, [Device(tag, sector_bytes // 4096) for tag in ids])
