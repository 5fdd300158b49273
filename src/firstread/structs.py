# SPDX-License-Identifier: Apache-2.0
"""Structs that any thread may decode.

Facts about msgspec 0.22: the first use of a struct fills a table of its fields, and runs Python
meanwhile. Another thread that decodes the struct then finds a table with null pointers, and the
process dies of SIGSEGV. Invariant: code that threads run decodes and inspects ``completed(kind)``
only.
"""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec

T = TypeVar("T")

_lock = threading.Lock()
_complete: set[object] = set()


def completed(kind: type[T]) -> type[T]:
    """Return `kind`, a struct or a list of one, with its tables filled."""
    if kind not in _complete:
        with _lock:
            msgspec.json.Decoder(kind)
            _complete.add(kind)
    return kind
