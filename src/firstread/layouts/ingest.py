# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all.

Owns temporary files beside their targets; does not know what they hold. Invariants: only a file
that is complete and on the disk replaces the target; a temporary file is locked while its writer
lives, so the next writer recognises and removes what a killed one left.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from firstread.errors import DigestError
from firstread.oci.blobstream import CHUNK_SIZE
from firstread.oci.model import Descriptor
from firstread.oci.repository import Progress
from firstread.units import MiB

PREFIX = ".firstread-"
SUFFIX = ".partial"
_TEMPORARY = re.compile(
    rf"{re.escape(PREFIX)}[a-z0-9_]{{8}}{re.escape(SUFFIX)}"
)  # as tempfile does
KERNEL_STEP = 8 * MiB  # bytes copied between two calls of a progress function
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def temporary_file(directory: Path) -> tuple[BinaryIO, Path]:
    """Create a locked temporary file in `directory`; return it and its path.

    Raises:
        OSError: it cannot be created.
    """
    while True:
        fd, name = tempfile.mkstemp(SUFFIX, PREFIX, directory)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:  # else `remove_stale` came between the two calls
            return os.fdopen(fd, "w+b", buffering=0), Path(name)
        os.close(fd)


def remove_stale(directory: Path) -> None:
    """Remove the temporary files in `directory` whose writers are gone."""
    for path in directory.glob(f"{PREFIX}*{SUFFIX}"):
        if not _TEMPORARY.fullmatch(path.name):
            continue  # the directory may be a user's, with files of any name
        # Another process may rename or remove it at the same moment.
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def commit(file: BinaryIO, temporary: Path, target: Path) -> None:
    """Put the finished `file` in the place of `target`.

    Raises:
        OSError: the disk refuses; the temporary file is still there.
    """
    os.fchmod(file.fileno(), 0o644)
    os.fsync(file.fileno())
    temporary.replace(target)


@contextmanager
def replacing(target: Path, *, at: Path | None = None) -> Iterator[BinaryIO]:
    """Give a file to write; it takes the place of `target` if the block succeeds.

    Args:
        target: path of the finished file.
        at: directory of the unfinished one, on the same file system; the target's if None.

    Raises:
        OSError: it cannot be written.
    """
    file, temporary = temporary_file(at or target.parent)
    with file:
        try:
            yield file
            commit(file, temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def open_scratch(directory: Path | None) -> BinaryIO:
    """Create a file without a name, which is gone once closed unless `link` names it.

    Args:
        directory: on whose file system; None for ``$TMPDIR``.

    Raises:
        OSError: it cannot be created.
    """
    if directory is None:
        return tempfile.TemporaryFile(prefix="firstread-")
    try:
        fd = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        return tempfile.TemporaryFile(prefix=PREFIX, dir=directory)
    return os.fdopen(fd, "w+b")


def link(file: BinaryIO, size: int, target: Path) -> bool:
    """Give the finished `file` of `open_scratch` the name `target`.

    Args:
        file: all of it, wherever its position is.
        size: bytes that it must have.
        target: the path.

    Returns:
        False if it cannot have the name: another file has it, or this one has another size or a
        name already, or is on another file system, or on one that knows no files without names.

    Raises:
        OSError: the disk refuses.
    """
    try:
        fd = file.fileno()
    except io.UnsupportedOperation:
        return False  # memory
    file.flush()
    status = os.fstat(fd)
    if status.st_nlink or status.st_size != size:
        return False
    os.fchmod(fd, 0o644)
    os.fsync(fd)
    # With a directory given os.link calls linkat(2), which can follow the link that /proc has.
    directory = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{fd}", target.name, dst_dir_fd=directory, follow_symlinks=True)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.ENOENT, errno.EEXIST):
            raise
        return False
    finally:
        os.close(directory)
    return True


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Exclude other processes and threads from the block; the lock is the directory itself.

    Raises:
        OSError: the directory cannot be opened.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` survive a power cut.

    Raises:
        OSError: the disk refuses.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def copy_blob(
    blob: Descriptor,
    source: BinaryIO,
    target: BinaryIO,
    progress: Progress | None,
    *,
    verified: bool = False,
) -> None:
    """Copy the bytes of `blob` and verify them.

    Args:
        blob: their digest and size.
        source: where they are, from the current position.
        target: an unbuffered file.
        progress: told how far it is.
        verified: the writer of `source` computed the digest, so this does not compute it again.

    Raises:
        DigestError: `source` does not hold this blob.
        OSError: reading or writing failed.
    """
    digest = None if verified else hashlib.new(blob.digest.partition(":")[0])
    done = 0
    for count in _copied(source, target, digest, blob.size):
        done += count
        if progress is not None:
            progress(done)
        if done > blob.size:
            break
    wrong = digest is not None and digest.hexdigest() != blob.digest.partition(":")[2]
    if done != blob.size or wrong:
        raise DigestError(
            f"the bytes given for blob {blob.digest} do not have this digest and size"
        )


def _copied(
    source: BinaryIO, target: BinaryIO, digest: hashlib._Hash | None, size: int
) -> Iterator[int]:
    """Copy `source` to its end or a little past `size`; yield the bytes of each step."""
    if digest is None:
        yield from _copied_by_the_kernel(source, target, size)
    while chunk := source.read(CHUNK_SIZE):
        if digest is not None:
            digest.update(chunk)
        write_all(target, chunk)
        yield len(chunk)


def _copied_by_the_kernel(source: BinaryIO, target: BinaryIO, size: int) -> Iterator[int]:
    """Copy up to `size` bytes where both are files of file systems that can do it.

    Moves the position of `source` past what it copied.
    """
    start = source.tell()
    done = 0
    try:
        while count := os.copy_file_range(
            source.fileno(), target.fileno(), min(size - done, KERNEL_STEP), offset_src=start + done
        ):
            done += count
            yield count
    except OSError as exc:
        # Before Linux 5.19 not between file systems; io.UnsupportedOperation: not a file.
        if done or exc.errno not in (None, *_CANNOT_COPY):
            raise
    finally:
        source.seek(start + done)


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data` to an unbuffered file, which may take less at once.

    Raises:
        OSError: the disk refuses.
    """
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
