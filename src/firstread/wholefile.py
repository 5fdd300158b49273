# SPDX-License-Identifier: Apache-2.0
"""A file that appears whole. Invariant: a regular file gets its name when it is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write; it replaces `path` at the end, unless the block raises.

    A pipe or a terminal at `path` stays, and gets the bytes as they are written.

    Raises:
        OSError: it cannot be written; nothing is left then.
    """
    import tempfile  # noqa: PLC0415 - few write a file, and a start must load little

    if path.exists() and not path.is_file():
        with path.open("wb") as out:
            yield out
        return
    fd, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.absolute().parent)
    try:
        with os.fdopen(fd, "wb") as out:
            yield out
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
