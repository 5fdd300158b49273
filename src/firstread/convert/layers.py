# SPDX-License-Identifier: Apache-2.0
"""Merges layer records into one file tree: the one that containerd shows for the same layers.

Owns the rules; no I/O. containerd unpacks each layer into its own directory and lets overlayfs
stack them. This module does the same in two steps: the entries of a layer make a small tree, the
*upper*, in their order, and then the upper goes over the tree so far.

* Upper: a path follows symbolic links of this layer only. A missing parent is created, whatever
  lower layers have in its place, with the attributes of the directory that they show there (0755,
  root's, time 0 if they show none). A directory over a directory keeps its children, anything else
  replaces.
* Over: a directory joins a directory unless it is opaque; a whiteout removes a name; anything else
  replaces. The root joins the root, opaque or not.

docs/layers.md has the cases, with containerd's results. Where containerd refuses a layer, the OCI
image specification decides (layer.md: a whiteout hides lower layers only). This module differs
where containerd drops what an image says: a directory entry for the root sets its attributes
(others are ignored), and a hard link can name a file of a lower layer. As in tar(1), a hard link
takes no attributes from its entry. A symbolic link has the permissions that symlink(2) gives it,
whatever its entry states.

Invariants: no name leaves the root; ``..`` and absolute targets stop at it, as under chroot(2). The
limits below bound time and memory, whatever the entries say.

Sources: containerd archive/tar.go (applyNaive, mkparent) and diff/apply, continuity fs.RootPath,
Documentation/filesystems/overlayfs.rst; tests/privileged/test_layer_trees.py asks them all.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Sequence
from sys import byteorder

from firstread.convert.entry import WHITEOUT
from firstread.convert.record import Entry, LayerRecord
from firstread.erofs.chunks import chunk_format, count_chunks
from firstread.erofs.tree import HOLE, NO_XATTRS, Node, directory
from firstread.errors import ImageError, LimitError
from firstread.printable import printable

OPAQUE = b".wh..wh..opq"
AUFS_META = b".wh..wh."  # prefix of the aufs driver's bookkeeping, which is not content

MAX_ENTRIES = 4_000_000  # in all layers, with created parents; about 400 bytes of memory each
MAX_STEPS = 100_000_000  # from name to name in all paths: 4 million entries 25 levels deep
NO_DEVICE = (0, 0)
SYMLINK_MODE = stat.S_IFLNK | 0o777  # symlink(7): the fixed permissions of all
MAX_SYMLINKS = 40  # followed in one path, as the kernel does (path_resolution(7))

_Children = dict[bytes, Node]
_Path = list[tuple[bytes, Node]]
"""The path from the root, whose name is empty, to a node."""


class LayerMerger:
    """Applies layers, lowest first, to one tree.

    `root` is the tree so far. Its chunk addresses count the sectors of all layers, layer after
    layer.

    Args:
        max_entries: of all layers.
        max_steps: from name to name, in the paths of all layers.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, max_steps: int = MAX_STEPS) -> None:
        self.root = directory()
        self._max_entries = max_entries
        self._max_steps = max_steps
        self._upper = directory()
        self._opaque: dict[int, _Children] = {}  # of the upper's opaque directories, by id()
        self._has_whiteouts = False
        self._is_lowest = True
        self._entries = 0
        self._steps = 0
        self._sectors = 0
        self._modes: dict[int, int] = {}
        self._mtime = 0

    def apply(self, record: LayerRecord) -> None:
        """Put one more layer over the tree.

        Raises:
            ImageError: an entry cannot be applied; the message names it.
            LimitError: there are too many entries or steps.
        """
        self._upper = directory()
        self._opaque = {}
        self._has_whiteouts = False
        sectors = len(record.sectors)
        try:
            for entry in record.entries():
                self._named(entry, sectors)
        except ImageError as exc:
            exc.about(layer=record.diff_id)
            raise
        children = _children(self._upper)
        # While unpacking, aufs kept the first names of hard links in such a directory.
        for name in [name for name in children if name.startswith(AUFS_META)]:
            del children[name]
        self._overlay(children)
        self._sectors += sectors
        self._is_lowest = False

    def _named(self, entry: Entry, sectors: int) -> None:
        try:
            self._apply(entry, sectors)
        except ImageError as exc:
            exc.message = f"entry {printable(entry.path)!r}: {exc.message}"
            raise

    def _apply(self, entry: Entry, sectors: int) -> None:
        self._count_entry()
        *parents, name = _components(entry.path) or [b""]
        if not name:
            self._set_root(entry)
        elif name.startswith(WHITEOUT):
            self._whiteout(parents, name)
        elif not stat.S_IFMT(entry.mode):
            children = self._parent(parents)
            children[name] = self._link_target(entry)
        else:
            children = self._parent(parents)
            node = self._node(entry, sectors)
            existing = children.get(name)
            if node.children is not None and existing is not None and existing.is_dir:
                node.children = existing.children
            children[name] = node
            self._has_whiteouts = self._has_whiteouts or is_whiteout(node)

    def _count_entry(self) -> None:
        self._entries += 1
        if self._entries > self._max_entries:
            raise LimitError(f"the image has more than {self._max_entries} entries")

    def _set_root(self, entry: Entry) -> None:
        if stat.S_ISDIR(entry.mode):
            children = self.root.children
            self.root = self._node(entry, 0)
            self.root.children = children

    def _node(self, entry: Entry, sectors: int) -> Node:
        # Entries have their own objects; nodes share equal ones, to save memory.
        if entry.mtime != self._mtime:
            self._mtime = entry.mtime
        mode = SYMLINK_MODE if stat.S_ISLNK(entry.mode) else entry.mode
        return Node(
            mode=self._modes.setdefault(mode, mode),
            uid=entry.uid,
            gid=entry.gid,
            mtime=self._mtime,
            mtime_nsec=entry.mtime_nsec,
            rdev=entry.rdev if any(entry.rdev) else NO_DEVICE,
            size=entry.size,
            target=entry.link,
            xattrs=entry.xattrs or NO_XATTRS,
            children={} if stat.S_ISDIR(entry.mode) else None,
            chunk_size=entry.chunk_size,
            chunks=_rebase(entry, self._sectors, sectors),
        )

    def _link_target(self, entry: Entry) -> Node:
        components = _components(entry.link)
        node = self._find(self._upper, components) or self._find(self.root, components)
        if node is None or node.is_dir:
            what = "is a directory" if node else "does not exist"
            raise ImageError(f"the target {printable(entry.link)!r} of the hard link {what}")
        return node

    def _whiteout(self, parents: Sequence[bytes], name: bytes) -> None:
        if name != OPAQUE and name.startswith(AUFS_META):
            if parents:  # containerd creates them anyway
                self._parent(parents)
            return
        hidden = name.removeprefix(WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise ImageError("the whiteout names no file")
        children = self._parent(parents)
        existing = children.get(hidden)
        if name == OPAQUE:
            self._opaque[id(children)] = children
        elif self._is_lowest:
            children.pop(hidden, None)
        elif existing is None:
            children[hidden] = _WHITEOUT
            self._has_whiteouts = True
        elif existing.children is not None:
            self._opaque[id(existing.children)] = existing.children

    # -- paths ---------------------------------------------------------------------------------

    def _parent(self, parents: Sequence[bytes]) -> _Children:
        """Return the children of a directory of the upper; create it if missing."""
        path: _Path = [(b"", self._upper)]
        new = self._walk(path, parents, make=True)
        if new is None:
            raise ImageError("a parent of it is not a directory")
        children = _children(path[-1][1])
        if new:
            self._make(path, new)
        return children

    def _make(self, path: _Path, new: int) -> None:
        """Attach the last `new` directories of `path` to the upper.

        They get the attributes of the directories that lower layers show there.
        """
        names = [name for name, _ in path[1:-new]]
        below: _Path = [(b"", self.root)]
        is_below = self._walk(below, names) is not None
        for (_, parent), (name, node) in zip(path[-new - 1 :], path[-new:], strict=False):
            self._count_entry()
            children = _children(parent)
            if children.get(name) is not None:  # a whiteout
                self._opaque[id(node.children)] = _children(node)
                is_below = False
            children[name] = node
            is_below = is_below and self._walk(below, [name]) is not None and below[-1][1].is_dir
            if is_below:
                _copy_attributes(below[-1][1], node)

    def _find(self, root: Node, components: Sequence[bytes]) -> Node | None:
        """Return the node at a path; follow symbolic links, except for the last component."""
        if not components:
            return root
        path: _Path = [(b"", root)]
        if self._walk(path, components[:-1]) is None:
            return None
        return (path[-1][1].children or {}).get(components[-1])

    def _walk(self, path: _Path, components: Sequence[bytes], *, make: bool = False) -> int | None:
        """Continue along `path`, and follow symbolic links.

        Args:
            path: extended, and cut where a link leads back.
            components: the names to follow.
            make: put missing directories onto `path`; `_make` must follow.

        Returns:
            the number of directories at the end of `path` that the tree lacks; None if there is no
            such path.
        """
        new = links = 0
        todo = list(reversed(components))
        while todo:
            self._steps += 1
            if self._steps > self._max_steps:
                raise self._too_many_steps()
            name = todo.pop()
            node = path[-1][1]
            if name == b"..":
                del path[max(1, len(path) - 1) :]
                new = max(0, new - 1)
                continue
            if node.children is None:
                return None
            child = node.children.get(name)
            if child is None or is_whiteout(child):
                if not make and b".." not in todo:
                    return None
                child = directory()
                new += 1
            elif child.is_symlink:
                links += 1
                if links > MAX_SYMLINKS:
                    raise ImageError("too many symbolic links on its path")
                if child.target.startswith(b"/"):
                    del path[1:]
                names = child.target.split(b"/")
                todo.extend(part for part in reversed(names) if part not in (b"", b"."))
                continue
            path.append((name, child))
        return None if new and not make else new

    def _too_many_steps(self) -> LimitError:
        return LimitError(
            f"the paths of the image take more than {self._max_steps} steps to follow"
        )

    # -- overlayfs -----------------------------------------------------------------------------

    def _overlay(self, upper: _Children) -> None:
        """Put the upper over the tree."""
        todo = [(_children(self.root), upper)]
        while todo:
            below, above = todo.pop()
            for name, node in above.items():
                if is_whiteout(node):
                    below.pop(name, None)
                    continue
                existing = below.get(name)
                below[name] = node
                if node.children is None:
                    continue
                if existing and existing.is_dir and id(node.children) not in self._opaque:
                    todo.append((_children(existing), node.children))
                    node.children = existing.children
                elif self._has_whiteouts:  # these must go, although they hide nothing
                    todo.append(({}, node.children))
                    node.children = todo[-1][0]


_WHITEOUT = Node(stat.S_IFCHR)
"""A whiteout in an upper, in overlayfs's form: the character device 0:0."""


def is_whiteout(node: Node) -> bool:
    """Return whether overlayfs takes `node` for a whiteout, and never shows it."""
    return stat.S_ISCHR(node.mode) and node.rdev == NO_DEVICE


def _children(node: Node) -> _Children:
    if node.children is None:
        raise ImageError("a parent of it is not a directory")
    return node.children


def _copy_attributes(source: Node, node: Node) -> None:
    node.mode, node.uid, node.gid = source.mode, source.uid, source.gid
    node.mtime, node.mtime_nsec, node.xattrs = source.mtime, source.mtime_nsec, source.xattrs


def _components(path: bytes) -> list[bytes]:
    """Return the names on `path`; ``.`` and ``..`` are resolved, and stop at the root."""
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b"."):
            names.append(name)
    return names


def _rebase(entry: Entry, base: int, sectors: int) -> Sequence[int]:
    """Return the chunk addresses of an entry, moved up by `base` sectors of lower layers.

    Raises:
        ImageError: an address lies outside the `sectors` of its layer, or the number of addresses
            is wrong.
    """
    if not entry.chunks:
        return ()
    if not stat.S_ISREG(entry.mode):
        raise ImageError("it has chunks, and is no regular file")
    chunk_format(entry.chunk_size)
    if len(entry.chunks) != 8 * count_chunks(entry.size, entry.chunk_size):
        raise ImageError("its chunk addresses are not as many as its chunks")
    chunks = array("Q", entry.chunks)
    if byteorder == "big":
        chunks.byteswap()
    end = sectors << 32
    base <<= 32
    rebased = []
    for chunk in chunks:
        if chunk >= end and chunk != HOLE:
            raise ImageError("a chunk of it is in no sector of its layer")
        rebased.append(chunk if chunk == HOLE else chunk + base)
    return tuple(rebased)
