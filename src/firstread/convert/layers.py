# SPDX-License-Identifier: Apache-2.0
"""Merges layer records into one file tree, as unpacking them one over the other would.

Owns the rules of the OCI image specification (layer.md: applying changesets, whiteouts); no I/O.
Where the specification is silent it does what containerd does when it applies a layer onto the
mounted ones below: parent directories are looked up through symbolic links of the merged tree,
missing ones are made (0755, root's, time 0), a directory over a directory keeps its children,
anything else replaces. It differs where containerd depends on the order of a layer's entries, or
drops what they say: a whiteout hides lower layers only, wherever in its layer it stands (layer.md),
and an entry for the root sets its attributes. A hard link takes no attributes from its entry, as in
tar(1). The permissions of a symbolic link are those that symlink(2) gives it, whatever is stated.
Invariants: no name leaves the root; ``..`` and absolute targets stop at it, as under chroot(2).
Time and memory are bounded by the limits below, whatever the entries say.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterable, Sequence
from sys import byteorder

from firstread.convert.entry import WHITEOUT
from firstread.convert.record import Entry, LayerRecord
from firstread.erofs.tree import HOLE, NO_XATTRS, Node, directory
from firstread.errors import ImageError, LimitError
from firstread.printable import printable

OPAQUE = b".wh..wh..opq"
AUFS_META = b".wh..wh."  # what begins so is bookkeeping of the aufs driver, and no content

MAX_ENTRIES = 4_000_000  # in all layers, made parents included; about 400 bytes of memory each
MAX_STEPS = 100_000_000  # from name to name in all paths: 4 million entries 25 levels deep
NO_DEVICE = (0, 0)
SYMLINK_MODE = stat.S_IFLNK | 0o777  # symlink(7): the permissions of all, and nothing changes them
MAX_SYMLINKS = 40  # followed in one path, as the kernel does (path_resolution(7))


class LayerMerger:
    """Applies layers from the lowest up to one tree.

    `root` is the tree so far. Chunk addresses in it count sectors over all layers: those of a
    layer begin where those of the layer below end.

    Args:
        max_entries: of all layers.
        max_steps: from name to name, in the paths of all layers.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, max_steps: int = MAX_STEPS) -> None:
        self.root = directory()
        self._max_entries = max_entries
        self._max_steps = max_steps
        self._layer = 0
        self._links: set[tuple[int, bytes]] = set()  # names that this layer hard-linked
        self._hidden: set[int] = set()  # directories rid of lower layers: each is cleared once
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
        self._layer += 1
        self._links.clear()
        self._hidden.clear()
        sectors = len(record.sectors)
        try:
            for entry in record.entries():
                self._named(entry, sectors)
        except ImageError as exc:
            exc.about(layer=record.diff_id)
            raise
        # aufs kept the first names of hard links in such a directory, for the time of unpacking.
        children = self._parent([])
        for name in [name for name in children if name.startswith(AUFS_META)]:
            del children[name]
        self._sectors += sectors

    def _named(self, entry: Entry, sectors: int) -> None:
        try:
            self._apply(entry, sectors)
        except ImageError as exc:
            exc.message = f"entry {printable(entry.path)!r}: {exc.message}"
            raise

    def _apply(self, entry: Entry, sectors: int) -> None:
        self._count_entry()
        *parents, name = _components(entry.path) or [b""]
        if name.startswith(WHITEOUT):
            self._whiteout(parents, name)
        elif not name:
            self._set_root(entry)
        elif not stat.S_IFMT(entry.mode):
            children = self._parent(parents)
            children[name] = self._link_target(entry)
            self._links.add((id(children), name))
        else:
            children = self._parent(parents)
            node = self._node(entry, sectors)
            existing = children.get(name)
            if node.children is not None and existing is not None and existing.is_dir:
                node.children = existing.children
            children[name] = node

    def _count_entry(self) -> None:
        self._entries += 1
        if self._entries > self._max_entries:
            raise LimitError(f"the image has more than {self._max_entries} entries")

    def _set_root(self, entry: Entry) -> None:
        if not stat.S_ISDIR(entry.mode):
            raise ImageError("the root is not a directory")
        children = self.root.children
        self.root = self._node(entry, 0)
        self.root.children = children

    def _node(self, entry: Entry, sectors: int) -> Node:
        # Every entry comes with objects of its own; what many nodes have in common is kept once.
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
            layer=self._layer,
        )

    def _link_target(self, entry: Entry) -> Node:
        node = self._find(_components(entry.link))
        if node is None or node.is_dir:
            what = "is a directory" if node else "does not exist"
            raise ImageError(f"the target {printable(entry.link)!r} of the hard link {what}")
        return node

    def _whiteout(self, parents: Sequence[bytes], name: bytes) -> None:
        if name != OPAQUE and name.startswith(AUFS_META):
            return
        parent = self._walk(parents, make=False)
        if parent is None or parent.children is None:
            return  # nothing below to hide
        if name == OPAQUE:
            self._hide_lower(parent)
            return
        hidden = name.removeprefix(WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise ImageError("the whiteout names no file")
        node = parent.children.get(hidden)
        if node is not None:
            self._hide_lower(node)
            self._drop(parent.children, hidden)

    def _hide_lower(self, top: Node) -> None:
        """Remove from `top` all that lower layers put there.

        A whiteout hides lower layers only, so what this layer has added stays (layer.md).
        """
        order = [top] if id(top.children) not in self._hidden else []
        for node in order:
            self._hidden.add(id(node.children))
            order.extend(
                child
                for child in (node.children or {}).values()
                if child.is_dir and id(child.children) not in self._hidden
            )
        for node in reversed(order):
            children = node.children or {}
            for name in list(children):
                self._drop(children, name)

    def _drop(self, children: dict[bytes, Node], name: bytes) -> None:
        """Remove a name that a lower layer put there, and that is rid of what such layers did.

        A directory that has something of this layer left is the parent made for it: what the lower
        layers said of it is gone, as if the whiteout had come first.
        """
        node = children[name]
        if node.layer == self._layer or (id(children), name) in self._links:
            return
        if node.children:
            children[name] = directory(layer=self._layer)
            children[name].children = node.children
        else:
            del children[name]

    def _parent(self, parents: Sequence[bytes]) -> dict[bytes, Node]:
        """Return the children of a directory, made if missing, symbolic links followed."""
        node = self._walk(parents, make=True)
        if node is None or node.children is None:
            raise ImageError("a parent of it is not a directory")
        return node.children

    def _find(self, components: Sequence[bytes]) -> Node | None:
        """Return the node at a path, symbolic links followed in all but its last component."""
        if not components:
            return self.root
        parent = self._walk(components[:-1], make=False)
        return parent.children.get(components[-1]) if parent and parent.children else None

    def _walk(self, components: Sequence[bytes], *, make: bool) -> Node | None:
        node = self.root
        path = [node]  # the way back for ".." in a symbolic link
        new: list[tuple[dict[bytes, Node], bytes, Node]] = []  # end of `path` that is not there
        todo = list(reversed(components))
        links = 0
        while todo:
            self._steps += 1
            name = todo.pop()
            if name == b"..":
                del path[max(1, len(path) - 1) :], new[-1:]
                node = path[-1]
                continue
            if node.children is None:
                return None
            child = node.children.get(name)
            if child is None:
                if not make and b".." not in todo:
                    return None
                child = directory(layer=self._layer)
                new.append((node.children, name, child))
            elif child.is_symlink:
                links += 1
                if links > MAX_SYMLINKS:
                    raise ImageError("too many symbolic links on its path")
                if child.target.startswith(b"/"):
                    del path[1:]
                todo.extend(
                    part for part in reversed(child.target.split(b"/")) if part not in (b"", b".")
                )
                node = path[-1]
                continue
            path.append(child)
            node = child
        if self._steps > self._max_steps:
            raise LimitError(
                f"the paths of the image take more than {self._max_steps} steps to follow"
            )
        if new and not make:
            return None
        self._make(new)
        return node

    def _make(self, directories: Iterable[tuple[dict[bytes, Node], bytes, Node]]) -> None:
        for children, name, node in directories:
            self._count_entry()
            children[name] = node


def _components(path: bytes) -> list[bytes]:
    """Return the names on `path`, with ``.`` and ``..`` resolved and the root not left."""
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b"."):
            names.append(name)
    return names


def _rebase(entry: Entry, base: int, sectors: int) -> Sequence[int]:
    """Return its chunk addresses moved up by `base`, the number of sectors in the layers below.

    Raises:
        ImageError: one is outside the `sectors` of its layer, or there are not as many as it has
            chunks.
    """
    if not entry.chunks:
        return ()
    if 8 * entry.size > len(entry.chunks) * entry.chunk_size or len(entry.chunks) % 8:
        raise ImageError("its chunk addresses are cut off")
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
