# SPDX-License-Identifier: Apache-2.0
"""One image with every feature that tar and the OCI image specification have, and its tree.

Compare `feature_tree` with a real mount of `feature_layers`. Invariant: the tree states every path,
except parents that no layer names.
"""

from __future__ import annotations

import dataclasses
import functools
import stat
from collections.abc import Iterator

from firstread.testing.entries import Item
from firstread.testing.featurelist import ACL, CAPABILITY, FEATURES
from firstread.testing.featurestory import BASE, GNU, SECOND, USTAR, Expected, Story, content

__all__ = [
    "ACL",
    "BASE",
    "CAPABILITY",
    "GNU",
    "SECOND",
    "USTAR",
    "Expected",
    "content",
    "feature_layers",
    "feature_tree",
]


@functools.cache
def _story() -> Story:
    story = Story()
    for feature in FEATURES:
        feature(story)
    return story


def feature_layers() -> list[list[Item]]:
    """Return the entries of the layers, from the lowest up."""
    return [list(items) for items in _story().layers]


def feature_tree() -> dict[bytes, Expected]:
    """Return what must be seen, by path without a slash at either end; ``b""`` is the root.

    A parent that no layer names is a directory of root's with mode 0755 and time 0.
    """
    tree = dict(_story().tree)
    for path in list(tree):
        for parent in _parents(path):
            tree.setdefault(parent, Expected(stat.S_IFDIR | 0o755))
    subdirectories: dict[bytes, int] = {}
    for path, expected in tree.items():
        if stat.S_ISDIR(expected.mode) and path:
            parent = path.rpartition(b"/")[0]
            subdirectories[parent] = subdirectories.get(parent, 0) + 1
    for path, expected in tree.items():
        if stat.S_ISDIR(expected.mode):
            tree[path] = dataclasses.replace(expected, nlink=2 + subdirectories.get(path, 0))
    return dict(sorted(tree.items()))


def _parents(path: bytes) -> Iterator[bytes]:
    while path:
        path = path.rpartition(b"/")[0]
        yield path
