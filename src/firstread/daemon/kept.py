# SPDX-License-Identifier: Apache-2.0
"""The descriptors of mounts that we serve, held by the supervisor so that they outlive a fetcher.

Owns them by the device number of the mount: its connection to the kernel, and its watches. Reads
nothing from either. Invariant: the watches of a connection have the next higher number, because an
anchor's descriptors have nothing but numbers.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Container, Iterable

from firstread.daemon import systemd
from firstread.daemon.protocol import SECRETS_FD
from firstread.device.descriptors import copies, is_connection, is_dead
from firstread.device.watches import NAME, device_of

log = logging.getLogger("supervisor")

Pair = tuple[int, int]
"""A connection, and its watches."""

_FIRST = SECRETS_FD + 1  # number of a connection: above those that both processes share
_LINK = f"/memfd:{NAME} "
_STORED = ("fuse-", "watches-")  # names of both in systemd's store, whatever the device


class Kept:
    """The descriptors.

    Args:
        pairs: of the previous supervisor, by device number; owned from now on.
    """

    def __init__(self, pairs: dict[int, Pair]) -> None:
        self.pairs: dict[int, Pair] = {}
        for device, pair in pairs.items():
            self.add(device, pair)

    def add(self, device: int, pair: Pair) -> bool:
        """Hold the descriptors of a mount, which are ours from now on; False if they are lost."""
        self.drop(device)
        try:
            self.pairs[device] = _side_by_side(pair)
        except OSError as exc:
            log.critical("a mount does not outlive its fetcher: %s", exc)
            return False
        for prefix, fd in zip(_STORED, self.pairs[device], strict=True):
            systemd.keep(f"{prefix}{device}", fd)
        return True

    def drop(self, device: int) -> None:
        """Close the descriptors of a mount that is gone."""
        if device in self.pairs:
            release({device: self.pairs.pop(device)})

    def numbers(self) -> list[int]:
        """Return all descriptors."""
        return [fd for pair in self.pairs.values() for fd in pair]


def _side_by_side(pair: Pair) -> Pair:
    """Give descriptors numbers one behind the other; the old ones are closed.

    Raises:
        OSError: there is no room.
    """
    if pair[0] >= _FIRST and pair[1] == pair[0] + 1:
        return pair
    at = _FIRST
    try:
        while True:
            connection = fcntl.fcntl(pair[0], fcntl.F_DUPFD_CLOEXEC, at)
            try:
                at = fcntl.fcntl(pair[1], fcntl.F_DUPFD_CLOEXEC, connection + 1)
            except OSError:
                os.close(connection)
                raise
            if at == connection + 1:
                return connection, at
            os.close(connection)
            os.close(at)
    finally:
        for fd in pair:
            os.close(fd)


def release(pairs: dict[int, Pair]) -> None:
    """Close descriptors of mounts, in systemd's store, too."""
    for device, pair in pairs.items():
        for prefix, fd in zip(_STORED, pair, strict=True):
            systemd.notify("FDSTOREREMOVE=1", f"FDNAME={prefix}{device}")
            os.close(fd)


def of_systemd(kept: dict[str, int]) -> dict[int, Pair]:
    """Take the descriptors of mounts out of what systemd has kept; close what is incomplete."""
    names = [name for name in kept if name.startswith(_STORED)]
    ours = {name: kept.pop(name) for name in names}
    found: dict[int, Pair] = {}
    connection, watches = _STORED
    for name in names:
        device = name.removeprefix(connection)
        if device.isdecimal() and f"{watches}{device}" in ours:
            found[int(device)] = ours.pop(name), ours.pop(f"{watches}{device}")
    for name, fd in ours.items():
        systemd.notify("FDSTOREREMOVE=1", f"FDNAME={name}")
        os.close(fd)
    return found


def of_anchors(pids: Iterable[int], known: Container[int] = ()) -> dict[int, Pair]:
    """Return copies of the descriptors of mounts that anchors hold.

    Args:
        pids: of the anchors.
        known: device numbers of mounts that are left out.
    """
    found: dict[int, Pair] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
            for number in [n for n in numbers if n > _FIRST and _is_watches(pid, n)]:
                both = copies(pid, (number - 1, number))
                pair = both.get(number - 1, -1), both.get(number, -1)
                device = device_of(pair[1]) if len(both) == 2 and _lives(pair[0]) else 0
                if not device or device in found or device in known:
                    for fd in both.values():
                        os.close(fd)
                else:
                    found[device] = pair
    return found


def _lives(fd: int) -> bool:
    return is_connection(fd) and not is_dead(fd)


def _is_watches(pid: int, number: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{number}").startswith(_LINK)
    except OSError:
        return False
