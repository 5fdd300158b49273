# SPDX-License-Identifier: Apache-2.0
"""The caches of the machine, which tests in several processes share.

Owns dropping them: a test that counts what a warm cache saves keeps the others from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def caches_kept(*, alone: bool = True) -> Iterator[None]:
    """Keep the tests of other processes from dropping the machine's caches for a block.

    Args:
        alone: else others may do what this block does.
    """
    with open(Path(tempfile.gettempdir()) / "firstread-caches.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def drop_caches() -> None:
    """Forget clean pages: those of mounts, and of what lies below them."""
    with caches_kept(alone=False):
        Path("/proc/sys/vm/drop_caches").write_text("3")
