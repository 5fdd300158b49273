# SPDX-License-Identifier: Apache-2.0
"""Files that are read or appear whole.

Invariant: a file that is read takes bounded memory; a regular file gets its name when complete.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from firstread.errors import UsageError, from_os_error
from firstread.units import format_size


def read_limited(path: Path, most: int, kind: str = "", *, missing: bytes | None = None) -> bytes:
    """Return what is in a file that a user has named.

    Args:
        path: of the file.
        most: bytes that it may have.
        kind: what it is, for the message, such as ``"the configuration"``.
        missing: what a missing file stands for; None if it must exist.

    Raises:
        NodeError: it cannot be read.
        UsageError: it is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as exc:
        if missing is not None and isinstance(exc, FileNotFoundError | NotADirectoryError):
            return missing
        raise from_os_error(exc, " ".join(filter(None, ("cannot read", kind)))) from exc
    if len(data) > most:
        raise UsageError(f"{path} is larger than {format_size(most)}")
    return data


def replace_file(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Give a file of ours other content; who opens it finds all of it, or all of what it had.

    One caller at a time replaces a file. Only its owner can read it.

    Args:
        path: of the file, in a directory that nobody else writes to.
        data: what it is to have.
        sync: return when that is on the disk.

    Raises:
        OSError: it cannot be written; the file has what it had, and nothing else is left.
    """
    scratch = path.with_name(f"{path.name}.new")
    try:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(fd)
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


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
