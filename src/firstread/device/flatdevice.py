# SPDX-License-Identifier: Apache-2.0
"""The device that is one file over FUSE, with EROFS on top: for kernels that know EROFS.

Owns the way from that file to a mount: EROFS takes the file itself, or a loop device of it.
`FuseDevice` serves the file. Invariant: nothing but EROFS, or its loop device, has the file open,
and its FUSE mount has no place in any namespace; so connection and mount end together.

Facts about EROFS on a file over FUSE (Linux 5.15 to 6.18; tests/privileged/test_device_flat.py
shows them):

* EROFS reads ahead in large directories (Linux 6.17), and then the kernel does in the file: hence a
  gap between metadata and sectors, or names would wait for data.
* File-backed, the page cache holds data twice, that of the file and that of EROFS, besides the
  sector file. A file keeps the read-ahead that its mount had when EROFS opened it; what it reads
  ahead goes beyond what the read-ahead of EROFS allows, as far as that.
* A loop device offers O_DIRECT. It reads directly while a read can have to wait, and neither is the
  case then; else as if the file had no EROFS, through the page cache of the file (`LoopCaching`).
* The last unmount waits, deaf, for reads that a block device still does, for killed readers or
  ahead of others, and sync(2) waits for it. Reads of a file do not outlive their readers.
* Once nobody holds the connection, absent bytes are EIO. EROFS on a loop device is served again
  with another file (`change_file`); EROFS on a file has to be mounted again.
* EROFS opens ``source`` by path, and the list of mounts shows that path: a symbolic link beside the
  metadata, which is there for that moment only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from firstread.device.base import INDEX_RUNS, Pair
from firstread.device.connection import Connection
from firstread.device.erofsmount import open_erofs
from firstread.device.flattree import FAR_KIB, NEAR_KIB, FlatTree
from firstread.device.fusedevice import FuseDevice
from firstread.device.fusereads import Inside
from firstread.device.fusetree import Tree
from firstread.device.loopcaching import LoopCaching
from firstread.device.loopdevice import (
    MAJOR,
    attach_loop,
    change_file,
    complete_at_reader,
    give_back,
    may_cache,
)
from firstread.device.readahead import BDI, START_KIB
from firstread.device.watches import Watches
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.indexruns import IndexRuns
from firstread.erofs.validation import validate
from firstread.errors import NodeError, from_os_error
from firstread.mountinfo import read_mountinfo
from firstread.wholefile import replace_file

log = logging.getLogger("device")

GRACE_S = 0.3  # that an unmount may take without anything left to do
FLAT = ".flat"  # behind the path of metadata: the source of such a mount
_AHEAD_BYTES = 1 << 20  # of metadata at a time: the kernel begins with no more
_MOST_AHEAD_BYTES = 32 << 20  # in 64 requests, of the 128 that a block device takes at a time


class FlatDevice(FuseDevice):
    """See `Device`; arguments as those of `FuseDevice`."""

    name = "flat"
    capabilities = dataclasses.replace(
        FuseDevice.capabilities, file_system="erofs", known_start_kib=START_KIB
    )
    _loop = False  # EROFS has a loop device, though it may take files
    _caching: Mapping[Connection, LoopCaching] = MappingProxyType({})  # replaced

    def adopt(self, metadata: Path, ids: Sequence[bytes], number: int) -> bool:
        """See `Device`: a loop device that nobody has served meanwhile gets a new file."""
        if super().adopt(metadata, ids, number):
            return True
        if os.major(number) != MAJOR:
            return False
        try:
            pair, connection = self._begin(metadata, ids)
            with self._file(pair[0], metadata, ids, connection) as file:
                self._keep_both(connection, number, pair)
                change_file(number, file)
        except OSError as exc:
            log.warning("the loop device of %s cannot be served again: %s", metadata, exc)
            return False
        return True

    def _note(self, connection: Connection, number: int, pair: Pair) -> None:
        super()._note(connection, number, pair)
        if os.major(number) != MAJOR:
            return
        complete_at_reader(number)
        if may_cache():
            with self._lock:
                self._caching = {**self._caching, connection: LoopCaching(number)}
            self._changed(connection, self._watches[connection])

    def _forget(self, connection: Connection) -> None:
        number, _ = self._pairs.get(connection, (0, None))
        super()._forget(connection)
        if os.major(number) == MAJOR:
            give_back(number)
        with self._lock:
            caching = dict(self._caching)
            ended = caching.pop(connection, None)
            self._caching = caching
        if ended is not None:
            ended.end()

    def _changed(self, connection: Connection, watches: Watches) -> None:
        with self._lock:
            caching = self._caching.get(connection)
            if caching is not None:  # a loop device, and it has not ended
                caching.want(cached=not watches.exist())

    def detach(self, mountpoint: Path, *, lazy: bool = False) -> None:
        """See `Device`: reads that a block device still does, for nobody, fail."""
        number = 0
        with contextlib.suppress(OSError):
            number = os.stat(mountpoint).st_dev
        done = threading.Event()
        if os.major(number):  # of a block device
            deny = threading.Thread(target=self._deny_left, args=(number, done), daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads: it may take longer
                deny.start()
        try:
            super().detach(mountpoint, lazy=lazy)
        finally:
            done.set()

    def _deny_left(self, number: int, done: threading.Event) -> None:
        """Deny what is left of a mount that is gone while its unmount does not return."""
        while not done.wait(GRACE_S):
            try:
                if any(line.device == number for line in read_mountinfo()):
                    continue
            except OSError:  # too many files are open, for example
                continue
            with self._lock:
                found = [c for c, (device, _) in self._pairs.items() if device == number]
                left = [read for read, (asker, _) in self._waiting.items() if asker in found]
            for read in left:
                self.answer(read, allow=False)

    def _shown(self, image: ErofsImage, metadata: Path) -> tuple[Tree, Inside | None]:
        tree = FlatTree(image, lambda: _runs_of(image, metadata))
        return tree, tree.metadata

    @contextlib.contextmanager
    def _mount(
        self, fd: int, metadata: Path, ids: Sequence[bytes], connection: Connection
    ) -> Iterator[int]:
        with self._file(fd, metadata, ids, connection) as file:
            mount = self._erofs(file, metadata)
        try:
            yield mount
        finally:
            os.close(mount)

    @contextlib.contextmanager
    def _file(
        self, fd: int, metadata: Path, ids: Sequence[bytes], connection: Connection
    ) -> Iterator[int]:
        """Give the descriptor of the file of a connection; the connection ends with its users."""
        with self._over_fuse(fd, metadata, connection, stat.S_IFREG) as mount:
            number = os.fstat(mount).st_dev  # asks for the size, too
            # Far ahead only where that fetches nothing which nobody reads. A loop device does
            # not read ahead while anything is absent.
            kib = FAR_KIB if self._loop or all(map(self._has_bytes, ids)) else NEAR_KIB
            with contextlib.suppress(OSError):  # the kernel's own is 128 KiB
                place = BDI / f"{os.major(number)}:{os.minor(number)}" / "read_ahead_kb"
                place.write_text(f"{kib}\n")
            file = os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield file
            finally:
                os.close(file)

    def _has_bytes(self, sector_id: bytes) -> bool:
        status = self._store.look(sector_id)
        return status is not None and status.st_size > 0

    def _erofs(self, file: int, metadata: Path) -> int:
        """Return the descriptor of a detached mount of EROFS on the file."""
        if not self._loop:
            try:
                return open_flat(f"/proc/self/fd/{file}", metadata)
            except NodeError as exc:
                if not _is_no_block_device(exc.__cause__):
                    raise
                self._loop = True  # so it is with the next one
        try:
            loop, path = attach_loop(file)
        except OSError as exc:
            error = from_os_error(exc, "cannot make a loop device")
            error.hint = "load the module loop, and let this process use /dev/loop-control"
            raise error from exc
        try:
            mount = open_flat(path, metadata)
            begin_metadata(loop, metadata)
            return mount
        finally:
            os.close(loop)


class LoopDevice(FlatDevice):
    """`FlatDevice` with a loop device, whether it is needed or not."""

    name = "loop"
    _loop = True


def open_flat(path: str, metadata: Path) -> int:
    """Return the descriptor of a detached mount of the flat form that is at a path."""
    link = metadata.with_name(metadata.name + FLAT)
    with contextlib.suppress(FileNotFoundError):  # of a process that was killed
        link.unlink()
    link.symlink_to(path)
    try:
        return open_erofs(link, (), f"cannot mount {metadata}", options=("ro",))
    finally:
        link.unlink()


def begin_metadata(device: int, metadata: Path) -> None:
    """Have the kernel read the metadata of a flat form that is a block device, without waiting.

    EROFS reads it block by block, and each of them is a request to the process that serves it.

    Args:
        device: descriptor of the block device, of which nobody reads yet: it has room for these
            requests, so who is killed here ends.
        metadata: of the image; what is behind 32 MiB comes as it is read.
    """
    with contextlib.suppress(OSError):  # it comes as it is read
        size = min(metadata.stat().st_size, _MOST_AHEAD_BYTES)
        for at in range(0, size, _AHEAD_BYTES):
            length = min(_AHEAD_BYTES, size - at)
            os.posix_fadvise(device, at, length, os.POSIX_FADV_WILLNEED)


def _runs_of(image: ErofsImage, metadata: Path) -> IndexRuns:
    """Return where the chunk indexes of an image lie; keep it if that is not kept beside it.

    Raises:
        ImageError: as `validate`.
    """
    kept = metadata.with_name(INDEX_RUNS)
    try:
        return IndexRuns.from_bytes(kept.read_bytes())
    except (OSError, ValueError):
        runs = validate(image).runs
    with contextlib.suppress(OSError):  # as when another mount does the same: the next one looks
        replace_file(kept, runs.to_bytes())
    return runs


def _is_no_block_device(cause: BaseException | None) -> bool:
    return isinstance(cause, OSError) and cause.errno == errno.ENOTBLK
