# SPDX-License-Identifier: Apache-2.0
"""Layers and trees in a few words, as docs/layers.md and the tests of merging write them.

======================  =========================================
word                    meaning
======================  =========================================
``file``                an empty file
``dir/``                a directory
``link->target``        a symbolic link
``name=>target``        a hard link
``fifo|``, ``device%``  a named pipe, a character device
``device0%0``           the character device 0:0
``dir/=5``              with an owner other than 0; of any kind but links
======================  =========================================

Names that begin with ``.wh.`` are files, as in a layer.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from firstread.convert.layers import LayerMerger
from firstread.convert.record import LayerRecord
from firstread.erofs.tree import walk
from firstread.testing.entries import Char, Dir, Fifo, File, Hardlink, Item, Symlink
from firstread.testing.images import Layer
from firstread.testing.packed import pack


def items(words: str) -> list[Item]:
    """Return the entries of a layer."""
    return [_item(word) for word in words.split()]


def _item(word: str) -> Item:
    if "=>" in word:
        path, target = word.split("=>")
        return Hardlink(path, target)
    if "->" in word:
        path, target = word.split("->")
        return Symlink(path, target)
    path, _, owner = word.partition("=")
    uid = int(owner or 0)
    if path.endswith("0%0"):
        return Char(path.removesuffix("0%0"), uid=uid)
    if path.endswith("%"):
        return Char(path.removesuffix("%"), uid=uid, major=1, minor=3)
    if path.endswith("|"):
        return Fifo(path.removesuffix("|"), uid=uid)
    return Dir(path, uid=uid) if path.endswith("/") else File(path, uid=uid)


def shown(tree: Iterable[tuple[bytes, int, int, bytes]]) -> str:
    """Return a tree in such words.

    Args:
        tree: (path, mode, owner, target of a symbolic link) of each name but the root.
    """
    return " ".join(_word(*each) for each in sorted(tree))


def _word(path: bytes, mode: int, uid: int, target: bytes) -> str:
    if stat.S_ISLNK(mode):
        return f"{path.decode()}->{target.decode()}"
    signs = {stat.S_IFDIR: "/", stat.S_IFIFO: "|", stat.S_IFCHR: "%"}
    return path.decode() + signs.get(stat.S_IFMT(mode), "") + (f"={uid}" if uid else "")


def merged(layers: Iterable[str]) -> str:
    """Return the tree that firstread makes of layers.

    Raises:
        ImageError: it refuses them.
    """
    merger = LayerMerger()
    for words in layers:
        merger.apply(LayerRecord.decode(pack(Layer(items(words)))[0].record))
    names = [each for each in walk(merger.root) if each[0]]
    return shown((path, node.mode, node.uid, node.target) for path, node in names)


@dataclass(frozen=True)
class Case:
    """A row of docs/layers.md: layers, and what is shown of them; None is that they are refused."""

    layers: str
    containerd: str | None
    ours: str | None


def cases(page: Path) -> list[Case]:
    """Return the rows of the table in docs/layers.md."""
    rows = re.findall(r"^\| `(.+)` \| (.+) \| (.+) \|$", page.read_text(), re.MULTILINE)
    found = []
    for layers, containerd, ours in rows:
        theirs = _tree(containerd)
        same = ours == "the same"
        found.append(Case(layers.replace("\\|", "|"), theirs, theirs if same else _tree(ours)))
    return found


def _tree(cell: str) -> str | None:
    if cell == "refuses it":
        return None
    tree = cell.split("`")[1].replace("\\|", "|")
    return "" if tree == "." else tree
