# SPDX-License-Identifier: Apache-2.0
"""A device with an image on it and nothing of it here, which a test serves by hand.

Owns the interface that `firstread.testing.suites.device` is written against, and the child
processes that read. Serves only in `DeviceBench.serve`, so that a test decides what is answered
when. Invariant: the process that serves never reads through the mount; that could wait for itself.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from firstread.device.base import Device, Read
from firstread.testing.patience import PATIENCE_S

_READER = """
import ctypes, hashlib, mmap, os, struct, sys
offset, count, how, *paths = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]

def pages(fd):
    data = b""
    while len(data) < count and (part := os.pread(fd, count - len(data), offset + len(data))):
        data += part
    return data

def random(fd):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return os.pread(fd, count, offset)

def vector(fd):
    parts = [bytearray(count // 2), bytearray(count - count // 2)]
    done = os.preadv(fd, parts, offset)
    return b"".join(parts)[:done]

def mapped(fd):
    return mmap.mmap(fd, 0, prot=mmap.PROT_READ)[offset:offset + count]

def through_pipe(move):
    source, sink = os.pipe()
    data = b""
    while len(data) < count and (done := move(sink, len(data))):
        data += os.read(source, done)
    return data

def sendfile(fd):
    return through_pipe(lambda sink, at: os.sendfile(sink, fd, offset + at, min(count - at, 65536)))

def splice(fd):
    return through_pipe(
        lambda sink, at: os.splice(fd, sink, min(count - at, 65536), offset_src=offset + at)
    )

def copied(fd):
    target = os.open(os.environ["TMPDIR"], os.O_TMPFILE | os.O_RDWR)
    at = 0
    while at < count and (done := os.copy_file_range(fd, target, count - at, offset + at)):
        at += done
    return os.pread(target, count, 0)

def io_uring(fd):
    def call(*arguments):
        done = libc.syscall(*arguments)
        if done < 0:
            raise OSError(ctypes.get_errno(), "io_uring")
        return done
    libc = ctypes.CDLL(None, use_errno=True)
    params = (ctypes.c_char * 120)()
    ring = call(425, 1, params)
    offsets = struct.unpack_from("10I 10I 10I", params)
    (_, tail, _, _, _, _, array), (_, _, _, _, _, entries) = offsets[10:17], offsets[20:26]
    queue = mmap.mmap(ring, 4096)
    asked = mmap.mmap(ring, 64, offset=0x10000000)
    data = mmap.mmap(-1, count)
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    struct.pack_into("=BBHiQQI", asked, 0, 22, 0, 0, fd, offset, address, count)
    struct.pack_into("=I", queue, array, 0)
    struct.pack_into("=I", queue, tail, 1)
    call(426, ring, 1, 1, 1, None, 0)
    _, done = struct.unpack_from("=Qi", queue, entries)
    if done < 0:
        raise OSError(-done, "io_uring")
    return data[:done]

HOW = {"read": lambda fd: os.pread(fd, count, offset), "direct": pages, "mmap": mapped,
       "copy_file_range": copied, **{f.__name__: f for f in
       (pages, random, vector, sendfile, splice, io_uring)}}
said = {}

def read(path):
    try:
        data = HOW[how](os.open(path, os.O_RDONLY | (os.O_DIRECT if how == "direct" else 0)))
        said[path] = f"{len(data)} {hashlib.sha256(data).hexdigest()}"
    except OSError as exc:
        said[path] = f"errno {exc.errno}"

if len(paths) > 1:
    import threading
    threading.stack_size(131072)
    threads = [threading.Thread(target=read, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
else:
    read(*paths)
for path in paths:
    print(said[path])
"""


def summary(data: bytes) -> str:
    """Return what a reader prints that got `data`."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def start_reader(
    path: Path, offset: int = 0, count: int = 4096, how: str = "read"
) -> subprocess.Popen[str]:
    """Start a process that reads; it prints a `summary`, or ``errno N``.

    Args:
        path: of the file.
        offset: first byte.
        count: bytes.
        how: ``read`` (once), ``pages`` (until all is there), ``random`` (without readahead),
            ``vector``, ``mmap``, ``sendfile``, ``splice``, ``copy_file_range``, ``io_uring`` or
            ``direct``.
    """
    return start_readers([path], offset, count, how)


def start_readers(
    paths: Sequence[Path], offset: int = 0, count: int = 4096, how: str = "read"
) -> subprocess.Popen[str]:
    """Start one process that reads several files, each in a thread; it prints a line for each."""
    command = [sys.executable, "-I", "-S", "-c", _READER, str(offset), str(count), how]
    return subprocess.Popen(
        [*command, *map(str, paths)],
        stdout=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(paths[0].parent.parent)},
    )


def output(reader: subprocess.Popen[str]) -> str:
    """Wait for a reader and return what it printed: a `summary`, ``errno N``, or nothing."""
    return reader.communicate(timeout=PATIENCE_S)[0].strip()


class DeviceBench(ABC):
    """A mounted image, every sector of it absent and watched; a context manager.

    Attributes:
        device: that asks.
        mountpoint: of the image.
        data: content of each sector, by its slot; file ``3`` is the sector at slot 3, unless the
            image is another one.
        ids: of the sectors.
    """

    device: Device
    mountpoint: Path
    data: list[bytes]
    ids: list[bytes]
    beyond_bytes = 0  # that reads may ask for, though read-ahead of the mount ends before

    def __init__(self) -> None:
        self._readers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Unmount, and end the readers that still wait."""

    def end_readers(self) -> None:
        """End the readers that still wait; nobody has to answer them."""
        for reader in self._readers:
            reader.kill()
            reader.communicate(timeout=PATIENCE_S)

    # -- what the kernel asks ------------------------------------------------------------------

    @abstractmethod
    def reads(self, timeout: float = PATIENCE_S) -> list[Read]:
        """Return the reads that come within `timeout` seconds, at the first that does."""

    def slot_of(self, read: Read) -> int:
        """Return the slot of the sector that a read is about."""
        return self.ids.index(read.sector_id)

    def fill(self, read: Read, *, short: int = 0) -> None:
        """Fill the sector until it covers the read but for `short` bytes, and allow."""
        whole = len(self.data[self.slot_of(read)])
        self._write(read, min(read.offset + read.length, whole) - short)
        self._answer(read)

    def complete(self, read: Read) -> None:
        """Fill the whole sector, unwatch it, and allow."""
        self._write(read, len(self.data[self.slot_of(read)]))
        self.device.unwatch_file(read.sector_id, read.fd)
        self._answer(read)

    def deny(self, read: Read) -> None:
        """Let the read fail."""
        self._answer(read, allow=False)

    def _write(self, read: Read, until: int) -> None:
        have = os.fstat(read.fd).st_size
        os.pwrite(read.fd, self.data[self.slot_of(read)][have:until], have)

    def _answer(self, read: Read, *, allow: bool = True) -> None:
        self.device.answer(read.number, allow=allow)
        os.close(read.fd)

    @staticmethod
    def _in_child(act: Callable[[], None]) -> None:
        child = os.fork()
        if child == 0:
            try:
                act()
            finally:
                os._exit(0)
        os.waitpid(child, 0)

    # -- what becomes of sectors, and of those who serve ---------------------------------------

    @abstractmethod
    def empty(self, slot: int) -> None:
        """Make a watched sector absent."""

    @abstractmethod
    def hand_over(self, read: Read) -> None:
        """Have another process fill and answer a read that this one has taken."""

    @abstractmethod
    def lose(self) -> None:
        """End whatever holds the device: nobody serves."""

    @abstractmethod
    def heal(self) -> None:
        """Serve the same mount again."""

    # -- readers -------------------------------------------------------------------------------

    def read(
        self, name: int | str, offset: int = 0, count: int = 4096, how: str = "read"
    ) -> subprocess.Popen[str]:
        """Start a child that reads from a file of the mount, see `start_reader`."""
        return self.started(start_reader(self.mountpoint / str(name), offset, count, how))

    def started(self, reader: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """Have a reader ended with this; return it."""
        self._readers.append(reader)
        return reader

    def serve(
        self, reader: subprocess.Popen[str], answer: Callable[[Read], None]
    ) -> tuple[str, list[tuple[int, int, int]]]:
        """Answer reads until `reader` ends; return its output and (slot, offset, length) of each.

        Raises:
            TimeoutError: it does not end.
        """
        seen: list[tuple[int, int, int]] = []
        deadline = time.monotonic() + PATIENCE_S
        while reader.poll() is None:
            if time.monotonic() > deadline:
                reader.kill()
                raise TimeoutError(f"the reader still waits after the reads {seen}")
            for read in self.reads(timeout=0.01):
                seen.append((self.slot_of(read), read.offset, read.length))
                answer(read)
        return output(reader), seen
