# SPDX-License-Identifier: Apache-2.0
"""The descriptors of FUSE mounts that the supervisor holds, so that they outlive a fetcher.

Owns them by the device number of the mount: its connection to the kernel, and its watches. Reads
nothing from either. Invariant: the watches of a connection have the next higher number, because an
anchor's descriptors have nothing but numbers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable

from firstread.daemon import systemd
from firstread.device.descriptors import copies
from firstread.device.watches import NAME, device_of

Pair = tuple[int, int]
"""A connection, and its watches."""

_FIRST = 2000  # number of a connection: above those of `firstread.daemon.protocol`
_FUSE = os.makedev(10, 229)  # /dev/fuse, in Documentation/admin-guide/devices.txt
_LINK = f"/memfd:{NAME} "
_STORED = ("fuse-", "watches-")  # names of both in systemd's store


class Kept:
    """The descriptors.

    Args:
        pairs: of the previous supervisor, by device number; owned from now on.
    """

    def __init__(self, pairs: dict[int, Pair]) -> None:
        self.pairs: dict[int, Pair] = {}
        for device, pair in pairs.items():
            self.add(device, pair)

    def add(self, device: int, pair: Pair) -> None:
        """Hold the descriptors of a mount, which are ours from now on."""
        self.drop(device)
        at = _FIRST
        while True:
            at = fcntl.fcntl(pair[0], fcntl.F_DUPFD_CLOEXEC, at)
            watches = fcntl.fcntl(pair[1], fcntl.F_DUPFD_CLOEXEC, at + 1)
            if watches == at + 1:
                break
            os.close(at)
            os.close(watches)
            at += 2
        for fd in pair:
            os.close(fd)
        self.pairs[device] = at, watches
        for prefix, fd in zip(_STORED, self.pairs[device], strict=True):
            systemd.keep(f"{prefix}{device}", fd)

    def drop(self, device: int) -> None:
        """Close the descriptors of a mount that is gone."""
        for fd, prefix in zip(self.pairs.pop(device, ()), _STORED, strict=False):
            systemd.notify("FDSTOREREMOVE=1", f"FDNAME={prefix}{device}")
            os.close(fd)

    def numbers(self) -> list[int]:
        """Return all descriptors."""
        return [fd for pair in self.pairs.values() for fd in pair]


def of_systemd(kept: dict[str, int]) -> dict[int, Pair]:
    """Take the descriptors of mounts out of what systemd has kept."""
    found: dict[int, Pair] = {}
    connection, watches = _STORED
    for name in [name for name in kept if name.startswith(connection)]:
        device = name.removeprefix(connection)
        if device.isdecimal() and f"{watches}{device}" in kept:
            found[int(device)] = kept.pop(name), kept.pop(f"{watches}{device}")
    return found


def of_anchors(pids: Iterable[int]) -> dict[int, Pair]:
    """Return copies of the descriptors of mounts that anchors hold."""
    found: dict[int, Pair] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
            for number in [n for n in numbers if n > _FIRST and _is_watches(pid, n)]:
                both = copies(pid, (number - 1, number))
                pair = both.get(number - 1), both.get(number)
                if pair[0] is None or pair[1] is None or not is_connection(pair[0]):
                    for fd in both.values():
                        os.close(fd)
                    continue
                found[device_of(pair[1])] = pair[0], pair[1]
    return found


def _is_watches(pid: int, number: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{number}").startswith(_LINK)
    except OSError:
        return False


def is_connection(fd: int) -> bool:
    """Return whether a descriptor is of /dev/fuse."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _FUSE
