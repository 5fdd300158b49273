# SPDX-License-Identifier: Apache-2.0
"""A new fetcher takes over the mounts that another has left. The list of mounts is made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firstread.cache.imagestore import ImageStore
from firstread.layouts.layoutreader import LayoutDirectory
from firstread.mountinfo import MountLine
from firstread.mounts.table import Mount, MountTable
from firstread.oci.reference import parse_reference
from firstread.testing.plainimage import put_plain_image
from firstread.testing.quietnode import quiet_node
from firstread.units import KiB

COUNT = 30


def test_many_mounts_are_taken_over_with_one_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads wait meanwhile, and each look costs as much as there are mounts."""
    name, root, looks = f"oci:{tmp_path}/layout:latest", tmp_path / "root", list[int]()
    put_plain_image(name, count=2, sector_bytes=64 * KiB)
    with LayoutDirectory(parse_reference(name)) as repository:
        image = ImageStore(root).fetch(parse_reference(name), repository)
    lines, table = list[MountLine](), MountTable(root)
    for number in range(COUNT):
        place = tmp_path / f"mount{number}"
        place.mkdir()
        table.save(Mount(str(place), name, image.digest, pinned=number < 2))
        source = os.fsencode(image.metadata)
        lines.append(MountLine(number, 50 + number, os.fsencode(place), b"erofs", source, b"ro"))

    def look() -> list[MountLine]:
        looks.append(len(lines))
        return lines

    monkeypatch.setattr("firstread.mounts.table.read_mountinfo", look)
    with quiet_node(root, tmp_path / "run") as node:
        node.recover()
        assert looks == [COUNT]
        assert len(node.status().mounts) == COUNT
        (served,) = node._fetcher.served()
        assert served.member.pinned
        for number, pinned in ((0, True), (1, False)):
            with node._live.lock:
                node._live.forget(node._live.at(str(tmp_path / f"mount{number}")))
            assert served.member.pinned is pinned
        where = str(tmp_path / "mount2")
        record = table.path(Mount(where, name, image.digest))
        record.unlink()
        (record / "stays").mkdir(parents=True)  # as on a disk that is read-only by now
        with node._live.lock:
            node._live.forget(node._live.at(where))
        assert node._live.find(where) is None
