# SPDX-License-Identifier: Apache-2.0
"""Unpacks a converted image into a directory.

Confinement: the reader of the tree refuses names with a slash and ``..``, the directory is empty at
the start and closed to others until the end, and this module creates every parent. So no path ever
follows a symbolic link, neither of the image nor of another user.

Inside a container, an image can grant rights by set-id bits, file capabilities and device nodes.
Outside, they would be rights on this machine, and are created only on request.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from firstread.erofs.tree import HOLE, Node, walk
from firstread.errors import ImageError, NodeError, UsageError, from_os_error
from firstread.printable import printable
from firstread.sectors.content import ContentReader
from firstread.units import counted

_WHERE = "name a new or empty directory"
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_CAPABILITIES = b"security.capability"


@dataclass
class LeftOut:
    """The numbers of names whose rights were left out.

    Args:
        devices: block and character devices, left out entirely.
        set_ids: programs that would run as their owner or group.
        capabilities: programs that would have capabilities.
    """

    devices: int = 0
    set_ids: int = 0
    capabilities: int = 0


def extract(
    root: Node, content: ContentReader, directory: Path, *, privileged: bool = False
) -> tuple[int, LeftOut]:
    """Write the tree below `root` into `directory`; return the number of names, and the omissions.

    Args:
        root: of the image.
        content: reads its files.
        directory: empty, or created. Nobody else can enter it until the end.
        privileged: leave nothing out.

    Raises:
        UsageError: `directory` is not an empty directory.
        ImageError: the bytes of a sector contradict its id.
        NodeError: this machine cannot hold the tree; the part written so far stays.
    """
    with _empty(directory) as top:
        extraction = _Extraction(content, os.fsencode(top), privileged=privileged)
        try:
            return extraction.run(root), extraction.left_out
        except OverflowError as exc:
            raise ImageError(f"a file has a time that this machine cannot store: {exc}") from exc
        except OSError as exc:
            named = os.fsdecode(exc.filename or top)
            exc.filename = named.replace(top, str(directory), 1)
            if isinstance(exc, PermissionError):
                raise NodeError(
                    f"cannot write {exc.filename!r}: {exc.strerror}",
                    hint="owners, devices and some attributes need root",
                ) from exc
            raise from_os_error(exc, "cannot write") from exc


@contextlib.contextmanager
def _empty(directory: Path) -> Iterator[str]:
    """Take an empty directory for ourselves; give a path to it that nobody can redirect."""
    full = UsageError(f"{directory} is not empty", hint=_WHERE)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(f"cannot extract to {directory}: {exc.strerror}", hint=_WHERE) from exc
    try:
        if os.listdir(fd):
            raise full
        try:
            os.fchown(fd, os.geteuid(), -1)
            os.fchmod(fd, 0o700)
        except OSError as exc:
            raise from_os_error(exc, f"cannot have {directory} for ourselves") from exc
        if os.listdir(fd):
            raise full  # somebody was faster
        yield f"/proc/self/fd/{fd}/."
    finally:
        os.close(fd)


class _Extraction:
    def __init__(self, content: ContentReader, top: bytes, *, privileged: bool) -> None:
        self.left_out = LeftOut()
        self._content = content
        self._top = top
        self._privileged = privileged
        self._made: dict[int, bytes] = {}  # path of each node, for further names

    def run(self, root: Node) -> int:
        names = [(path, node) for path, node in walk(root) if not self._is_left_out(node)]
        for path, node in names:
            if node.is_dir and path:
                os.mkdir(self._path(path), 0o700)
        # Files in the order of their sectors, to fetch each about once.
        for path, node in sorted(names, key=lambda item: _first_address(item[1])):
            if not node.is_dir:
                self._make(self._path(path), node)
        for path, node in reversed(names):  # children first: they change their parent's mtime
            if node.is_dir:
                self._attributes(self._path(path), node)
        return len(names)

    def _is_left_out(self, node: Node) -> bool:
        """Count the rights that a node would grant; return whether it is left out entirely."""
        if self._privileged:
            return False
        left_out = self.left_out
        left_out.devices += node.is_device
        left_out.set_ids += node.is_file and bool(node.mode & _SET_IDS)
        left_out.capabilities += _CAPABILITIES in node.xattrs
        return node.is_device

    def _path(self, path: bytes) -> bytes:
        return os.path.join(self._top, path) if path else self._top

    def _make(self, path: bytes, node: Node) -> None:
        try:
            self._make_named(path, node)
        except OSError as exc:
            # It names the target of a link, and nothing for an open file.
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
        mode = stat.S_IMODE(node.mode)
        if not (self._privileged or node.is_dir):
            mode &= ~_SET_IDS
        if not node.is_symlink:
            os.chmod(path, mode)
        for name, value in node.xattrs.items():
            if self._privileged or name != _CAPABILITIES:
                _set_attribute(path, name, value)
        time = node.mtime * 1_000_000_000 + node.mtime_nsec
        os.utime(path, ns=(time, time), follow_symlinks=False)


def _set_attribute(path: bytes, name: bytes, value: bytes) -> None:
    try:
        os.setxattr(path, name, value, follow_symlinks=False)
    except OSError as exc:
        # ext4 has no room for a long one on an empty disk.
        shown = printable(name)
        exc.strerror = f"{exc.strerror} (attribute {shown} of {counted(len(value), 'byte')})"
        raise


def _first_address(node: Node) -> int:
    return next((chunk for chunk in node.chunks if chunk != HOLE), -1)
