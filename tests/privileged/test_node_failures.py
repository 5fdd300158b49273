# SPDX-License-Identifier: Apache-2.0
"""Sources fail while reads wait: reads wait on, get bytes from elsewhere, or get EIO."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.fetch.retry import LAST_RETRY_S
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_one_file, put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

EIO = "errno 5"
SECTOR = 256 * KiB


@pytest.fixture
def scripted() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as registry:
        yield registry


def put(registry: ScriptedRegistry | DockerRegistry, **options: int) -> tuple[str, PlainImage]:
    reference = f"{registry.host}/lazy/plain:1"
    return reference, put_plain_image(f"docker://{reference}", **options)


def waiting(daemon: Daemon, count: int) -> None:
    daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == count)


def test_reads_wait_for_a_lost_registry_and_other_mounts_do_not_notice(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    with DockerRegistry() as registry:
        reference, image = put(registry)
        place, other = daemon.mount(reference, "gone"), daemon.mount(plain[0], "other")
        registry.stop()
        readers = [daemon.reading(place / f"f{number}", how="random") for number in range(8)]
        waiting(daemon, 8)

        for number in range(8):
            assert output(daemon.reading(other / f"f{number}")) == plain[1].summary(number)
        assert daemon.mounted(other)["first_read_p99_s"] < LAST_RETRY_S
        assert all(reader.poll() is None for reader in readers)
        daemon.wait(lambda: "cannot be reached" in (daemon.mounted(place)["last_error"] or ""))

        registry.restart()
        assert [output(r) for r in readers] == [image.summary(n) for n in range(8)]
        assert daemon.mounted(place)["failed_reads"] == 0


def test_a_read_fails_after_the_stall_limit_and_the_log_says_which(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--stall", "1") as daemon, DockerRegistry() as registry:
        reference, image = put(registry)
        place = daemon.mount(reference)
        registry.stop()
        started = time.monotonic()
        assert output(daemon.reading(place / "f3", SECTOR - 4096, how="random")) == EIO
        assert time.monotonic() - started >= 1.0

        status = daemon.mounted(place)
        assert status["failed_reads"] >= 1
        record = daemon.log("a read fails")[0]
        assert record["level"] == "error"
        assert record["image"] == status["digest"]
        assert record["sector"]
        assert record["offset"] >= 0
        assert record["source"] == f"docker://{registry.host}/lazy/plain"
        assert "nothing came from" in record["error"]

        registry.restart()
        reader = daemon.reading(place / "f3", SECTOR - 4096)
        assert output(reader) == image.summary(3, SECTOR - 4096)


@pytest.mark.parametrize("how", ["read", "random", "mmap"])
def test_a_failing_read_waits_once(tmp_path: Path, how: str) -> None:
    """The kernel repeats a denied read, and each repetition would wait as long."""
    with Daemon(tmp_path, "--stall", "1") as daemon, DockerRegistry() as registry:
        reference, image = put(registry, sector_bytes=64 * KiB)
        place = daemon.mount(reference)
        registry.stop()
        # Readahead crosses from one sector to the next; others wait for the page of the first
        # reader.
        readers = [daemon.reading(place / "f3", 0, 4096, how) for _ in range(4)]
        for reader in readers:
            assert reader.communicate(timeout=PATIENCE_S)[0] in (f"{EIO}\n", "")  # or SIGBUS
        status = daemon.mounted(place)
        assert 1 <= status["waited_reads"] <= len(readers)
        assert status["failed_reads"] == status["waited_reads"]

        registry.restart()
        assert output(daemon.reading(place / "f3", 0, 4096, how)) == image.summary(3, 0, 4096)


def test_failing_readahead_over_several_sectors_waits_once(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--stall", "1") as daemon, DockerRegistry() as registry:
        reference = f"{registry.host}/lazy/big:1"
        size = 16 * KiB
        put_one_file(f"docker://{reference}", 16 * size, sector_bytes=size, frame_bytes=4 * KiB)
        place = daemon.mount(reference)
        registry.stop()
        assert output(daemon.reading(place / "big", 0, 4096)) == EIO
        assert daemon.mounted(place)["waited_reads"] == 1


def test_no_error_names_another_image_of_the_same_repository(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path, "--stall", "2") as daemon:
        references = [f"{registry.host}/lazy/app:v{n}" for n in (1, 2)]
        for first, reference in enumerate(references):
            put_plain_image(f"docker://{reference}", first=100 * first)
        _, place = (
            daemon.mount(reference, name)
            for name, reference in zip(("one", "two"), references, strict=True)
        )
        registry.script("GET /blobs/ status 503 x1000")
        assert output(daemon.reading(place / "f1", how="random")) == EIO
        errors = [str(record.get("error")) for record in daemon.log("a fetch failed")]
        assert errors
        assert not [error for error in errors if "app:v1" in error]


def test_a_reader_that_waits_for_a_dead_registry_can_be_killed_and_the_mount_goes(
    daemon: Daemon,
) -> None:
    with DockerRegistry() as registry:
        reference, _ = put(registry)
        place = daemon.mount(reference)
        registry.stop()
        reader = daemon.reading(place / "f0", how="random")
        waiting(daemon, 1)
        busy = daemon.run("umount", place)
        assert busy.code == 5
        assert f"pid {reader.pid}" in busy.stderr

        reader.send_signal(signal.SIGKILL)
        assert reader.wait(timeout=PATIENCE_S) == -signal.SIGKILL
        output(reader)
        assert daemon.run("umount", place).code == 0
        assert not os.listdir(place)
        waiting(daemon, 0)
        assert daemon.status()["mounts"] == []


def test_a_registry_that_is_slow_to_answer_holds_up_nobody_else(
    daemon: Daemon, scripted: ScriptedRegistry, plain: tuple[str, PlainImage]
) -> None:
    reference, image = put(scripted)
    place, other = daemon.mount(reference, "slow"), daemon.mount(plain[0], "other")
    scripted.script("GET /blobs/ slow 2 x4")
    readers = [daemon.reading(place / f"f{number}", how="random") for number in range(8)]
    waiting(daemon, 8)
    assert output(daemon.reading(other / "f0")) == plain[1].summary(0)
    assert daemon.mounted(other)["first_read_p99_s"] < 2  # it did not wait for one of the others
    assert [output(reader) for reader in readers] == [image.summary(n) for n in range(8)]


@pytest.mark.parametrize("fault", ["hangup 30000", "status 503", "status 429 Retry-After=0"])
def test_a_broken_answer_fails_no_read(
    daemon: Daemon, scripted: ScriptedRegistry, fault: str
) -> None:
    reference, image = put(scripted)
    place = daemon.mount(reference)
    scripted.script(f"GET /blobs/ {fault} x5")
    assert output(daemon.reading(place / "f2", 0, SECTOR)) == image.summary(2, 0, SECTOR)
    assert daemon.mounted(place)["failed_reads"] == 0
    assert scripted.unused() == []


@pytest.mark.parametrize("byte", [20, 700, 150_000])  # in the frame table, and in frames
def test_wrong_bytes_are_fetched_again_and_never_seen(
    daemon: Daemon, scripted: ScriptedRegistry, byte: int
) -> None:
    reference, image = put(scripted)
    place = daemon.mount(reference)
    scripted.script(f"GET /blobs/ flip {byte} x3")
    assert output(daemon.reading(place / "f5", 0, SECTOR)) == image.summary(5, 0, SECTOR)
    status = daemon.mounted(place)
    assert (status["fetch_errors"], status["failed_reads"]) == (3, 0)
    assert "does not match" in status["last_error"]
    drop_caches()
    assert output(daemon.reading(place / "f5", 0, SECTOR)) == image.summary(5, 0, SECTOR)


def test_wrong_bytes_for_ever_are_an_error(daemon: Daemon, scripted: ScriptedRegistry) -> None:
    reference, image = put(scripted)
    place = daemon.mount(reference)
    scripted.script("GET /blobs/ flip 700 x1000")
    assert output(daemon.reading(place / "f5", how="random")) == EIO
    record = daemon.log("a read fails")[0]
    assert "does not match its digest" in record["error"]
    assert record["hint"]
    scripted.script("")
    assert output(daemon.reading(place / "f5", how="random")) == image.summary(5)


def test_a_sector_that_is_wrong_here_comes_from_another_image_that_has_it(
    daemon: Daemon, scripted: ScriptedRegistry
) -> None:
    with ScriptedRegistry() as second:
        reference, image = put(scripted)
        other = f"{second.host}/another/image:1"
        put_plain_image(f"docker://{other}", count=4, first=4)  # shares f4 … f7
        place = daemon.mount(reference, "first")
        daemon.mount(other, "second")
        scripted.script("GET /blobs/ flip 700 x1000")
        second.seen.clear()
        assert output(daemon.reading(place / "f6", 0, SECTOR)) == image.summary(6, 0, SECTOR)
        assert second.asked("/blobs/")
        assert daemon.log("trying another source")
        assert output(daemon.reading(place / "f1", how="random")) == EIO  # only the first has it


def test_all_of_an_image_is_fetched_though_its_registry_damages_what_another_has(
    daemon: Daemon, scripted: ScriptedRegistry
) -> None:
    with ScriptedRegistry() as second:
        reference, image = put(scripted)
        put_plain_image(f"docker://{second.host}/another/image:1")
        place = daemon.mount(reference, "first")
        daemon.mount(f"{second.host}/another/image:1", "second")
        scripted.script("GET /blobs/ flip 700 x1000")
        ran = daemon.run("fetch", "--all", place)
        assert ran.code == 0, ran
        assert daemon.mounted(place)["self_sufficient"]
        assert output(daemon.reading(place / "f1")) == image.summary(1)


def test_a_sector_whose_registry_is_gone_comes_from_another_image_that_has_it(
    daemon: Daemon, scripted: ScriptedRegistry
) -> None:
    with DockerRegistry() as registry:
        reference, image = put(registry)
        other = f"{scripted.host}/another/image:1"
        put_plain_image(f"docker://{other}", count=4, first=4)  # shares f4 … f7
        place, second = daemon.mount(reference, "first"), daemon.mount(other, "second")
        registry.stop()
        readers = [daemon.reading(place / f"f{number}", how="random") for number in (1, 6)]
        assert output(readers[1]) == image.summary(6)
        errors = daemon.mounted(second)["fetch_errors"]
        assert output(daemon.reading(second / "f0", how="random")) == image.summary(4)
        # The fetcher does not ask the dead one first.
        assert daemon.mounted(second)["fetch_errors"] == errors
        assert readers[0].poll() is None  # only the first has it
        registry.restart()
        assert output(readers[0]) == image.summary(1)


def test_the_same_image_from_two_registries_survives_one(
    daemon: Daemon, scripted: ScriptedRegistry
) -> None:
    with ScriptedRegistry() as second:
        reference, image = put(scripted)
        other, _ = put(second)
        place = daemon.mount(reference, "first")
        daemon.mount(other, "second")
        scripted.script("GET /blobs/ status 404 x1000")
        assert output(daemon.reading(place / "f6")) == image.summary(6)
        assert (
            daemon.mounted(place)["source"] != daemon.mounted(daemon.scratch / "second")["source"]
        )


def test_unmounting_an_image_leaves_shared_reads_to_the_other(
    daemon: Daemon, scripted: ScriptedRegistry
) -> None:
    with ScriptedRegistry() as second:
        reference, image = put(scripted)
        other, _ = put(second)
        first, place = daemon.mount(reference, "first"), daemon.mount(other, "second")
        scripted.script("GET /blobs/ slow 30 x8")
        readers = [daemon.reading(place / f"f{number}", how="random") for number in (2, 5)]
        waiting(daemon, 2)  # for the first: the fetcher asks it for the shared sectors
        assert daemon.run("umount", first).code == 0
        assert [output(reader) for reader in readers] == [image.summary(2), image.summary(5)]
        assert daemon.mounted(place)["failed_reads"] == 0


def test_unmounting_an_image_leaves_shared_completion_to_the_other(
    daemon: Daemon, scripted: ScriptedRegistry
) -> None:
    reference, _ = put(scripted)
    other = f"{scripted.host}/lazy/plain:2"
    put_plain_image(f"docker://{other}", count=4, first=4)  # shares f4 … f7
    first, place = daemon.mount(reference, "first"), daemon.mount(other, "second")
    scripted.script("GET /blobs/ status 503 x4")
    daemon.client.post("/pin", directory=str(place))
    daemon.wait(lambda: not scripted.unused())  # so that all stay queued for half a second or more
    daemon.client.post("/umount", directory=str(first), lazy=False)
    daemon.wait(lambda: daemon.mounted(place)["self_sufficient"])


def test_a_mount_that_was_fetched_whole_needs_no_registry(daemon: Daemon) -> None:
    with DockerRegistry() as registry:
        reference, image = put(registry)
        place = daemon.mount(reference)
        registry.forget()
        fetched = daemon.run("fetch", "--all", place, "--json")
        assert fetched.code == 0, fetched
        assert fetched.json["self_sufficient"]
        assert fetched.json["pinned"]
        # One request fetches neighbours together: fewer requests than sectors.
        assert registry.counts.requests_of("/blobs/") == fetched.json["requests"] < 8
        assert fetched.json["requests_by_cause"] == {"completion": fetched.json["requests"]}
        registry.stop()
        drop_caches()
        for number in range(8):
            wanted = image.summary(number, 0, SECTOR)
            assert output(daemon.reading(place / f"f{number}", 0, SECTOR)) == wanted
        status = daemon.mounted(place)
        assert (status["waited_reads"], status["events"]) == (0, 0)


def test_fetching_goes_on_when_the_registry_is_back(daemon: Daemon) -> None:
    with DockerRegistry() as registry:
        reference, _ = put(registry)
        place = daemon.mount(reference)
        registry.stop()
        daemon.client.post("/pin", directory=str(place))
        daemon.wait(lambda: daemon.mounted(place)["fetch_errors"])
        os.kill(daemon.fetcher, signal.SIGKILL)  # the next one knows that it is pinned
        registry.restart()
        daemon.wait(lambda: daemon.mounted(place)["self_sufficient"])


def test_a_failed_fetch_ends_the_command(daemon: Daemon, scripted: ScriptedRegistry) -> None:
    reference, _ = put(scripted)
    place = daemon.mount(reference)
    scripted.script("GET /blobs/ status 404 x1000")
    ran = daemon.run("fetch", "--all", place)
    assert ran.code == 4
    assert "sectors cannot be fetched" in ran.stderr


def test_a_failure_charged_to_another_image_ends_the_command_too(
    daemon: Daemon, scripted: ScriptedRegistry
) -> None:
    reference, _ = put(scripted)
    other = f"{scripted.host}/lazy/other:1"
    put_plain_image(f"docker://{other}", count=4, first=4)  # f4 … f7, which the first one also has
    daemon.mount(reference, "first")
    place = daemon.mount(other, "second")
    scripted.script("GET /blobs/ status 404 x1000")
    ran = daemon.run("fetch", "--all", place)
    assert ran.code == 4
    assert "4 sectors cannot be fetched" in ran.stderr
    assert daemon.mounted(place)["fetch_errors"]


def test_a_fetch_without_a_terminal_reports_progress(
    daemon: Daemon, plain: tuple[str, PlainImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstread.cli.fetch.INTERVAL_S", 0.0)
    place = daemon.mount(plain[0])
    ran = daemon.run("fetch", "--all", place)
    assert ran.code == 0
    lines = ran.stderr.splitlines()
    assert lines
    assert all(re.fullmatch(r"\d+ of \d+ sectors are on this node", line) for line in lines)
    assert daemon.run("fetch", "--all", place, "--json").stderr == ""
    assert daemon.run("umount", place).code == 0
