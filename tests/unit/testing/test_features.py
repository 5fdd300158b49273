# SPDX-License-Identifier: Apache-2.0
"""The image with every feature, and its tree against an unpacker that others wrote."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from firstread.convert.entry import TarKind
from firstread.convert.stream import decompress
from firstread.testing.archive import read_archive
from firstread.testing.entries import Entry, Global, Item, Sparse, Whiteout, to_bytes
from firstread.testing.features import Expected, feature_layers
from firstread.testing.images import Image, Layer, feature_image, feature_tree, write_layout
from firstread.units import MiB


def test_the_image_is_pinned() -> None:
    """Its bytes are the same on every machine; change this digest when a feature is added."""
    content = hashlib.sha256(b"".join(layer.tar for layer in feature_image().layers))
    assert content.hexdigest()[:16] == "bf56f58ac112ad3d"


def test_the_image_is_of_a_bearable_size() -> None:
    assert sum(len(layer.tar) for layer in feature_image().layers) < 40 * MiB


def test_the_layers_have_every_kind_and_form() -> None:
    kinds = set()
    sparse = 0
    for layer in feature_image().layers:
        for entry, _ in read_archive(b"".join(decompress([layer.blob], ""))):
            kinds.add(entry.kind)
            sparse += entry.extents is not None
    assert kinds == set(TarKind)
    assert sparse == 16


def test_the_tree_is_closed_and_counts_links() -> None:
    tree = feature_tree()
    assert list(tree) == sorted(tree)
    for path, expected in tree.items():
        assert not path or stat.S_ISDIR(tree[path.rpartition(b"/")[0]].mode)
        names = [
            other for other in tree.values() if other.same_as and other.same_as == expected.same_as
        ]
        assert stat.S_ISDIR(expected.mode) or expected.nlink == (len(names) or 1)


def for_umoci(item: Item) -> bool:
    """Whether umoci takes it: it refuses global headers, old sparse files and rare types."""
    if isinstance(item, Entry | Whiteout) and to_bytes(item.path).startswith(OTHERWISE):
        return False
    if isinstance(item, Sparse):
        return item.form != "gnu"
    if isinstance(item, Entry):
        return item.type in (None, b"\0") and not to_bytes(item.path).startswith(b"g/")
    return not isinstance(item, Global)


OTHERWISE = (b"nodir", b"lib64")  # parents that lower layers made no directories
NOT_UNPACKED = {b"g", b"v/contiguous", b"v/unknown"}
NO_RECORDS = {b"x/acl-text", b"x/base64", b"x/empty"}  # Go's archive/tar does not know these


@pytest.mark.privileged
def test_umoci_unpacks_the_same_tree(tmp_path: Path) -> None:
    if not shutil.which("umoci") or os.geteuid():
        pytest.skip("needs umoci and root")
    layers = [Layer(list(filter(for_umoci, items))) for items in feature_layers()]
    write_layout(Image(layers), tmp_path / "layout")
    command = ["umoci", "unpack", "--image", f"{tmp_path}/layout:latest", f"{tmp_path}/bundle"]
    subprocess.run(command, check=True, capture_output=True)
    top = os.fsencode(tmp_path / "bundle/rootfs")
    tree = {
        path: expected
        for path, expected in feature_tree().items()
        if (
            path not in NOT_UNPACKED
            and not path.startswith((b"g/", *OTHERWISE))
            and not path.endswith(b"-gnu")
        )
        or path.startswith((b"m/", b"n/"))
    }
    found = {os.path.relpath(os.path.join(directory, name), top)
             for directory, names, files in os.walk(top) for name in names + files}  # fmt: skip
    assert found == tree.keys() - {b""}
    wrong = {
        path: seen
        for path, expected in tree.items()
        if path and (seen := look(os.path.join(top, path), expected)) != expected
    }
    assert wrong.keys() == NO_RECORDS | {b"time/9999"}


def look(path: bytes, like: Expected) -> Expected:
    """Return what is at `path`; of a directory without its time, which unpacking changes."""
    status = os.lstat(path)
    names = os.listxattr(path, follow_symlinks=False)
    seen = Expected(
        status.st_mode,
        status.st_uid,
        status.st_gid,
        *divmod(status.st_mtime_ns, 10**9),
        nlink=status.st_nlink,
        xattrs={os.fsencode(n): os.getxattr(path, n, follow_symlinks=False) for n in names},
        same_as=like.same_as,
    )
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return replace(seen, size=status.st_size, sha256=digest)
    if stat.S_ISLNK(status.st_mode):
        return replace(seen, target=os.readlink(path))
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return replace(seen, rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)))
    if stat.S_ISDIR(status.st_mode):
        return replace(seen, mtime=like.mtime, mtime_nsec=like.mtime_nsec)
    return seen
