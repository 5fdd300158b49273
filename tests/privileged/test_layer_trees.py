# SPDX-License-Identifier: Apache-2.0
"""Trees of odd layers: containerd's overlayfs snapshotter and firstread show the same."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from firstread.convert.layers import LayerMerger
from firstread.convert.record import LayerRecord
from firstread.erofs.tree import walk
from firstread.errors import ImageError
from firstread.run.overlay import unmount_below
from firstread.testing.command import Ran, ran
from firstread.testing.entries import Item
from firstread.testing.images import Block, Char, Dir, Fifo, File, Image, Layer, write_layout
from firstread.testing.layerwords import Case, cases, items, merged, shown
from firstread.testing.packed import pack
from firstread.testing.patience import PATIENCE_S

DOCS = Path(__file__).parents[2] / "docs/layers.md"

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("containerd"), reason="needs root and containerd"
    ),
]

T = TypeVar("T")

CONFIG = """
version = 2
root = "{scratch}/root"
state = "{scratch}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{scratch}/c.sock"
"""


class Overlayfs:
    """A containerd with only its overlayfs snapshotter; a context manager."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def __enter__(self) -> Self:
        config = self._scratch / "config.toml"
        config.write_text(CONFIG.format(scratch=self._scratch))
        with (self._scratch / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", str(config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE_S
        while self._ctr("version").code:
            assert time.monotonic() < deadline, (self._scratch / "log").read_text()[-3000:]
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=PATIENCE_S)
        unmount_below(self._scratch)

    def _ctr(self, *arguments: str) -> Ran:
        return ran(["ctr", "--address", f"{self._scratch}/c.sock", *arguments])

    def shows(self, layers: list[str]) -> str | None:
        """Return the tree of an image; None if containerd refuses it."""
        return self.reads([Layer(items(words)) for words in layers], lambda top: shown(_names(top)))

    def reads(self, layers: list[Layer], look: Callable[[bytes], T]) -> T | None:
        """Return what a look at the tree of an image finds; None if containerd refuses it."""
        work = Path(tempfile.mkdtemp(dir=self._scratch))
        write_layout(Image(layers), work / "layout", "x")
        with tarfile.open(work / "archive", "w") as archive:
            archive.add(work / "layout", "")
        imported = self._ctr("images", "import", "--base-name", "t/x", str(work / "archive"))
        if imported.code:
            assert "failed to extract layer" in imported.stderr, imported.stderr
            return None
        top = work / "mnt"
        top.mkdir()
        mounted = self._ctr("images", "mount", imported.stdout.split()[1], str(top))
        assert mounted.code == 0, mounted.stderr
        try:
            return look(os.fsencode(top))
        finally:
            subprocess.run(["umount", str(top)], check=True)
            self._ctr("images", "rm", "--sync", imported.stdout.split()[1])


def _names(top: bytes) -> Iterator[tuple[bytes, int, int, bytes]]:
    for folder, directories, files in os.walk(top):
        for name in (*directories, *files):
            full = os.path.join(folder, name)
            try:
                seen = os.lstat(full)
                target = os.readlink(full) if os.path.islink(full) else b""
            except FileNotFoundError:
                continue  # a whiteout over nothing: readdir(2) has it, and nothing else
            yield os.path.relpath(full, top), seen.st_mode, seen.st_uid, target


@pytest.fixture(scope="module")
def overlayfs() -> Iterator[Overlayfs]:
    # The path is short enough for sockets, and not on an overlayfs.
    scratch = Path(tempfile.mkdtemp(prefix="frl-"))
    try:
        with Overlayfs(scratch) as running:
            yield running
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.mark.parametrize("case", cases(DOCS), ids=lambda case: case.layers)
def test_containerd_shows_the_trees_in_the_docs(overlayfs: Overlayfs, case: Case) -> None:
    assert overlayfs.shows(case.layers.split(" ; ")) == case.containerd


def generated(seed: int) -> list[str]:
    """Return two or three random layers that the converter accepts."""
    chance = random.Random(seed)
    layers: list[str] = []
    for number in range(chance.choice((2, 2, 3))):
        layers.append("")
        for _ in range(chance.randint(1, 6)):
            longer = f"{layers[-1]} {_word(chance, is_lowest=number == 0)}".strip()
            try:
                merged([*layers[:-1], longer])
            except ImageError:
                continue
            layers[-1] = longer
    return layers


def _word(chance: random.Random, *, is_lowest: bool) -> str:
    def path() -> str:
        return "/".join(chance.choice("abc") for _ in range(chance.choice((1, 1, 2, 2, 3))))

    name = path()
    parent, _, last = name.rpartition("/")
    words = [
        name,
        f"{name}|",
        f"{name}/",
        f"{name}/={chance.randint(1, 9)}",
        f"{name}->{chance.choice(['a', 'b', 'c', '../a', '/b', 'a/b', '/', '.'])}",
        f"{name}=>{path()}",
    ]
    if not is_lowest:
        words += [f"{parent}/.wh.{last}".lstrip("/"), f"{name}/.wh..wh..opq"]
    return chance.choice(words)


def test_containerd_shows_the_same_for_random_layers(overlayfs: Overlayfs) -> None:
    compared = 0
    for seed in range(40):
        layers = generated(seed)
        theirs = overlayfs.shows(layers)
        if theirs is not None:  # the converter accepts what containerd refuses
            assert merged(layers) == theirs, layers
            compared += 1
    assert compared >= 20


def oddly_attributed(seed: int, count: int = 60) -> list[Item]:
    """Return entries apart from each other, with the attributes of odd archives."""
    chance = random.Random(seed)
    items: list[Item] = []
    for number in range(count):
        kind = chance.choice((File, Dir, Fifo, Char, Block))
        numbers = {"major": chance.choice((1, 4095, 4097)), "minor": chance.choice((1, 256, 2**20))}
        device: dict[str, Any] = numbers if kind in (Char, Block) else {}
        items.append(
            kind(
                b"%d" % number,
                mode=chance.choice((0, 0o644, 0o7777, 0o4755, 0o2644, 0o1777, 0o100644, 0o170000)),
                uid=chance.choice(OWNERS),
                gid=chance.choice(OWNERS),
                mtime=chance.choice((0, 1, 2**31, 2**32, 9_223_372_035)),
                mtime_nsec=chance.choice((0, 1, 999_999_999)),
                xattrs=dict(chance.sample(XATTRS, chance.choice((0, 0, 1, 2)))),
                records=chance.choice(RECORDS),
                **device,
            )
        )
    return items


OWNERS = (0, 1, 65_536, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**32 + 5)
XATTRS = [
    (b"security.capability", struct.pack("<5I", 0x02000001, 2, 0, 0, 0)),
    (b"security.capability", struct.pack("<6I", 0x03000000, 2, 1, 0, 0, 1000)),
    (b"system.posix_acl_access", b""),
    (b"system.posix_acl_access", struct.pack("<I", 2)),
    (
        b"system.posix_acl_access",
        struct.pack("<I", 2)
        + struct.pack("<HHI", 1, 6, 0)
        + struct.pack("<HHI", 2, 7, 1000)
        + struct.pack("<HHI", 4, 4, 0)
        + struct.pack("<HHI", 16, 5, 0)
        + struct.pack("<HHI", 32, 0, 0),
    ),
    (b"trusted.name", b"value"),
    (b"security.name", b"\0\xff"),
]
RECORDS: list[list[tuple[str, str]]] = [
    [],
    [],
    [("uid", "")],
    [("gid", "4294967297")],
    [("mtime", "12.3456789019")],
    [("mtime", "5.")],
    [("linkpath", "elsewhere")],
    [("comment", "none")],
    [("SCHILY.xattr.security.a=b", "c")],
]


def test_containerd_sets_the_same_attributes(overlayfs: Overlayfs) -> None:
    for seed in range(4):
        layer = Layer(oddly_attributed(seed))
        merger = LayerMerger()
        merger.apply(LayerRecord.decode(pack(layer)[0].record))
        ours = {
            path: (
                *(node.mode, node.uid, node.gid, tuple(node.rdev), node.target),
                *(node.mtime * 10**9 + node.mtime_nsec, dict(node.xattrs)),
            )
            for path, node in walk(merger.root)
            if path
        }
        theirs = overlayfs.reads([layer], _attributes)
        assert theirs is not None
        assert ours == theirs


def _attributes(top: bytes) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for name in os.listdir(top):
        full = os.path.join(top, name)
        seen = os.lstat(full)
        xattrs = {os.fsencode(key): os.getxattr(full, key) for key in os.listxattr(full)}
        rdev = (os.major(seen.st_rdev), os.minor(seen.st_rdev))
        found[name] = (
            *(seen.st_mode, seen.st_uid, seen.st_gid, rdev, b""),
            *(seen.st_mtime_ns, xattrs),
        )
    return found
