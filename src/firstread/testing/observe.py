# SPDX-License-Identifier: Apache-2.0
"""Observes a directory tree as a container could: through system calls.

Compare an observation with `Expected` entries, or with another observation. Invariant: two trees
with the same observation are the same to every program in a container, except for inode and device
numbers, link counts of names outside the tree, and times other than mtime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping

from firstread.testing.features import Expected


def observe(top: str | os.PathLike[str]) -> dict[bytes, Expected]:
    """Return the tree at the directory `top`, by path without a slash at either end.

    Reads every file, and follows no symbolic link.
    """
    root = os.fsencode(top)
    tree: dict[bytes, Expected] = {}
    first: dict[int, bytes] = {}  # inode -> its first name, for those that have several
    for path, full in sorted(_names(root)):
        seen = os.lstat(full)
        if not stat.S_ISDIR(seen.st_mode) and seen.st_ino in first:
            tree[path] = tree[first[seen.st_ino]]
            continue
        tree[path] = _look(full, seen)
        if not stat.S_ISDIR(seen.st_mode) and seen.st_nlink > 1:
            first[seen.st_ino] = path
            tree[path] = dataclasses.replace(tree[path], same_as=path)
    return tree


def _names(root: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (path below the root, full path)."""
    yield b"", root
    for folder, directories, files in os.walk(root):
        prefix = os.path.relpath(folder, root) + b"/" if folder != root else b""
        for name in (*directories, *files):
            yield prefix + name, os.path.join(folder, name)


def _look(full: bytes, seen: os.stat_result) -> Expected:
    names = os.listxattr(full, follow_symlinks=False)
    special = stat.S_ISCHR(seen.st_mode) or stat.S_ISBLK(seen.st_mode)
    regular = stat.S_ISREG(seen.st_mode)
    return Expected(
        mode=seen.st_mode,
        uid=seen.st_uid,
        gid=seen.st_gid,
        mtime=seen.st_mtime_ns // 10**9,
        mtime_nsec=seen.st_mtime_ns % 10**9,
        size=seen.st_size if regular else 0,
        sha256=_digest(full) if regular else "",
        nlink=seen.st_nlink,
        target=os.readlink(full) if stat.S_ISLNK(seen.st_mode) else b"",
        rdev=(os.major(seen.st_rdev), os.minor(seen.st_rdev)) if special else (0, 0),
        xattrs={os.fsencode(n): os.getxattr(full, n, follow_symlinks=False) for n in names},
    )


def _digest(full: bytes) -> str:
    with open(full, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(expected: Mapping[bytes, Expected], seen: Mapping[bytes, Expected]) -> list[str]:
    """Return a line for every difference between two observations."""
    lines = [f"{path!r} is missing" for path in sorted(expected.keys() - seen.keys())]
    lines += [f"{path!r} should not be there" for path in sorted(seen.keys() - expected.keys())]
    for path in sorted(expected.keys() & seen.keys()):
        for field in dataclasses.fields(Expected):
            wanted, found = (getattr(side[path], field.name) for side in (expected, seen))
            if wanted != found:
                lines.append(f"{path!r}: {field.name} is {found!r}, not {wanted!r}")
    return lines
