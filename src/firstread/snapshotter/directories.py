# SPDX-License-Identifier: Apache-2.0
"""The directories of snapshots: ``NUMBER/fs`` and, of writable ones, ``NUMBER/work``.

Owns making, measuring and removing them. Invariant: a directory named by a number is complete. The
leftover of a crash has another name, or a number without a record; `sweep` removes it, or the next
snapshot of that number.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Collection
from pathlib import Path

from firstread.errors import NodeError, from_os_error
from firstread.trees import remove_tree

log = logging.getLogger("snapshotter")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    """The directories below `root`, which is created.

    Raises:
        NodeError: `root` cannot be created.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise from_os_error(exc, "cannot make the directory of snapshots") from exc

    def upper(self, number: int) -> Path:
        """Return the directory with the content of a snapshot."""
        return self._root / str(number) / "fs"

    def work(self, number: int) -> Path:
        """Return the work directory for overlayfs."""
        return self._root / str(number) / "work"

    def make(self, number: int, *, writable: bool) -> None:
        """Make the directories of a snapshot, in place of any with that number.

        Such a directory is the leftover of a crash, or of a rollback, which gives numbers back.

        Raises:
            NodeError: the disk refuses.
        """
        if os.path.lexists(self._root / str(number)):
            self.remove(number)
        try:
            scratch = Path(tempfile.mkdtemp(prefix="new-", dir=self._root))
            (scratch / "fs").mkdir()
            (scratch / "fs").chmod(0o755)
            if writable:
                (scratch / "work").mkdir()
                (scratch / "work").chmod(0o711)
            scratch.rename(self._root / str(number))
        except OSError as exc:
            raise from_os_error(exc, "cannot make the directory of a snapshot") from exc

    def give(self, number: int, owner: tuple[int, int]) -> None:
        """Change the owner of a snapshot's root to a user and a group."""
        try:
            os.lchown(self.upper(number), *owner)
        except OSError as exc:
            raise from_os_error(exc, "cannot give away the directory of a snapshot") from exc

    def remove(self, number: int) -> None:
        """Remove the directories of a snapshot; `sweep` removes what stays."""
        _remove(self._root / str(number))

    def sweep(self, numbers: Collection[int]) -> None:
        """Remove all directories except those of these snapshots."""
        kept = {str(number) for number in numbers}
        _remove(*(self._root / entry for entry in os.listdir(self._root) if entry not in kept))


def _remove(*directories: Path) -> None:
    try:
        remove_tree(*directories)
    except NodeError as exc:
        log.warning("a directory of a snapshot stays: %s", exc)


def usage(directory: Path) -> tuple[int, int]:
    """Return the bytes that a tree takes on its disk, and its number of inodes.

    A container can change the tree meanwhile, and make it deeper than the longest path: one
    descriptor goes down by names and up by "..", and stops if its directory was moved away.
    """
    try:
        here = os.open(directory, _DIRECTORY)
    except FileNotFoundError:
        return 0, 0
    except OSError as exc:
        raise from_os_error(exc, "cannot measure a snapshot") from exc
    try:
        status = os.fstat(here)
        seen = {_identity(status): status.st_blocks * 512}
        above: list[tuple[int, int]] = []
        pending = [_measure(here, seen)]  # for each level, the directories still to visit
        while True:
            if pending[-1]:
                below = _open(pending[-1].pop(), here)
                if below is None:
                    continue
                above.append(_identity(os.fstat(here)))
                os.close(here)
                here = below
                pending.append(_measure(here, seen))
            elif above:
                pending.pop()
                up = os.open("..", _DIRECTORY, dir_fd=here)
                os.close(here)
                here = up
                if _identity(os.fstat(here)) != above.pop():
                    break
            else:
                break
    except OSError as exc:
        raise from_os_error(exc, "cannot measure a snapshot") from exc
    finally:
        os.close(here)
    return sum(seen.values()), len(seen)


def _measure(directory: int, seen: dict[tuple[int, int], int]) -> list[str]:
    """Add the entries of a directory to `seen`; return the names of its directories."""
    directories = []
    for name in os.listdir(directory):
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
        seen[_identity(status)] = status.st_blocks * 512
        if stat.S_ISDIR(status.st_mode):
            directories.append(name)
    return directories


def _open(name: str, directory: int) -> int | None:
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        return None  # no longer a directory


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
