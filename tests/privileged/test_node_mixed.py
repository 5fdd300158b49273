# SPDX-License-Identifier: Apache-2.0
"""A node whose mounts read the files of present sectors by themselves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 256 * KiB
ROOM = 10  # sectors: one image of eight, and little of another


def read_all(node: Daemon, place: Path, image: PlainImage) -> None:
    for number in range(len(image.contents)):
        reader = node.reading(place / f"f{number}", 0, SECTOR)
        assert output(reader) == image.summary(number, 0, SECTOR)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, "--device", "mixed", "--cache-max", str(ROOM * SECTOR)) as running:
        yield running


def test_a_warm_start_needs_no_process_and_its_files_stay(
    node: Daemon, tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    cold = node.mount(plain[0], "cold")
    read_all(node, cold, plain[1])
    assert node.run("umount", cold).code == 0
    place = node.mount(plain[0])
    drop_caches()
    fetcher = node.fetcher
    os.kill(fetcher, signal.SIGSTOP)
    lent = PlainImage(plain[1].contents[:-1])  # the last one is served, see MixedDevice
    read_all(node, place, lent)
    os.kill(fetcher, signal.SIGCONT)

    reference = f"oci:{tmp_path}/other:latest"
    other = put_plain_image(reference, first=300)
    second = node.mount(reference, "second")
    for _ in range(2):
        drop_caches()
        read_all(node, second, other)
        read_all(node, place, plain[1])
    fetcher = node.fetcher
    os.kill(fetcher, signal.SIGKILL)
    node.wait(lambda: node.fetcher != fetcher)
    drop_caches()
    read_all(node, second, other)
    read_all(node, place, plain[1])
    store = node.status()["store"]
    assert store["evictions"] > 0
    assert store["bytes"] <= ROOM * SECTOR
