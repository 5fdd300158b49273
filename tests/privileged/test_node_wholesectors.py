# SPDX-License-Identifier: Apache-2.0
"""A node whose kernel says that a sector is read, and not which part of it: Linux 6.12."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import eviction

from firstread.device.fanotify import WHOLE_SECTORS
from firstread.device.scanners import is_scanner
from firstread.errors import NodeError
from firstread.testing.daemon import Daemon, tree_of
from firstread.testing.images import feature_tree
from firstread.testing.lazymount import output
from firstread.testing.observe import differences
from firstread.testing.pacedreader import PacedReader
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR, FRAME, COUNT = 64 * KiB, 4 * KiB, 60


@pytest.fixture(autouse=True)
def events_of_whole_sectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the daemons of these tests inherit."""
    monkeypatch.setenv(WHOLE_SECTORS, "1")


@pytest.fixture
def many(tmp_path: Path) -> Iterator[tuple[Daemon, Path, PlainImage]]:
    """A node with an image of many small sectors."""
    reference = f"oci:{tmp_path}/many:latest"
    image = put_plain_image(reference, count=COUNT, sector_bytes=SECTOR, frame_bytes=FRAME)
    with Daemon(tmp_path) as node:
        yield node, node.mount(reference), image


def sizes(node: Daemon) -> list[int]:
    """Return the sizes of all sector files that have bytes."""
    found = (path.stat().st_size for path in (node.root / "sectors").glob("*/*"))
    return sorted(size for size in found if size)


def test_the_image_with_every_feature_is_shown_as_it_is(daemon: Daemon, lazy_features: str) -> None:
    place = daemon.mount(lazy_features)
    assert not differences(feature_tree(), tree_of(place))
    status = daemon.mounted(place)
    assert (status["device"], status["self_sufficient"]) == ("fanotify", True)
    assert (status["failed_reads"], status["fetch_errors"]) == (0, 0)


def test_a_page_brings_its_sector_and_no_read_of_it_asks_again(
    many: tuple[Daemon, Path, PlainImage],
) -> None:
    node, place, image = many
    read = output(node.reading(place / "f7", SECTOR - FRAME, FRAME, "random"))
    assert read == image.summary(7, SECTOR - FRAME, FRAME)
    assert sizes(node) == [SECTOR]
    status = node.mounted(place)
    assert (status["present"], status["events"]) == (1, 1)
    for how in ("random", "mmap", "pages"):
        assert output(node.reading(place / "f7", 0, SECTOR, how)) == image.summary(7, 0, SECTOR)
    assert node.mounted(place)["events"] == 1


def test_processes_die_and_no_read_fails(many: tuple[Daemon, Path, PlainImage]) -> None:
    node, place, image = many
    with PacedReader(place, COUNT, stretches=3, pause_s=0.01) as reader:
        fetcher = node.fetcher
        reader.go_on()
        os.kill(fetcher, signal.SIGKILL)
        node.wait(lambda: node.fetcher != fetcher)
        reader.go_on()
        second = node.fetcher
        os.kill(node.supervisor, signal.SIGKILL)
        node.wait_supervisor(second)
        reader.go_on()
        assert node.run("daemon", "--reload").code == 0
        whole = [image.summary(n, 0, SECTOR).split()[1] for n in range(COUNT)]
        assert reader.digests() == whole


def test_reads_that_wait_outlive_all_processes(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path) as node:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        place = node.mount(reference)
        registry.script("GET /blobs/ status 503 x1000")
        readers = [node.reading(place / f"f{number}", how="random") for number in range(3)]
        node.wait(lambda: node.status()["fetcher"]["waiting_reads"] == 3)
        node.end_all(signal.SIGKILL, anchor=False)
        node.start()
        registry.script("")
        assert [output(reader) for reader in readers] == [image.summary(n) for n in range(3)]


def test_sectors_are_evicted_under_readers(tmp_path: Path) -> None:
    outcome = eviction.measure(tmp_path, 1.0, files=64, file_bytes=64 * KiB, least=64)
    assert outcome.is_good(evictions=30), outcome


def test_nobody_takes_such_reads_for_a_trace(
    many: tuple[Daemon, Path, PlainImage],
) -> None:
    node, place, _ = many
    with pytest.raises(NodeError, match="does not say which bytes of a sector are read") as caught:
        node.client.post("/seen", directory=str(place))
    assert caught.value.hint == "trace it on Linux 6.14 or later; a trace holds for all nodes"


def test_a_node_is_no_virus_scanner(many: tuple[Daemon, Path, PlainImage]) -> None:
    node, _, _ = many
    assert not is_scanner(node.supervisor)
    assert not is_scanner(node.fetcher)
