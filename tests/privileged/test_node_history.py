# SPDX-License-Identifier: Apache-2.0
"""What a node remembers of the start of a mount."""

from __future__ import annotations

import os
import signal

import pytest

from firstread.control.client import Client
from firstread.documents import decode
from firstread.errors import UsageError
from firstread.mounts.nodestatus import MountHistory
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.plainimage import PlainImage
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 256 * KiB


def history_of(daemon: Daemon, place: os.PathLike[str]) -> MountHistory:
    answer = Client(daemon.run_dir).post("/history", directory=str(place))
    return decode(answer, MountHistory)


def test_a_start_is_remembered(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    assert output(daemon.reading(place / "f3", 8192, 100, "random")).startswith("100 ")
    daemon.wait(lambda: daemon.mounted(place)["present"] == 1)
    found = history_of(daemon, place)
    assert (found.mountpoint, found.image) == (str(place), plain[0])
    assert [step.name for step in found.steps] == ["resolve", "metadata", "mount"]
    read = found.reads[0]
    assert (read.sector, read.offset, read.bytes) == (3, 8192, 4096)
    assert 0 < read.seconds < found.elapsed
    (request,) = found.requests
    assert (request.sector, request.cause) == (3, "demand")
    assert request.bytes == request.received > SECTOR
    assert [sector.cause for sector in found.sectors] == [None] * 3 + ["demand"] + [None] * 4
    came = found.sectors[3].at
    assert came is not None
    assert sum(step.seconds for step in found.steps) <= read.at < request.at < came < found.elapsed
    assert found.sectors[3].filled == found.sectors[3].size == SECTOR
    status = daemon.mounted(place)
    assert status["came_by_cause"] == {"demand": 1}
    assert status["last_waits_s"] == pytest.approx([read.seconds], abs=1e-5)


def test_a_new_fetcher_begins_a_record(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
    daemon.wait(lambda: daemon.mounted(place)["present"] == 1)
    os.kill(daemon.fetcher, signal.SIGKILL)
    daemon.wait(lambda: daemon.status()["fetcher"]["restarts"] == 1)
    found = history_of(daemon, place)
    assert (found.steps, found.reads, found.requests) == ([], [], [])
    assert found.sectors[0].filled == SECTOR
    assert found.sectors[0].cause is None


def test_only_a_mount_has_a_history(standing: Daemon) -> None:
    with pytest.raises(UsageError, match="is not a mount of firstread"):
        history_of(standing, standing.scratch)
