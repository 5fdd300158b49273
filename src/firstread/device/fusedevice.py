# SPDX-License-Identifier: Apache-2.0
"""The device that is a file system of its own: FUSE, for kernels without file-backed EROFS.

Owns the connections of all mounts, and the numbers of the reads that they ask for. Does not decide
what is watched. Invariant: a mount is served before anybody can reach it, and its descriptors are
kept (`keep`) before that, so that it outlives this process.

Facts about FUSE mounts (Linux 5.4 to 6.18; tests/privileged/test_device_fuse.py shows them):

* Mounting returns before INIT is answered; what reaches the mount waits for it.
* ``fd`` names the descriptor in the process that calls fsconfig(2).
* Only the mount's backing device information bounds read-ahead after INIT. It is called as the
  device number of the mount.
* The kernel checks permissions itself (``default_permissions``), for all users (``allow_other``).
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from firstread.device import syscalls
from firstread.device.base import Capabilities, Read
from firstread.device.erofsmount import unmount
from firstread.device.fuseconnection import Connection, Waiting
from firstread.device.fuseprotocol import MOST_BYTES
from firstread.device.fusereads import SectorReader
from firstread.device.fusetree import FuseTree
from firstread.device.readahead import BDI
from firstread.device.superblock import FileSystem
from firstread.device.watches import Watches, make_watches, note_device
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import Extent
from firstread.errors import from_os_error
from firstread.sectors.sectorstore import SectorStore

FIRST_NUMBER = 1 << 24  # of a read: above all descriptors, which number the events of fanotify
Pair = tuple[int, int]
"""Descriptors of a mount: its connection, and its watches."""
_DEVICE = "/dev/fuse"
_HINT = "load the module fuse, or let this process use /dev/fuse"


class FuseDevice:
    """See `Device`.

    Args:
        store: of the sector files.
        given: descriptors of mounts that a process before has made, by device number; owned.
        keep: has somebody else hold the descriptors of a mount, too. Without it a mount ends with
            this process.
        drop: has that end.

    Attributes:
        ask: takes a read that asks. Does not block.
    """

    name = "fuse"
    capabilities = Capabilities(
        asks_when_present=False,
        fails_closed=True,
        fills_at_random=False,
        asks_for_sectors=False,
        sets_read_ahead=True,
        merges_reads=True,
        outlives_servers=False,
    )

    def __init__(
        self,
        store: SectorStore,
        given: Mapping[int, Pair] = MappingProxyType({}),
        keep: Callable[[int, Pair], None] = lambda _, __: None,
        drop: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store, self._keep, self._drop = store, keep, drop
        self.ask: Callable[[Read], None] = lambda _: None
        self._numbers = itertools.count(FIRST_NUMBER)
        self._waiting: dict[int, tuple[Connection, Waiting]] = {}  # by number
        self._given = dict(given)  # and not adopted
        self._watches: dict[Connection, Watches] = {}  # replaced, never changed
        self._pairs: dict[Connection, tuple[int, Pair]] = {}
        self._lock = threading.Lock()  # of these

    # -- mounts --------------------------------------------------------------------------------

    def attach(self, metadata: Path, ids: Sequence[bytes], mountpoint: Path) -> None:
        """See `Device`."""
        doing = f"cannot mount {metadata} at {mountpoint}"
        try:
            fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            error = from_os_error(exc, doing)
            error.hint = _HINT
            raise error from exc
        try:
            pair = fd, make_watches(len(ids))
            try:
                connection = self._connect(metadata, ids, pair)
            except BaseException:
                for each in pair:
                    os.close(each)
                raise
            self._note(connection, 0, pair)  # it ends with the connection from now on
            self.watch(ids)
            with _file_system(fd, metadata, connection) as mount:
                number = os.fstat(mount).st_dev
                note_device(pair[1], number)
                self._note(connection, number, pair)
                self._keep(number, pair)
                syscalls.move_mount(mount, os.fsencode(mountpoint))
        except OSError as exc:
            raise from_os_error(exc, doing) from exc

    def adopt(self, metadata: Path, ids: Sequence[bytes], number: int) -> bool:
        """See `Device`."""
        with self._lock:
            pair = self._given.get(number)
            if pair is None:
                return number in (device for device, _ in self._pairs.values())
        try:
            connection = self._connect(metadata, ids, pair)
        except OSError as exc:
            raise from_os_error(exc, "cannot read the metadata of a mount") from exc
        self._note(connection, number, pair)
        connection.start()
        connection.ask_again()
        return True

    def pairs(self) -> dict[int, Pair]:
        """Return the descriptors of all mounts, by device number; for another process."""
        with self._lock:
            mounted = {number: pair for number, pair in self._pairs.values() if number}
            return {**self._given, **mounted}

    def _note(self, connection: Connection, number: int, pair: Pair) -> None:
        with self._lock:
            self._given.pop(number, None)
            self._pairs[connection] = number, pair

    def _connect(self, metadata: Path, ids: Sequence[bytes], pair: Pair) -> Connection:
        with metadata.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        fd, watches_fd = pair
        watches = Watches(watches_fd, ids)

        def reader() -> SectorReader:
            return SectorReader(self._store, ids, watches)

        def number(connection: Connection, waiting: Waiting, part: Extent) -> Read:
            return self._number(connection, waiting, part, ids[part.slot])

        tree = FuseTree(ErofsImage(memory))
        connection = Connection(str(metadata), fd, tree, reader, number, self._take, self._forget)
        with self._lock:
            self._watches = {**self._watches, connection: watches}
        return connection

    def _forget(self, connection: Connection) -> None:
        """Forget a connection that has ended, or never began."""
        with self._lock:
            self._watches = {c: w for c, w in self._watches.items() if c is not connection}
            number, pair = self._pairs.pop(connection, (0, None))
        if pair is not None:
            os.close(pair[1])
        if number:
            self._drop(number)

    def detach(self, mountpoint: Path, *, lazy: bool = False) -> None:
        """See `Device`."""
        unmount(mountpoint, lazy=lazy)

    def requests(self) -> int:
        """Return how often the kernel has asked for anything, of the mounts that stand."""
        return sum(connection.requests for connection in list(self._watches))

    # -- reads ---------------------------------------------------------------------------------

    def _number(
        self, connection: Connection, waiting: Waiting, part: Extent, sector_id: bytes
    ) -> Read:
        fd = self._store.open(sector_id, os.O_RDWR)
        number = next(self._numbers)
        with self._lock:
            self._waiting[number] = connection, waiting
        return Read(number, 0, part.start, part.length, fd, sector_id)

    def _take(self, read: Read) -> None:
        self.ask(read)

    def answer(self, number: int, *, allow: bool = True) -> bool:
        """See `Device`."""
        with self._lock:
            found = self._waiting.pop(number, None)
        if found is None:
            return False
        connection, waiting = found
        connection.answered(waiting, allow=allow)
        return True

    # -- watches -------------------------------------------------------------------------------

    def watch(self, ids: Iterable[bytes]) -> None:
        """See `Device`."""
        self._set(ids, on=True)

    def unwatch(self, ids: Iterable[bytes]) -> None:
        """See `Device`."""
        self._set(ids, on=False)

    def unwatch_file(self, sector_id: bytes, fd: int) -> None:
        """See `Device`."""
        del fd
        self._set([sector_id], on=False)

    def _set(self, ids: Iterable[bytes], *, on: bool) -> None:
        chosen = list(ids)
        for watches in self._watches.values():
            watches.set(chosen, on=on)

    def is_watching(self) -> bool:
        """See `Device`."""
        return any(watches.exist() for watches in self._watches.values())

    # -- read-ahead ----------------------------------------------------------------------------

    def set_read_ahead(self, file_system: FileSystem, kib: int) -> None:
        """See `Device`."""
        try:
            _read_ahead_file(file_system).write_text(f"{kib}\n")
        except OSError as exc:
            raise from_os_error(exc, "cannot set the read-ahead") from exc

    def read_ahead(self, file_system: FileSystem) -> int:
        """See `Device`."""
        try:
            return int(_read_ahead_file(file_system).read_text())
        except OSError as exc:
            raise from_os_error(exc, "cannot read the read-ahead") from exc


def _read_ahead_file(file_system: FileSystem) -> Path:
    device = file_system.device
    return BDI / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"


@contextlib.contextmanager
def _file_system(fd: int, metadata: Path, connection: Connection) -> Iterator[int]:
    """Make the file system of a connection, and serve it; give the descriptor of its mount.

    If the block fails before it has moved the mount, the file system ends, and the connection
    with it.
    """
    context = -1
    try:
        try:
            context = syscalls.fsopen("fuse")
            for key, value in (
                ("source", os.fsencode(metadata.absolute())),
                ("fd", b"%d" % fd),
                ("rootmode", b"%o" % stat.S_IFDIR),
                ("user_id", b"0"),
                ("group_id", b"0"),
                ("max_read", b"%d" % MOST_BYTES),
            ):
                syscalls.fsconfig_string(context, key, value)
            for flag in ("ro", "allow_other", "default_permissions"):
                syscalls.fsconfig_flag(context, flag)
            syscalls.fsconfig_create(context)
        except BaseException:
            connection.abandon()
            raise
        connection.start()
        attributes = (
            syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
        )
        mount = syscalls.fsmount(context, attributes)
    finally:
        if context >= 0:
            os.close(context)
    try:
        yield mount
    finally:
        os.close(mount)
