# SPDX-License-Identifier: Apache-2.0
"""The device that is a file system of its own: FUSE, for kernels without file-backed EROFS.

Owns the connections of all mounts, and the numbers of the reads that they ask for. Does not decide
what is watched. Invariant: a mount is served before anybody can reach it, and its descriptors are
kept (`keep`) before that, so that it outlives this process.

Facts about FUSE mounts (Linux 5.4 to 6.18; tests/privileged/test_device_fuse.py shows them):

* Only the mount's backing device information bounds read-ahead after INIT. It is called as the
  device number of the mount.
* An ordinary user may mount in a mount namespace of its own, but not set read-ahead.
* The kernel checks permissions itself (``default_permissions``), for all users (``allow_other``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from weakref import WeakValueDictionary

from firstread.device import syscalls
from firstread.device.base import MOST_READS, NO_XATTRS, Capabilities, Pair, Read
from firstread.device.connection import Connection
from firstread.device.descriptors import is_dead
from firstread.device.erofsmount import unmount
from firstread.device.fuseconnection import FuseConnection
from firstread.device.fusefilesystem import open_fuse
from firstread.device.fusereads import Covers, Inside, SectorReader, nothing_covered
from firstread.device.fusetree import FuseTree, Tree
from firstread.device.readahead import KNOWN_START_KIB, read_ahead_of, set_read_ahead_of
from firstread.device.superblock import FileSystem
from firstread.device.waiting import Waiting
from firstread.device.watches import Watches, is_any_watched, make_watches, note_device
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import Extent
from firstread.errors import FirstreadError, from_os_error
from firstread.idmaps import owner
from firstread.sectors.sectorstore import SectorStore

FIRST_NUMBER = 1 << 24  # of a read: above all descriptors, which number the events of fanotify
MOST_OPEN = 128  # sector files that a mount keeps open, and all mounts together
MOST_OPEN_OF_ALL = 512
LEAST_OPEN = 4
_DEVICE = "/dev/fuse"
_TICK_S = 0.002  # between looks whether reads are answered
_HINT = "load the module fuse, or let this process use /dev/fuse"


class FuseDevice:
    """See `Device`.

    Args:
        store: of the sector files.
        given: descriptors of mounts that a process before has made, by device number; owned.
        keep: has somebody else hold the descriptors of a mount, too. Without it a mount ends with
            this process.
        drop: has that end.
        most: reads that may wait; more of them are retried later.

    Attributes:
        ask: takes a read that asks. Does not block.
        covers: see `ServedDevice`.
        patience_s: see `ServedDevice`.
    """

    name = "fuse"
    patience_s = 0.0
    capabilities = Capabilities(
        asks_for_sectors=False,
        sets_read_ahead=True,
        merges_reads=True,
        outlives_servers=False,
        file_system="fuse",
        known_start_kib=KNOWN_START_KIB,
    )

    _speaks: type[Connection] = FuseConnection

    def __init__(
        self,
        store: SectorStore,
        given: Mapping[int, Pair] = MappingProxyType({}),
        keep: Callable[[int, Pair], None] = lambda _, __: None,
        drop: Callable[[int], None] = lambda _: None,
        most: int = MOST_READS,
    ) -> None:
        self._store, self._keep, self._drop, self._most = store, keep, drop, most
        if owner():
            self.capabilities = dataclasses.replace(self.capabilities, sets_read_ahead=False)
        self.ask: Callable[[Read], None] = lambda _: None
        self.covers: Covers = nothing_covered
        self._numbers = itertools.count(FIRST_NUMBER)
        self._waiting: dict[int, tuple[Connection, Waiting]] = {}  # by number
        self._given = dict(given)  # and not adopted
        self._mapped: WeakValueDictionary[Path, mmap.mmap] = WeakValueDictionary()
        self._watches: dict[Connection, Watches] = {}  # replaced, never changed
        self._pairs: dict[Connection, tuple[int, Pair]] = {}
        self._lock = threading.Lock()  # of these
        self._keeping = threading.Lock()  # from a change to the word about it: numbers come again
        for device, (fd, watches) in given.items():
            if self._has_ended(device, fd):  # while nobody served it
                del self._given[device]
                os.close(fd)
                os.close(watches)
                drop(device)

    # -- mounts --------------------------------------------------------------------------------

    def attach(self, metadata: Path, ids: Sequence[bytes], mountpoint: Path) -> None:
        """See `Device`."""
        doing = f"cannot mount {metadata} at {mountpoint}"
        try:
            pair, connection = self._begin(metadata, ids)
            with self._mount(pair[0], metadata, ids, connection) as mount:
                self._keep_both(connection, os.fstat(mount).st_dev, pair)
                syscalls.move_mount(mount, os.fsencode(mountpoint))
        except OSError as exc:
            error = from_os_error(exc, doing)
            if exc.filename == _DEVICE:
                error.hint = _HINT
            raise error from exc

    def _has_ended(self, number: int, fd: int) -> bool:
        """Return whether a mount has, of which a process before has left a connection."""
        del number
        return is_dead(fd)

    def _begin(self, metadata: Path, ids: Sequence[bytes]) -> tuple[Pair, Connection]:
        """Return a connection without a file system, and its descriptors; all is watched."""
        with contextlib.ExitStack() as undo:
            fd = self._open_connection()
            undo.callback(os.close, fd)
            pair = fd, make_watches(ids)
            undo.callback(os.close, pair[1])
            connection = self._connect(metadata, ids, pair)
            undo.pop_all()
        self._note(connection, 0, pair)  # it ends with the connection from now on
        self.watch(ids)
        return pair, connection

    def _open_connection(self) -> int:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)

    def _keep_both(self, connection: Connection, number: int, pair: Pair) -> None:
        """Have somebody else hold the descriptors of a mount, whose number is known now."""
        with self._keeping:
            if connection not in self._pairs:
                raise OSError(errno.ENOTCONN, "the connection has ended")
            note_device(pair[1], number)
            self._note(connection, number, pair)
            self._keep(number, pair)

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
        return True

    def go_on(self, number: int) -> None:
        """See `Device`."""
        for connection in [c for c, (device, _) in self._pairs.copy().items() if device == number]:
            connection.go_on()

    def pairs(self) -> dict[int, Pair]:
        """Return copies of the descriptors of all mounts, by device number; the caller's."""
        found: dict[int, Pair] = {}
        with self._lock:
            mounted = {number: pair for number, pair in self._pairs.values() if number}
            for number, pair in {**self._given, **mounted}.items():
                with contextlib.suppress(OSError):  # too many are open; the mount is lost
                    found[number] = _copied(pair)
        return found

    def _note(self, connection: Connection, number: int, pair: Pair) -> None:
        with self._lock:
            self._given.pop(number, None)
            self._pairs[connection] = number, pair

    def _connect(self, metadata: Path, ids: Sequence[bytes], pair: Pair) -> Connection:
        memory = self._map(metadata)
        fd, watches_fd = pair
        watches = Watches(watches_fd, ids)

        tree, inside = self._shown(ErofsImage(memory), metadata)

        def reader() -> SectorReader:
            return SectorReader(self._store, ids, watches, self._most_open, inside, self.covers)

        def ask(connection: Connection, waiting: Waiting, parts: Sequence[Extent]) -> None:
            self._ask(connection, waiting, [(ids[part.slot], part) for part in parts])

        name, journal = str(metadata), watches.journal
        connection = self._speaks(name, fd, tree, reader, journal, ask, self._forget)
        with self._lock:
            self._watches = {**self._watches, connection: watches}
        return connection

    def _shown(self, image: ErofsImage, metadata: Path) -> tuple[Tree, Inside | None]:
        """Return what the kernel is to see, and what reads metadata, if extents may lie in it."""
        return FuseTree(image, has_xattrs=not metadata.with_name(NO_XATTRS).exists()), None

    def _mount(
        self, fd: int, metadata: Path, ids: Sequence[bytes], connection: Connection
    ) -> contextlib.AbstractContextManager[int]:
        """Give the descriptor of a detached mount of the image."""
        del ids
        return self._over_fuse(fd, metadata, connection, stat.S_IFDIR)

    def _over_fuse(
        self, fd: int, metadata: Path, connection: Connection, mode: int
    ) -> contextlib.AbstractContextManager[int]:
        """Give the descriptor of a detached mount of FUSE, see `open_fuse`."""
        return open_fuse(fd, metadata, connection, mode)

    def _map(self, metadata: Path) -> mmap.mmap:
        """Return metadata as memory, which all mounts of the image share."""
        memory = self._mapped.get(metadata)
        if memory is None:
            with metadata.open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            self._mapped[metadata] = memory
        return memory

    def _forget(self, connection: Connection) -> None:
        """Forget a connection that has ended, or never began."""
        with self._keeping:
            with self._lock:
                self._watches = {c: w for c, w in self._watches.items() if c is not connection}
                number, pair = self._pairs.pop(connection, (0, None))
                is_reused = any(number == other for other, _ in self._pairs.values())
            if number and not is_reused:
                self._drop(number)
        if pair is not None:
            os.close(pair[1])

    def _most_open(self) -> int:
        """Return how many sector files one mount may keep open."""
        share = MOST_OPEN_OF_ALL // max(1, len(self._watches))
        return max(LEAST_OPEN, min(MOST_OPEN, share))

    def offer(self, ids: Iterable[bytes]) -> None:
        """See `Device`: nothing is borrowed here."""

    def borrows(self, sector_id: bytes) -> bool:
        """See `Device`."""
        del sector_id
        return False

    def detach(self, mountpoint: Path, *, lazy: bool = False) -> None:
        """See `Device`."""
        unmount(mountpoint, lazy=lazy)

    def requests(self) -> int:
        """Return how often the kernel has asked for anything, of the mounts that stand."""
        return sum(connection.requests for connection in list(self._watches))

    # -- reads ---------------------------------------------------------------------------------

    def _ask(
        self, connection: Connection, waiting: Waiting, parts: Sequence[tuple[bytes, Extent]]
    ) -> None:
        """Ask for parts of sectors, all or none.

        Raises:
            OSError, FirstreadError: a file cannot be opened, or too many reads wait.
        """
        if self._waiting and len(self._waiting) + len(parts) > self._most:
            raise OSError(errno.EMFILE, "too many reads wait")
        reads: list[Read] = []
        try:
            for sector_id, part in parts:
                fd, number = self._store.open(sector_id, os.O_RDWR), next(self._numbers)
                reads.append(Read(number, 0, part.start, part.length, fd, sector_id))
        except (OSError, FirstreadError):
            for read in reads:
                os.close(read.fd)
            raise
        with self._lock:
            self._waiting.update((read.number, (connection, waiting)) for read in reads)
        for read in reads:
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

    def settle(self, seconds: float) -> None:
        """Wait until given answers have reached the kernel, at most so long."""
        deadline = time.monotonic() + seconds
        for connection in list(self._watches):
            while not connection.is_settled() and time.monotonic() < deadline:
                time.sleep(_TICK_S)

    def let_fail(self) -> None:
        """See `ServedDevice`: the kernel does it once nobody holds the descriptors."""

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
        for connection, watches in self._watches.items():
            if watches.set(chosen, on=on):
                self._changed(connection, watches)

    def _changed(self, connection: Connection, watches: Watches) -> None:
        """Know that other sectors of a mount are watched now."""

    def is_watching(self) -> bool:
        """See `Device`."""
        with self._lock:
            given = [watches for _, watches in self._given.values()]
            return any(map(is_any_watched, given)) or any(
                watches.exist() for watches in self._watches.values()
            )

    # -- read-ahead ----------------------------------------------------------------------------

    def set_read_ahead(self, file_system: FileSystem, kib: int) -> None:
        """See `Device`."""
        set_read_ahead_of(file_system, kib)

    def read_ahead(self, file_system: FileSystem) -> int:
        """See `Device`."""
        return read_ahead_of(file_system)


def _copied(pair: Pair) -> Pair:
    """Return copies of both descriptors.

    Raises:
        OSError: there is no room for two.
    """
    connection = os.dup(pair[0])
    try:
        return connection, os.dup(pair[1])
    except OSError:
        os.close(connection)
        raise
