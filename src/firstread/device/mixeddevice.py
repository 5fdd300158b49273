# SPDX-License-Identifier: Apache-2.0
"""The device that gives EROFS the store's files of present sectors, and FUSE files of others.

Owns which sectors of a mount are read without anybody's help. Invariant: their files stay as they
are as long as the mount is used (`borrows`): nobody sees who reads them, and EROFS would find
them shorter. It serves sectors that were absent, or doubted, at the mount.

EROFS has to take files (Linux >= 6.12). A sector that is served stays so until the image is mounted
anew, and one is always served: the connection ends with the last file of it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from firstread.device.base import Pair
from firstread.device.connection import Connection
from firstread.device.erofsmount import open_erofs
from firstread.device.flatdevice import FlatDevice
from firstread.device.fusereads import Inside
from firstread.device.fusetree import Tree
from firstread.device.sectortree import SectorTree
from firstread.device.watches import Watches, lent_by
from firstread.erofs.erofsimage import ErofsImage


class MixedDevice(FlatDevice):
    """See `Device`; arguments as those of `FuseDevice`."""

    name = "mixed"

    _offered: frozenset[bytes] = frozenset()  # to the next mount
    _borrowed: Mapping[Connection, frozenset[bytes]] = MappingProxyType({})  # replaced

    @cached_property
    def _before(self) -> Mapping[int, frozenset[bytes]]:
        """Sectors that mounts of a process before have borrowed, by device number."""
        return {number: lent_by(pair[1]) for number, pair in self._given.copy().items()}

    def attach(self, metadata: Path, ids: Sequence[bytes], mountpoint: Path) -> None:
        """See `Device`."""
        try:
            super().attach(metadata, ids, mountpoint)
        finally:
            self._offered = frozenset()

    def offer(self, ids: Iterable[bytes]) -> None:
        """See `Device`."""
        self._offered |= frozenset(ids)

    def borrows(self, sector_id: bytes) -> bool:
        """See `Device`."""
        unadopted = (self._before[number] for number in list(self._given))
        borrowed = itertools.chain(unadopted, self._borrowed.values())
        return sector_id in self._offered or any(sector_id in ids for ids in borrowed)

    def _shown(self, image: ErofsImage, metadata: Path) -> tuple[Tree, Inside | None]:
        if image.devices:
            return SectorTree(image), None
        return super()._shown(image, metadata)

    def _connect(self, metadata: Path, ids: Sequence[bytes], pair: Pair) -> Connection:
        connection = super()._connect(metadata, ids, pair)
        self._note_borrowed(connection)  # that a process before has made
        return connection

    def _forget(self, connection: Connection) -> None:
        super()._forget(connection)
        with self._lock:
            self._borrowed = {c: ids for c, ids in self._borrowed.items() if c is not connection}

    def _note_borrowed(self, connection: Connection) -> None:
        watches = self._watches_of(connection)
        with self._lock:
            self._borrowed = {**self._borrowed, connection: watches.lent()}

    def _watches_of(self, connection: Connection) -> Watches:
        try:
            return self._watches[connection]
        except KeyError as exc:
            raise OSError(errno.ENOTCONN, "the connection has ended") from exc

    @contextlib.contextmanager
    def _mount(
        self, fd: int, metadata: Path, ids: Sequence[bytes], connection: Connection
    ) -> Iterator[int]:
        if not ids:
            with super()._mount(fd, metadata, ids, connection) as mount:
                yield mount
            return
        lent = self._offered & set(ids)
        if len(lent) == len(set(ids)):
            lent -= {min(reversed(ids), key=self._store.size)}  # else the connection would end
        with self._over_fuse(fd, metadata, connection, stat.S_IFDIR) as directory:
            self._watches_of(connection).lend(lent)
            self._note_borrowed(connection)
            devices = [
                self._store.path(sector_id)
                if sector_id in lent
                else Path(f"/proc/self/fd/{directory}/{slot}")
                for slot, sector_id in enumerate(ids)
            ]
            mount = open_erofs(metadata, devices, f"cannot mount {metadata}")
        try:
            yield mount
        finally:
            os.close(mount)
