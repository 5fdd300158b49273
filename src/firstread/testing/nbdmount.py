# SPDX-License-Identifier: Apache-2.0
"""A small mount for tests by NBD: every sector absent and watched.

Owns what differs from `FuseMount`: whoever holds a socket has nothing to abort, and a mount that
nobody serves is served again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from firstread.device import nbdstream
from firstread.device.nbddevice import NbdDevice
from firstread.device.nbdnetlink import index_of, is_loaded
from firstread.device.nbdstream import NbdStream
from firstread.testing.fusemount import FuseMount

HAS_NBD = is_loaded()
WITHOUT_NBD = "the kernel has no NBD client, or it is not loaded"
needs_nbd = pytest.mark.skipif(not HAS_NBD, reason=WITHOUT_NBD)
NBD = pytest.param("nbd", marks=needs_nbd)
"""The device, as a parameter of tests."""


class _Mortal(NbdStream):
    """A stream that can be lost, though its process lives."""

    def die(self) -> None:
        """End as with the process, and with everybody else who holds the socket."""
        self._has_ended = True
        with self._sending, socket.socket(fileno=os.dup(self._fd)) as ours:
            ours.shutdown(socket.SHUT_RDWR)


class _Device(NbdDevice):
    _speaks = _Mortal

    def die(self) -> None:
        """End all streams."""
        for stream in list(self._pairs):
            if isinstance(stream, _Mortal):
                stream.die()


class NbdMount(FuseMount):
    """As `FuseMount`; what nobody serves fails soon.

    Args:
        scratch: an empty directory.
        timeout_s: of a request.
        dead_timeout_s: of requests without a socket.
        image: as there.
    """

    def __init__(
        self, scratch: Path, *, timeout_s: int = 4, dead_timeout_s: int = 2, **image: Any
    ) -> None:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(nbdstream, "TIMEOUT_S", timeout_s)
        self._patch.setattr(nbdstream, "LEAST_PATIENCE_S", dead_timeout_s)
        super().__init__(scratch, **image)

    @property
    def index(self) -> int:
        """Of the device of the mount."""
        return index_of(os.stat(self.mountpoint).st_dev)

    def close(self) -> None:
        super().close()
        self._patch.undo()

    def _make(self, given: Mapping[int, tuple[int, int]]) -> NbdDevice:
        return _Device(self.store, given, self._keep, self.dropped.append)

    def _connections(self) -> list[int]:
        return []

    def _abort(self) -> list[int]:
        if isinstance(self.device, _Device):
            self.device.die()
        return super()._abort()

    def heal(self) -> None:
        number = os.stat(self.mountpoint).st_dev
        self._open({})
        assert self.device.adopt(self.metadata, self.ids, number)
        self.device.go_on(number)
