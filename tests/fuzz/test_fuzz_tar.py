# SPDX-License-Identifier: Apache-2.0
"""Damaged archives and blobs give entries or an ImageError, in bounded time and memory."""

from __future__ import annotations

import gzip
import random
import sys

import pytest

from firstread.convert.stream import Feed, decompress
from firstread.convert.tar import TarReader
from firstread.errors import ImageError
from firstread.testing.entries import (
    Char,
    Dir,
    File,
    Format,
    Global,
    Hardlink,
    Item,
    Sparse,
    Symlink,
    to_tar,
    with_checksum,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROUNDS = 2000
PLAIN: list[Item] = [
    File("file", b"content" * 100),
    File("n" * 180),
    Dir("dir/"),
    Symlink("s", "t" * 150),
    Hardlink("h", "file"),
    Char("c", major=1, minor=3),
]
PAX: list[Item] = [
    *PLAIN,
    Global([("gid", "5")]),
    File("t", mtime=-5, mtime_nsec=7, uid=10**9, xattrs={"user.a": b"\xff"}),
    File("a", records=[("SCHILY.acl.access", "u::rwx,u:5:rwx,g::r-x,m::rwx,o::r-x")]),
    File("b", records=[("LIBARCHIVE.xattr.user.%41", "AP8")]),
    *(Sparse(f"s{form}", 10**6, {n * 3000: b"x" * n for n in range(1, 9)}, form)
      for form in ("0.0", "0.1", "1.0")),
]  # fmt: skip
GNU: list[Item] = [
    *PLAIN,
    File("big", uid=10**9, mtime=-5),
    Sparse("s", 10**6, {n * 3000: b"x" * n for n in range(1, 40)}, "gnu"),
]
SEEDS: dict[str, bytes] = {}
FORMATS: dict[Format, list[Item]] = {"pax": PAX, "gnu": GNU}
for name, items in FORMATS.items():
    SEEDS[name] = to_tar(items, name)

INTERESTING = [
    b"\0",
    b"\xff",
    b"-",
    b"9",
    b"=",
    b" ",
    b"\n",
    b",",
    b"7" * 11,
    b"\x80",
    b"\xff" * 12,
]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Change a few places: bytes, cuts, copies of other ranges."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(mutated) or 1)
        match rng.randrange(5):
            case 0:
                mutated[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                value = rng.choice(INTERESTING)
                mutated[at : at + len(value)] = value
            case 2:
                length = rng.choice([1, 12, 512, 1024])
                source = rng.randrange(len(mutated) or 1)
                mutated[at : at + length] = mutated[source : source + length]
            case 3:
                del mutated[at : at + rng.choice([1, 100, 512, 5000])]
            case 4:
                block = at & ~511
                mutated[block + 156 : block + 157] = bytes([rng.choice(b"\0001234567xgXLKSVMND?")])
    return bytes(mutated)


def repair(data: bytes) -> bytes:
    """Give every block that looks like a header the right checksum, so that the rest is read."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    return b"".join(
        with_checksum(block) if block[257:262] == b"ustar" and len(block) == 512 else block
        for block in blocks
    )


def consume(chunks: list[bytes]) -> None:
    """Read everything; the entries keep the promises of `TarEntry`."""
    feed = Feed(decompress(chunks, ""))
    reader = TarReader(feed)
    for entry in reader:
        assert 0 <= entry.mode <= 0o7777
        assert 0 <= entry.uid < 2**32
        assert 0 <= entry.mtime_nsec < 10**9
        assert 0 <= entry.size < 2**63
        assert len(entry.path) <= 4095
        end = 0
        for offset, piece in reader.data(entry):
            assert end <= offset
            end = offset + len(piece)
        assert end <= entry.size
    feed.drain()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("seed", SEEDS)
def test_mutated_archives(seed: str) -> None:
    rng = random.Random(seed)
    consume([SEEDS[seed]])
    accepted = 0
    for _ in range(ROUNDS):
        data = mutate(rng, SEEDS[seed])
        for archive in (data, repair(data)):
            try:
                consume([archive])
            except ImageError as exc:
                message = exc.message
                assert message
                continue
            accepted += 1
    assert accepted > ROUNDS // 20  # otherwise the mutations are too coarse to reach anything


@pytest.mark.timeout(20)
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_mutated_blobs(compression: str) -> None:
    pack = gzip.compress if compression == "gzip" else zstd.compress
    blob = pack(SEEDS["pax"]) + pack(bytes(2000))
    rng = random.Random(compression)
    for _ in range(ROUNDS):
        try:
            consume([mutate(rng, blob)])
        except ImageError:
            continue


@pytest.mark.timeout(20)
def test_noise() -> None:
    rng = random.Random("noise")
    for _ in range(ROUNDS):
        try:
            consume([rng.randbytes(rng.randrange(3000))])
        except ImageError:
            continue
