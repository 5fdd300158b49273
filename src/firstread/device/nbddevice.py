# SPDX-License-Identifier: Apache-2.0
"""The device that is an NBD device, with EROFS on top: for kernels that know EROFS, without FUSE.

Owns the way from the flat form of an image to a mount: a device of the kernel's NBD client, served
by `NbdStream`. Invariant: the device ends with the last user of the mount, whoever lives then; one
that was connected and not mounted is ended by the next process.

The supervisor holds our end of the socket, so the kernel sees no end when a fetcher dies.
`firstread.device.nbdnetlink` and `nbdstream` have the facts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from firstread.device import nbdnetlink
from firstread.device.base import Pair
from firstread.device.connection import Connection
from firstread.device.flatdevice import FlatDevice, begin_metadata, open_flat
from firstread.device.fusedevice import FuseDevice
from firstread.device.nbdstream import USUAL_BYTES, NbdStream
from firstread.errors import ImageError, NodeError, from_os_error
from firstread.mountinfo import read_mountinfo
from firstread.sectors.sectorstore import SectorStore

log = logging.getLogger("device")

_FILE_SYSTEMS = Path("/sys/fs/erofs")  # those that live, by the names of their devices


class NbdDevice(FlatDevice):
    """See `Device`; arguments as those of `FuseDevice`."""

    name = "nbd"
    _speaks = NbdStream

    def __init__(self, store: SectorStore, *more: Any) -> None:
        super().__init__(store, *more)
        self._end_unmounted(_backend(store.directory.parent) + "/")

    def adopt(self, metadata: Path, ids: Sequence[bytes], number: int) -> bool:
        """See `Device`: one that nobody has held meanwhile is served again, too."""
        index = nbdnetlink.index_of(number)
        backend = nbdnetlink.backend_of(index)
        if not backend.startswith(nbdnetlink.BACKEND):
            return False
        if not FuseDevice.adopt(self, metadata, ids, number):
            try:
                pair, connection = self._begin(metadata, ids)
                self._keep_both(connection, number, pair)
            except OSError as exc:
                raise from_os_error(exc, f"cannot serve /dev/nbd{index} again") from exc
        for connection, (other, _) in self._pairs.copy().items():
            if other == number:
                stream = cast(NbdStream, connection)
                stream.index, stream.backend = index, backend
        return True

    def let_fail(self) -> None:
        """See `ServedDevice`."""
        for stream in self._pairs.copy():
            cast(NbdStream, stream).let_fail()

    def _has_ended(self, number: int, fd: int) -> bool:
        del fd  # the kernel may have left the socket, and take another one
        backend = nbdnetlink.backend_of(nbdnetlink.index_of(number))
        return not backend.startswith(nbdnetlink.BACKEND)

    def _end_unmounted(self, prefix: str) -> None:
        """End the devices that a process before has connected, and died before they were mounted.

        Args:
            prefix: of the names of this store's devices.
        """
        mounted = {line.device for line in read_mountinfo()}
        for index, backend, number in nbdnetlink.connected():
            is_used = number in mounted or number in self._given
            is_used = is_used or (_FILE_SYSTEMS / f"nbd{index}").exists()
            if backend.startswith(prefix) and not is_used:
                log.info("/dev/nbd%d was connected and not mounted", index)
                with contextlib.suppress(OSError):
                    nbdnetlink.disconnect(index)

    def _open_connection(self) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.close()  # `NbdStream` puts another one in its place
        return ours.detach()

    def _connect(self, metadata: Path, ids: Sequence[bytes], pair: Pair) -> Connection:
        stream = cast(NbdStream, super()._connect(metadata, ids, pair))
        stream.backend, stream.renewed = _backend(metadata), self._keep_renewed
        stream.patience_s = self.patience_s
        return stream

    def _keep_renewed(self, connection: Connection) -> None:
        with self._keeping:
            number, pair = self._pairs.get(connection, (0, None))
            if number and pair:
                self._keep(number, pair)

    @contextlib.contextmanager
    def _mount(
        self, fd: int, metadata: Path, ids: Sequence[bytes], connection: Connection
    ) -> Iterator[int]:
        stream = cast(NbdStream, connection)
        try:
            device = _opened(stream)
        except OSError as exc:
            error = from_os_error(exc, "cannot connect an NBD device")
            error.hint = remedy()
            raise error from exc
        except ImageError as exc:
            raise NodeError(f"cannot mount {metadata}: {exc.message}") from exc
        try:
            mount = open_flat(f"/dev/nbd{stream.index}", metadata)
            begin_metadata(device, metadata)
        finally:
            os.close(device)
        try:
            yield mount
        finally:
            os.close(mount)


def remedy() -> str:
    """Return what to do where no device can be connected."""
    if not nbdnetlink.is_loaded():
        return "load the module nbd (modprobe nbd)"
    return "give this process CAP_SYS_ADMIN, /dev/nbd* and the host's network namespace"


def _opened(stream: NbdStream) -> int:
    """Connect a device, and serve it; return the descriptor of it, with which it ends.

    Raises:
        OSError, BusyError: that is not possible; no device is connected then.
    """
    try:
        stream.connect()
        try:
            stream.start()  # first: the kernel looks for partitions
        except BaseException:
            nbdnetlink.disconnect(stream.index)
            raise
    except BaseException:
        stream.abandon()
        raise
    try:
        device = os.open(f"/dev/nbd{stream.index}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            nbdnetlink.disconnect_on_close(stream.index, stream.backend)
            with contextlib.suppress(OSError):  # else it is the kernel's 128 KiB
                place = Path(f"/sys/block/nbd{stream.index}/queue/max_sectors_kb")
                place.write_text(f"{USUAL_BYTES >> 10}\n")
        except OSError:
            os.close(device)
            raise
    except OSError:
        nbdnetlink.disconnect(stream.index)
        raise
    return device


def _backend(path: Path) -> str:
    return nbdnetlink.BACKEND + os.path.realpath(path)
