# SPDX-License-Identifier: Apache-2.0
"""A node fetches the hot sectors of a mounted image, though nobody reads them yet."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_source
from firstread.sectors.hotnote import NO_TRACE, HotNote
from firstread.sectors.image import HOT as HOT_NOTE
from firstread.sectors.image import PREFETCH
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.plainimage import PlainImage, put_hot_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.testing.shortage import small_filesystem
from firstread.units import KiB, MiB

pytestmark = pytest.mark.privileged

COLD, HOT = 4, 8
SECTOR, FRAME = 256 * KiB, 16 * KiB
SLOW = "GET /blobs/ trickle 400000 x*"  # bytes/s: the hot sectors take five seconds


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        yield running


def put(
    registry: ScriptedRegistry, annotations: dict[str, str] | None = None
) -> tuple[str, PlainImage]:
    reference = f"{registry.host}/lazy/hot:1"
    image = put_hot_image(f"docker://{reference}", cold=COLD, hot=HOT, annotations=annotations)
    registry.seen.clear()
    return reference, image


def hot_blob(reference: str) -> str:
    """Return the digest of the blob of hot sectors."""
    with open_source(parse_reference(f"docker://{reference}")) as source:
        return resolve(source).manifest.layers[-1].digest


def wait_hot(daemon: Daemon, place: Path) -> dict[str, Any]:
    daemon.wait(lambda: daemon.mounted(place)["hot_present"] == HOT)
    return daemon.mounted(place)


def test_hot_sectors_come_in_few_requests_while_nobody_reads(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    place = daemon.mount(reference)
    status = wait_hot(daemon, place)
    assert (status["hot"], status["events"]) == (HOT, 0)
    assert status["requests_by_cause"]["hot"] <= 3
    assert status["bytes_by_cause"].keys() == {"hot"}
    daemon.wait(lambda: daemon.mounted(place)["wanted"] == 0)
    for number in (COLD, COLD + HOT - 1):
        assert output(daemon.reading(place / f"f{number}")) == image.summary(number)
    assert daemon.mounted(place)["events"] == 0
    text = daemon.run("status", "--metrics").stdout
    assert 'cause="hot"' in text


def test_hot_sectors_that_come_beside_the_metadata_come_once(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    place = daemon.mount(reference)
    wait_hot(daemon, place)
    last = COLD + HOT - 1
    assert output(daemon.reading(place / f"f{last}")) == image.summary(last)
    assert len(registry.asked(hot_blob(reference))) == 1


def test_nothing_is_asked_for_early_of_what_is_not_wanted(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    place = daemon.mount(reference, "mnt", "--prefetch", "none")
    assert len(registry.asked("/blobs/")) == 1  # the metadata
    assert output(daemon.reading(place / "f0")) == image.summary(0)


def test_hot_sectors_that_break_off_beside_the_metadata_are_asked_for_again(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    registry.script(f"GET {hot_blob(reference)} cut 500000")
    place = daemon.mount(reference)
    wait_hot(daemon, place)
    for number in range(COLD, COLD + HOT):
        assert output(daemon.reading(place / f"f{number}")) == image.summary(number)
    assert registry.unused() == []
    assert daemon.mounted(place)["failed_reads"] == 0


def test_a_cold_read_goes_before_the_stream_and_a_hot_one_waits_for_its_frame(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    registry.script(SLOW)
    place = daemon.mount(reference)
    first = daemon.reading(place / f"f{COLD}", 0, FRAME, "random")
    assert output(first) == image.summary(COLD, 0, FRAME)
    assert daemon.mounted(place)["hot_present"] < HOT
    assert "demand" not in daemon.mounted(place)["requests_by_cause"]
    cold = daemon.reading(place / "f0", 0, FRAME, "random")
    assert output(cold) == image.summary(0, 0, FRAME)
    status = daemon.mounted(place)
    assert status["hot_present"] < HOT
    assert status["requests_by_cause"]["demand"] == 1
    last = COLD + HOT - 1
    assert output(daemon.reading(place / f"f{last}")) == image.summary(last)
    registry.script("")
    assert wait_hot(daemon, place)["failed_reads"] == 0


def test_a_start_set_comes_as_far_as_a_read_confirms_it(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry, {HOT_NOTE: str(HotNote(4096, HOT, NO_TRACE))})
    hot = hot_blob(reference)
    registry.seen.clear()
    place = daemon.mount(reference)
    assert registry.asked(hot) == []
    read = COLD + 3
    assert output(daemon.reading(place / f"f{read}", 0, FRAME, "random")) == image.summary(
        read, 0, FRAME
    )
    daemon.wait(lambda: daemon.mounted(place)["hot_present"] == HOT - 3)
    daemon.wait(lambda: daemon.mounted(place)["wanted"] == 0)
    status = daemon.mounted(place)
    assert (status["hot"], status["hot_present"], status["present"]) == (HOT, HOT - 3, HOT - 3)


def test_a_fetcher_that_dies_in_a_stream_is_followed_by_one_that_goes_on(
    daemon: Daemon, registry: ScriptedRegistry
) -> None:
    reference, image = put(registry)
    registry.script(SLOW)
    place = daemon.mount(reference)
    daemon.wait(lambda: daemon.mounted(place)["hot_present"])
    dead = daemon.fetcher
    os.kill(dead, signal.SIGKILL)
    registry.script("")
    daemon.wait(lambda: daemon.fetcher != dead)
    wait_hot(daemon, place)
    for number in range(COLD + HOT):
        assert output(daemon.reading(place / f"f{number}")) == image.summary(number)
    assert daemon.mounted(place)["failed_reads"] == 0


def test_an_unmount_ends_the_stream(daemon: Daemon, registry: ScriptedRegistry) -> None:
    reference, image = put(registry)
    registry.script(SLOW)
    place = daemon.mount(reference)
    daemon.wait(lambda: daemon.mounted(place)["hot_present"])
    assert daemon.run("umount", place).code == 0
    present = len([path for path in (daemon.root / "sectors").rglob("*") if path.is_file()])
    registry.script("")
    place = daemon.mount(reference, "again", "--prefetch", "none")
    assert daemon.mounted(place)["hot_present"] <= min(present, HOT - 1)
    assert output(daemon.reading(place / f"f{COLD}")) == image.summary(COLD)


@pytest.mark.parametrize("lacks", ["a limit", "the disk"])
def test_nothing_is_prefetched_where_there_is_no_room(
    tmp_path: Path, registry: ScriptedRegistry, lacks: str
) -> None:
    reference, image = put(registry)
    with contextlib.ExitStack() as stack:
        root = None
        options = ("--cache-max", str(MiB)) if lacks == "a limit" else ()
        if lacks == "the disk":
            root = stack.enter_context(small_filesystem(tmp_path, size=16 * MiB)) / "store"
        daemon = stack.enter_context(Daemon(tmp_path, *options, root=root))
        place = daemon.mount(reference)
        daemon.wait(lambda: daemon.log("no room in the sector store"))
        status = daemon.mounted(place)
        assert status["hot_present"] < HOT
        assert daemon.status()["store"]["evictions"] == 0
        for number in range(COLD + HOT):
            assert output(daemon.reading(place / f"f{number}")) == image.summary(number)


@pytest.mark.parametrize(
    ("configured", "said", "asked", "expected"),
    [
        ("hot", None, None, "hot"),
        ("hot", "none", None, "none"),
        ("hot", "all", "none", "none"),
        ("none", "all", None, "none"),
        ("none", None, "all", "all"),
        ("hot", "everything \x00", None, "hot"),
    ],
)
def test_mount_goes_before_image_before_node(
    tmp_path: Path,
    registry: ScriptedRegistry,
    configured: str,
    said: str | None,
    asked: str | None,
    expected: str,
) -> None:
    reference, _ = put(registry, {PREFETCH: said} if said else None)
    config = tmp_path / "config.toml"
    config.write_text(f'[prefetch]\nmode = "{configured}"\nquiet_s = 0.1\n')
    with Daemon(tmp_path, "--config", str(config)) as daemon:
        place = daemon.mount(reference, "mnt", *(("--prefetch", asked) if asked else ()))
        daemon.wait(lambda: daemon.mounted(place)["wanted"] == 0)
        status = daemon.mounted(place)
        assert status["prefetch"] == expected
        assert status["hot_present"] == (0 if expected == "none" else HOT)
        if expected == "all":
            assert status["self_sufficient"]


def test_a_mount_explains_an_image_without_hot_sectors(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.scratch / "mnt"
    place.mkdir()
    ran = daemon.run("mount", plain[0], place, "--json", "--explain")
    plan = json.loads(ran.stdout)["prefetch"]
    assert (plan["hot_bytes"], plan["rest"]) == (0, "never")
    assert plan["all_bytes"] > 8 * SECTOR
    assert "the others when they are read" in ran.stderr
    assert "link         not measured yet" in ran.stderr


def test_a_mount_explains_what_it_fetches(daemon: Daemon, registry: ScriptedRegistry) -> None:
    reference, _ = put(registry)
    place = daemon.scratch / "mnt"
    place.mkdir()
    ran = daemon.run("mount", reference, place, "--explain")
    assert ran.code == 0, ran
    assert "hot sectors" in ran.stderr
    wait_hot(daemon, place)
    other = daemon.scratch / "other"
    other.mkdir()
    ran = daemon.run("mount", reference, other, "--json")
    plan = json.loads(ran.stdout)["prefetch"]
    assert (plan["mode"], plan["hot_bytes"]) == ("hot", 0)
    assert plan["bytes_per_s"] > 0
