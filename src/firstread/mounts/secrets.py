# SPDX-License-Identifier: Apache-2.0
"""Memory for credentials that outlives a fetcher and is on no disk.

Owns a file without a name (memfd) that supervisor and fetcher both hold. The fetcher writes and
reads it; the supervisor only keeps it alive, and knows nothing of what is in it. When both are
gone, so is the memory.

Layout: a header (offset, length), and two slots, of which the header names the one that is valid.
So a fetcher that dies while it writes loses what it was about to keep, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import struct
import threading
from typing import Any, Final

from firstread.errors import UsageError
from firstread.units import KiB

log = logging.getLogger("secrets")

SLOT_BYTES: Final = 256 * KiB
_HEADER: Final = struct.Struct("=QQ")
_FIRST: Final = 4 * KiB


def no_core_dumps() -> None:
    """Have this process, and all that it starts, leave no memory on a disk when it crashes."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def secret_memory() -> int:
    """Return the descriptor of new memory, empty."""
    fd = os.memfd_create("secrets", os.MFD_CLOEXEC)
    os.ftruncate(fd, _FIRST + 2 * SLOT_BYTES)
    return fd


class SecretMemory:
    """The memory at a descriptor. Safe for threads; one process at a time writes.

    Args:
        fd: of `secret_memory`.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def load(self) -> dict[str, Any]:
        """Return what was saved last; {} if nothing was, or if another version cannot be read."""
        with self._lock:
            offset, length = self._header()
            data = os.pread(self._fd, min(length, SLOT_BYTES), offset) if length else b"{}"
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            log.error("the credentials in memory cannot be read: log in again")
            return {}
        return document

    def save(self, document: dict[str, Any]) -> None:
        """Keep `document` instead of what there was, which is overwritten.

        Raises:
            UsageError: it is too large; then nothing changes.
        """
        data = json.dumps(document).encode()
        if len(data) > SLOT_BYTES:
            raise UsageError("the daemon keeps no more credentials: they are too many or too large")
        with self._lock:
            old, length = self._header()
            new = _FIRST + SLOT_BYTES if old == _FIRST else _FIRST
            os.pwrite(self._fd, data, new)
            os.pwrite(self._fd, _HEADER.pack(new, len(data)), 0)
            os.pwrite(self._fd, bytes(length), old or _FIRST)

    def _header(self) -> tuple[int, int]:
        offset, length = _HEADER.unpack(os.pread(self._fd, _HEADER.size, 0))
        return offset, length
