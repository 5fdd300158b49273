# SPDX-License-Identifier: Apache-2.0
"""Unpacks a converted image into a directory.

Confinement: the tree comes from a reader that refuses names with a slash and ``..``, the directory
is empty at the start, and every parent is a directory that was made here, so no path ever follows a
symbolic link of the image.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from firstread.erofs.tree import HOLE, Node, walk
from firstread.errors import ImageError, NodeError, UsageError, from_os_error
from firstread.sectors.content import ContentReader

_WHERE = "name a new or empty directory"


def extract(root: Node, content: ContentReader, directory: Path) -> int:
    """Write the tree below `root` into `directory`; return the number of names.

    Args:
        root: of the image.
        content: reads its files.
        directory: made if missing; must be empty.

    Raises:
        UsageError: `directory` is not an empty directory.
        ImageError: a sector is not what its id says.
        NodeError: this machine cannot hold the tree; what was written stays.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty", hint=_WHERE)
    except OSError as exc:
        raise UsageError(f"cannot extract to {directory}: {exc.strerror}", hint=_WHERE) from exc
    try:
        return _Extraction(content, os.fsencode(directory)).run(root)
    except OverflowError as exc:
        raise ImageError(f"a file has a time that this machine does not know: {exc}") from exc
    except PermissionError as exc:
        raise NodeError(
            f"cannot write {os.fsdecode(exc.filename or directory)!r}: {exc.strerror}",
            hint="owners, devices and some attributes need root",
        ) from exc
    except OSError as exc:
        raise from_os_error(exc, "cannot write") from exc


class _Extraction:
    def __init__(self, content: ContentReader, top: bytes) -> None:
        self._content = content
        self._top = top
        self._made: dict[int, bytes] = {}  # path of each node that may have more names

    def run(self, root: Node) -> int:
        names = [(path, node) for path, node in walk(root)]
        for path, node in names:
            if node.is_dir and path:
                os.mkdir(self._path(path), 0o700)
        # Files in the order of their sectors, so that each is fetched about once.
        for path, node in sorted(names, key=lambda item: _first_address(item[1])):
            if not node.is_dir:
                self._make(self._path(path), node)
        for path, node in reversed(names):  # children first: they change their parent's mtime
            if node.is_dir:
                self._attributes(self._path(path), node)
        return len(names)

    def _path(self, path: bytes) -> bytes:
        return os.path.join(self._top, path) if path else self._top

    def _make(self, path: bytes, node: Node) -> None:
        try:
            self._make_named(path, node)
        except OSError as exc:
            # Of a link it names the target, of an open file nothing.
            exc.filename, exc.filename2 = os.fsdecode(path), None
            raise

    def _make_named(self, path: bytes, node: Node) -> None:
        if id(node) in self._made:
            os.link(self._made[id(node)], path, follow_symlinks=False)
            return
        self._made[id(node)] = path
        if node.is_symlink:
            os.symlink(node.target, path)
        elif node.is_file:
            self._file(path, node)
        elif node.is_device:
            os.mknod(path, stat.S_IFMT(node.mode) | 0o600, os.makedev(*node.rdev))
        else:
            os.mknod(path, stat.S_IFMT(node.mode) | 0o600)
        self._attributes(path, node)

    def _file(self, path: bytes, node: Node) -> None:
        with open(path, "xb") as file:
            for offset, data in self._content.data(node):
                file.seek(offset)
                file.write(data)
            file.truncate(node.size)

    def _attributes(self, path: bytes, node: Node) -> None:
        os.chown(path, node.uid, node.gid, follow_symlinks=False)
        if not node.is_symlink:
            os.chmod(path, stat.S_IMODE(node.mode))
        for name, value in node.xattrs.items():
            os.setxattr(path, name, value, follow_symlinks=False)
        time = node.mtime * 1_000_000_000 + node.mtime_nsec
        os.utime(path, ns=(time, time), follow_symlinks=False)


def _first_address(node: Node) -> int:
    return next((chunk for chunk in node.chunks if chunk != HOLE), -1)
