# SPDX-License-Identifier: Apache-2.0
"""File trees with data, for tests that write, read or mount an EROFS image.

Owns sample trees and the comparison of trees; does no I/O. Invariant: the same call gives the same
tree and the same sectors, byte for byte.
"""

from __future__ import annotations

import random
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from firstread.erofs.tree import (
    HOLE,
    Device,
    LinkCounts,
    Node,
    chunk_address,
    directory,
    split_address,
    walk,
)
from firstread.units import GiB, KiB, MiB

BLOCK = 4 * KiB
_SLACK = b"\xee"  # bytes of no file, to expose a reader that looks there


@dataclass(slots=True)
class SectorData:
    """The content of the devices of an image.

    Args:
        size: bytes of each sector.
        sectors: their content.
    """

    size: int = MiB
    sectors: list[bytearray] = field(default_factory=list)
    _used: int = 0  # bytes of the last sector

    def add(self, data: bytes) -> int:
        """Store `data` at the next block that has room for it; return its chunk address."""
        if not self.sectors or self._used + len(data) > self.size:
            self.sectors.append(bytearray(_SLACK * self.size))
            self._used = 0
        offset = self._used
        self.sectors[-1][offset : offset + len(data)] = data
        self._used += -(-len(data) // BLOCK) * BLOCK
        return chunk_address(len(self.sectors) - 1, offset // BLOCK)

    def file(self, data: bytes, chunk_size: int = BLOCK, mode: int = 0o644) -> Node:
        """Return a file with `data`; a chunk of zeros becomes a hole."""
        parts = [data[start : start + chunk_size] for start in range(0, len(data), chunk_size)]
        chunks = [self.add(part) if any(part) else HOLE for part in parts]
        return Node(stat.S_IFREG | mode, size=len(data), chunk_size=chunk_size, chunks=chunks)

    def read(self, node: Node, chunk: int) -> bytes:
        """Return the expected content of chunk `chunk` of the file `node`, 1 MiB at most."""
        size = min(node.chunk_size, node.size - chunk * node.chunk_size, MiB)
        if node.chunks[chunk] == HOLE:
            return bytes(size)
        sector, block = split_address(node.chunks[chunk])
        return bytes(self.sectors[sector][block * BLOCK : block * BLOCK + size])

    @property
    def devices(self) -> list[Device]:
        """A device slot for each sector, with a made-up sector id."""
        blocks = self.size // BLOCK
        return [Device(bytes([number + 1]) * 32, blocks) for number in range(len(self.sectors))]


def small_tree() -> tuple[Node, SectorData]:
    """Return a tree that has each kind of inode once and fits on a page when dumped."""
    data = SectorData(8 * BLOCK)
    root = _dir(
        {
            b"bin": symlink(b"usr/bin"),
            b"dev": _dir({b"null": Node(stat.S_IFCHR | 0o666, rdev=(1, 3))}),
            b"empty": Node(stat.S_IFREG | 0o600, mtime=-1, mtime_nsec=999_999_999),
            b"pipe": Node(stat.S_IFIFO | 0o644, uid=100_000),
            b"sparse": data.file(b"a" * BLOCK + bytes(BLOCK) + b"b", BLOCK),
        }
    )
    tool = data.file(b"tool" * 3000, 16 * KiB, 0o4755)
    tool.xattrs = {b"security.capability": bytes(20), b"user.inline": b"1"}
    other = data.file(b"other")
    other.xattrs = {b"security.capability": bytes(20)}
    children = {b"a": tool, b"b": tool, b"-": other}
    assert root.children is not None
    root.children[b"usr"] = _dir({b"bin": _dir(children)})
    return root, data


def symlink(target: bytes) -> Node:
    """Return a symbolic link to `target`."""
    return Node(stat.S_IFLNK | 0o777, target=target)


def _dir(children: dict[bytes, Node], mode: int = 0o755) -> Node:
    node = directory(mode)
    node.children = children
    return node


def feature_tree(names: int = 70_000) -> tuple[Node, SectorData]:
    """Return a tree with everything that a file system of an image can have.

    Args:
        names: in its largest directory. By default one of its inodes has so many that their number
            exceeds 16 bits; fewer are enough where nobody looks at that.
    """
    data = SectorData()
    parts = {
        b"files": _files(data),
        b"names": _names(),
        b"links": _links(data),
        b"owners": _owners_and_times(),
        b"special": _special(),
        b"xattrs": _xattrs(data),
        b"large": _large_directory(names),
        b"sticky": _dir({}, 0o1777),
        b"deep": _deep(300),
    }
    return _dir(parts), data


def _files(data: SectorData) -> Node:
    content = random.Random(1)
    sizes = (1, BLOCK - 1, BLOCK, BLOCK + 1, 70_000, MiB)
    files = {b"%d" % size: data.file(content.randbytes(size)) for size in sizes}
    files[b"empty"] = Node(stat.S_IFREG | 0o644)
    files[b"chunks of 64 KiB"] = data.file(content.randbytes(200_000), 64 * KiB)
    files[b"one chunk"] = data.file(content.randbytes(MiB - 5), MiB)
    files[b"hole"] = data.file(bytes(3 * BLOCK + 7))
    files[b"hole first"] = data.file(bytes(2 * BLOCK) + b"end")
    files[b"hole last"] = data.file(b"begin" * 1000 + bytes(5 * BLOCK))
    files[b"holes"] = data.file(b"".join([b"x" * 8192, bytes(8192)] * 5), 8192)
    huge = Node(stat.S_IFREG | 0o644, size=4 * GiB + 12_345, chunk_size=MiB)
    huge.chunks = [HOLE] * 4097
    huge.chunks[7] = data.add(content.randbytes(MiB))
    huge.chunks[4096] = data.add(content.randbytes(12_345))
    files[b"huge"] = huge
    # A size that a kernel can state, without a chunk index for each MiB of it.
    files[b"vast"] = Node(
        stat.S_IFREG | 0o644, size=(1 << 62) + 1, chunk_size=1 << 43, chunks=[HOLE] * (2**19 + 1)
    )
    return _dir(files)


def _names() -> Node:
    names = [
        b"!before dot",
        b"-",
        b"...",
        b".hidden",
        b"\xff\xfe not utf-8",
        b"new\nline",
        b"\\",
        b" ",
    ]
    names += [bytes([letter]) * 255 for letter in b"AZaz"]
    return _dir({name: Node(stat.S_IFREG | 0o644) for name in names})


def _links(data: SectorData) -> Node:
    linked = data.file(b"one inode, three names")
    with_xattrs = symlink(b"x" * 3000)
    with_xattrs.xattrs = {b"trusted.overlay.opaque": b"y" * 2000}
    return _dir(
        {
            b"a": linked,
            b"b": linked,
            b"below": _dir({b"c": linked}),
            b"dangling": symlink(b"/no/such/file"),
            b"utf-8": symlink("über".encode()),
            b"longest": symlink(b"a/" * 2047 + b"b"),
            b"just inline": symlink(b"i" * (BLOCK - 32)),
            b"just not inline": symlink(b"n" * (BLOCK - 31)),
            b"with xattrs": with_xattrs,
        }
    )


def _owners_and_times() -> Node:
    nodes = {
        b"uid": Node(stat.S_IFREG | 0o400, uid=65_536),
        b"gid": Node(stat.S_IFREG | 0o040, gid=4_294_967_294),
        b"setuid": Node(stat.S_IFREG | 0o6755, uid=65_535, gid=65_535),
        b"setgid": _dir({}, 0o2770),
    }
    seconds = (-(1 << 33), -1, 0, 1, 1_700_000_000, (1 << 31) - 1, 1 << 32, 4_102_444_800, 1 << 34)
    for mtime in seconds:
        for nsec in (0, 1, 999_999_999):
            name = b"%d.%09d" % (mtime, nsec)
            nodes[name] = Node(stat.S_IFREG | 0o644, mtime=mtime, mtime_nsec=nsec)
    return _dir(nodes)


def _special() -> Node:
    return _dir(
        {
            b"null": Node(stat.S_IFCHR | 0o666, rdev=(1, 3)),
            b"whiteout": Node(stat.S_IFCHR, rdev=(0, 0)),
            b"largest": Node(stat.S_IFCHR | 0o600, rdev=(4095, 1_048_575)),
            b"disk": Node(stat.S_IFBLK | 0o660, rdev=(259, 300), gid=6),
            b"fifo": Node(stat.S_IFIFO | 0o644, mtime=-5),
            b"socket": Node(stat.S_IFSOCK | 0o755, uid=1 << 20),
        }
    )


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return a POSIX ACL of (tag, permissions, id) as ``struct posix_acl_xattr_header`` has it."""
    packed = [struct.pack("<HHI", tag, permissions, who) for tag, permissions, who in entries]
    return struct.pack("<I", 2) + b"".join(packed)


def _xattrs(data: SectorData) -> Node:
    nobody = 0xFFFFFFFF
    some_acl = acl((1, 6, nobody), (2, 4, 1000), (4, 4, nobody), (16, 4, nobody), (32, 0, nobody))
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    many = {b"user.%03d" % number: b"v" * number for number in range(300)}
    value = random.Random(2)
    nodes = {
        b"capability": data.file(b"ping", mode=0o755),
        b"acl": Node(stat.S_IFREG | 0o640),
        b"default acl": _dir({}),
        b"many": Node(stat.S_IFREG | 0o644),
        b"as many": data.file(b"chunk indexes after xattrs"),
        b"large": Node(stat.S_IFREG | 0o644),
        b"prefixes": Node(stat.S_IFREG | 0o644),
    }
    nodes[b"capability"].xattrs = {b"security.capability": capability}
    nodes[b"acl"].xattrs = {b"system.posix_acl_access": some_acl}
    nodes[b"default acl"].xattrs = {
        b"system.posix_acl_access": some_acl,
        b"system.posix_acl_default": some_acl,
    }
    nodes[b"many"].xattrs = nodes[b"as many"].xattrs = many
    nodes[b"large"].xattrs = {
        b"user.empty": b"",
        b"user.page": value.randbytes(BLOCK),
        b"user.most": value.randbytes(65_535),
        b"trusted.most": value.randbytes(65_535),
        b"user." + b"n" * 250: b"the longest name",
    }
    nodes[b"prefixes"].xattrs = {
        b"user.a": b"1",
        b"trusted.a": b"2",
        b"security.a": b"3",
        b"user.a.b.c": b"4",
    }
    for number in range(20):
        label = {b"security.selinux": b"system_u:object_r:bin_t:s0", b"user.own": b"%d" % number}
        node = nodes[b"label %d" % number] = data.file(b"%d" % number)
        node.xattrs = label
    return _dir(nodes)


def _large_directory(names: int) -> Node:
    """Return a directory of so many entries; most are names of one inode."""
    linked = Node(stat.S_IFREG | 0o644)
    files = names * 4 // 70
    children = {b"link %05d" % number: linked for number in range(names - files)}
    for number in range(files):
        children[b"file %05d" % number] = Node(stat.S_IFREG | 0o644)
    return _dir(children)


def _deep(levels: int) -> Node:
    node = _dir({b"bottom": Node(stat.S_IFREG | 0o644)})
    for _ in range(levels):
        node = _dir({b"d": node})
    return node


def facts(root: Node) -> Iterator[tuple[object, ...]]:
    """Yield, name by name, all that two equal trees have in common: hard links as well.

    What a chunk map says of a file is compared as addresses, not as data.
    """
    links = LinkCounts.of(root)
    first_names: dict[int, bytes] = {}
    for path, node in walk(root):
        yield (
            path,
            first_names.setdefault(id(node), path),
            *(node.mode, node.uid, node.gid, node.mtime, node.mtime_nsec, links[node]),
            *(node.rdev if node.is_device else None, node.size, node.target),
            *(dict(node.xattrs), node.chunk_size if node.chunks else 0, list(node.chunks)),
        )
