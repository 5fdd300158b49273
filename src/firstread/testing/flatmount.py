# SPDX-License-Identifier: Apache-2.0
"""A small mount for tests by a device of EROFS over FUSE: every sector absent and watched.

Owns what differs from `FuseMount`: the file systems of FUSE have no place, so their numbers are
noted when they are made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from firstread.device.connection import Connection
from firstread.device.descriptors import is_dead
from firstread.device.flatdevice import FlatDevice, LoopDevice
from firstread.device.flattree import NEAR_KIB
from firstread.device.mixeddevice import MixedDevice
from firstread.testing.caches import drop_caches
from firstread.testing.fusemount import FuseMount
from firstread.units import KiB


class _Noting(FlatDevice):
    """A device that notes the numbers of the file systems below its mounts."""

    numbers: list[int]

    @contextlib.contextmanager
    def _over_fuse(
        self, fd: int, metadata: Path, connection: Connection, mode: int
    ) -> Iterator[int]:
        with super()._over_fuse(fd, metadata, connection, mode) as mount:
            self.numbers.append(os.fstat(mount).st_dev)
            yield mount


class _NotingLoop(LoopDevice, _Noting):
    pass


class _NotingMixed(MixedDevice, _Noting):
    pass


_DEVICES: dict[str, type[_Noting]] = {"flat": _Noting, "loop": _NotingLoop, "mixed": _NotingMixed}


class FlatMount(FuseMount):
    """As `FuseMount`.

    Args:
        scratch: an empty directory.
        name: of the device: ``flat``, ``loop`` or ``mixed``.
        image: as there.

    Attributes:
        numbers: of the file systems of FUSE that were made.
    """

    def __init__(self, scratch: Path, name: str, **image: Any) -> None:
        self._device_name = name
        self.numbers: list[int] = []
        self._below: dict[int, int] = {}  # connection by number, of file systems of FUSE
        self.beyond_bytes = 0 if name == "loop" else NEAR_KIB * KiB
        super().__init__(scratch, **image)

    def _make(self, given: Mapping[int, tuple[int, int]]) -> FlatDevice:
        make = _DEVICES[self._device_name]
        device = make(self.store, given, self._keep, self.dropped.append)
        device.numbers = self.numbers
        return device

    def _keep(self, number: int, pair: tuple[int, int]) -> None:
        super()._keep(number, pair)
        self._below[self.numbers[-1]] = self.kept[number][0]

    def _connections(self) -> list[int]:
        return [number for number, fd in self._below.items() if not is_dead(fd)]

    def empty(self, slot: int) -> None:
        super().empty(slot)
        drop_caches()  # the file below EROFS has pages that readers do not drop

    def heal(self) -> None:
        if self._device_name != "loop":
            super().heal()
            return
        number = os.stat(self.mountpoint).st_dev
        self._open({})
        assert self.device.adopt(self.metadata, self.ids, number)
        self.device.go_on(number)
