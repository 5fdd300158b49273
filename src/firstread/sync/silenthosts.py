# SPDX-License-Identifier: Apache-2.0
"""Registries that a run asks no more, since they answer nothing.

Owns the count of failures in a row. A repository asks again and again before it fails, for six
seconds where nothing listens, and for a minute where packets vanish; a run has up to 100,000
images. Invariant: one answer, whatever it says, and a host is asked as before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from firstread.errors import FirstreadError, TransportError

IN_A_ROW: Final = 16  # images; twice those that are looked at at a time


class SilentHosts:
    """The hosts of one run. Safe for threads."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, TransportError]] = {}  # in a row, and the last
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def asking(self, host: str) -> Iterator[None]:
        """Note whether what the block asks of a host is answered.

        Raises:
            TransportError: it is not asked, since so much has failed in a row.
        """
        with self._lock:
            count, last = self._failures.get(host, (0, None))
        if last is not None and count >= IN_A_ROW:
            message = f"not asked, since {count} images failed in a row: {last.message}"
            raise TransportError(message, hint=last.hint)
        try:
            yield
        except TransportError as exc:
            with self._lock:
                self._failures[host] = self._failures.get(host, (0, exc))[0] + 1, exc
            raise
        except FirstreadError:
            self._answered(host)
            raise
        self._answered(host)

    def _answered(self, host: str) -> None:
        with self._lock:
            self._failures.pop(host, None)
