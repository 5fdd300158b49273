# SPDX-License-Identifier: Apache-2.0
"""Wrong bytes that a source gave, kept aside for whoever wants to know what happened.

Layout below the root: ``quarantine/NAME.bin`` holds the bytes as they came, ``NAME.json`` says from
where. Owns the bound on both, because what a source sends is not to fill the disk. Invariant:
nothing reads from here but people; that nothing can be kept fails no read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from pathlib import Path

from firstread.units import MiB
from firstread.wholefile import replace_file

log = logging.getLogger("quarantine")

MAX_ENTRIES = 64
MAX_BYTES = 64 * MiB


class Quarantine:
    """The directory ``quarantine`` below a root; made when it is needed."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "quarantine"
        self._lock = threading.Lock()

    def put(self, data: bytes, **origin: object) -> None:
        """Keep `data`, unless the same is here already; the oldest goes when there is too much.

        Args:
            data: as they came.
            origin: said of them, as JSON knows it.
        """
        data = data[:MAX_BYTES]
        digest = hashlib.sha256(data).hexdigest()
        stated = {"time": time.time(), "sha256": digest, "bytes": len(data), **origin}
        path = self._directory / f"{str(origin.get('sector', ''))[:16]}-{digest[:16]}.json"
        with self._lock:
            try:
                if path.exists():
                    return
                self._directory.mkdir(mode=0o700, exist_ok=True)
                self._make_room(len(data))
                replace_file(path.with_suffix(".bin"), data)
                replace_file(path, json.dumps(stated, indent=1).encode())
            except OSError as exc:
                log.warning("cannot keep wrong bytes: %s", exc)
                return
        log.warning("wrong bytes are kept: %s", path)

    def _make_room(self, count: int) -> None:
        found = sorted(self._directory.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        sizes = {path: path.with_suffix(".bin").stat().st_size for path in found}
        while found and (
            len(found) >= MAX_ENTRIES or sum(sizes[path] for path in found) + count > MAX_BYTES
        ):
            oldest = found.pop(0)
            for path in (oldest, oldest.with_suffix(".bin")):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
