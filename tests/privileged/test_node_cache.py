# SPDX-License-Identifier: Apache-2.0
"""The sector store stays within its bounds and checks its files, under mounts in use.

The benchmarks that write docs/reliability.md run here for a few seconds each.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from benchmarks import eviction, flip, power

from firstread.convert.conversion import ConvertOptions, convert
from firstread.oci.reference import parse_reference
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.entries import File, Symlink
from firstread.testing.images import Image, Layer, write_layout
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.shortage import small_filesystem
from firstread.units import KiB, MiB

pytestmark = pytest.mark.privileged

EIO = "errno 5"
SECTOR = 256 * KiB
COUNT = 8


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, PlainImage]:
    reference = f"oci:{tmp_path_factory.mktemp('other')}/layout:latest"
    return reference, put_plain_image(reference, first=300)


@pytest.fixture
def bounded(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose store has room for ten sectors."""
    with Daemon(tmp_path, "--cache-max", str(10 * SECTOR)) as running:
        yield running


def read_all(daemon: Daemon, place: Path, image: PlainImage) -> None:
    numbers = range(len(image.contents))
    reader = daemon.reading_files([place / f"f{n}" for n in numbers], SECTOR)
    assert output(reader).splitlines() == [image.summary(n, 0, SECTOR) for n in numbers]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_filesystem(tmp_path, size=16 * MiB) as place:
        yield place


# Eviction under mounts in use.


def test_an_image_is_read_with_room_for_a_quarter_of_it(tmp_path: Path) -> None:
    outcome = eviction.measure(tmp_path, 2.0, files=128, file_bytes=128 * KiB, least=128)
    assert outcome.is_good(evictions=100), outcome


def test_fetchers_die_and_are_upgraded_in_the_middle_of_evictions(tmp_path: Path) -> None:
    """Counters begin anew with each fetcher, so requests show the evictions."""
    ended: list[int] = []

    def meanwhile(daemon: Daemon) -> None:
        fetcher = daemon.fetcher
        if ended and ended[-1] == fetcher:
            return
        ended.append(fetcher)
        if len(ended) % 3:
            os.kill(fetcher, signal.SIGKILL)
        else:
            assert daemon.run("daemon", "--reload").code == 0

    outcome = eviction.measure(
        tmp_path, 6.0, files=128, file_bytes=128 * KiB, meanwhile=meanwhile, least=128
    )
    assert (outcome.failed, outcome.wrong) == (0, 0)
    assert len(ended) > 3
    assert 0 < outcome.largest_bytes <= outcome.limit_bytes


def test_unmounted_images_are_evicted_first(
    bounded: Daemon, plain: tuple[str, PlainImage], other: tuple[str, PlainImage]
) -> None:
    old = bounded.mount(plain[0], "old")
    read_all(bounded, old, plain[1])
    assert bounded.run("umount", old).code == 0
    read_all(bounded, bounded.mount(other[0], "new"), other[1])
    store = bounded.status()["store"]
    assert store["removals"] >= COUNT - 2
    assert store["evictions"] == 0
    assert store["bytes"] <= store["limit_bytes"] == 10 * SECTOR


def test_a_full_disk_without_limits_makes_room_for_a_mount(
    tmp_path: Path, small_disk: Path, plain: tuple[str, PlainImage], other: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, root=small_disk / "store") as daemon:
        place = daemon.mount(plain[0])
        read_all(daemon, place, plain[1])
        assert daemon.run("umount", place).code == 0
        full = pytest.raises(OSError, match="No space left")
        with (small_disk / "ballast").open("wb", buffering=0) as ballast, full:
            ballast.writelines(itertools.repeat(bytes(4096)))
        read_all(daemon, daemon.mount(other[0], "second"), other[1])
        assert daemon.status()["store"]["removals"]


def test_a_daemon_starts_on_a_full_disk_after_a_reboot(
    tmp_path: Path, small_disk: Path, plain: tuple[str, PlainImage]
) -> None:
    """Otherwise nobody could remove the sectors, which may fill the disk."""
    with Daemon(tmp_path, root=small_disk / "store") as daemon:
        place = daemon.mount(plain[0])
        read_all(daemon, place, plain[1])
        assert daemon.run("umount", place).code == 0
        daemon.end_all(signal.SIGKILL)
        for name in ("ballast", "more", "rest"):  # writing other blocks frees them
            full = pytest.raises(OSError, match="No space left")
            with (small_disk / name).open("wb", buffering=0) as ballast, full:
                ballast.writelines(itertools.repeat(bytes(1024)))
            os.sync()
        with (small_disk / "store/boot").open("r+b") as boot:
            boot.write(b"another")
        daemon.start()
        assert daemon.run("cache", "prune").code == 0
        read_all(daemon, daemon.mount(plain[0]), plain[1])


def test_pinned_images_stay_and_a_read_without_room_is_told(
    tmp_path: Path, plain: tuple[str, PlainImage], other: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--cache-max", str(COUNT * SECTOR + SECTOR // 2)) as daemon:
        pinned = daemon.mount(plain[0], "pinned")
        assert daemon.run("fetch", "--all", pinned).code == 0
        place = daemon.mount(other[0], "other")
        assert output(daemon.reading(place / "f0", how="random")) == EIO
        record = daemon.log("a read fails")[0]
        assert "no room for 256.0 KiB in the sector store" in record["error"]
        assert "cache.max_bytes" in record["hint"]
        drop_caches()
        read_all(daemon, pinned, plain[1])
        assert daemon.mounted(pinned)["self_sufficient"]
        assert daemon.run("umount", pinned).code == 0
        assert output(daemon.reading(place / "f0", how="random")) == other[1].summary(0)


def test_complete_images_are_evicted_last(
    tmp_path: Path, plain: tuple[str, PlainImage], other: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--cache-max", str((COUNT + 3) * SECTOR)) as daemon:
        whole = daemon.mount(plain[0], "whole")
        read_all(daemon, whole, plain[1])
        place = daemon.mount(other[0], "other")
        for _ in range(2):
            drop_caches()
            for number in range(COUNT):
                reader = daemon.reading(place / f"f{number}", 0, SECTOR)
                assert output(reader) == other[1].summary(number, 0, SECTOR)
        assert daemon.status()["store"]["evictions"] >= COUNT
        assert daemon.mounted(whole)["self_sufficient"]


# Files are room as well, and so is metadata.


def test_a_file_system_with_few_inodes_takes_one_image_after_another(tmp_path: Path) -> None:
    """No file of an absent sector stays, and a new mount evicts sectors of other images."""
    files = 250
    small = functools.partial(put_plain_image, count=files, sector_bytes=4 * KiB)
    with (
        small_filesystem(tmp_path, "-O", "^has_journal", "-N", "1100") as disk,
        Daemon(tmp_path, root=disk / "root") as daemon,
    ):
        free = os.statvfs(disk).f_ffree
        assert files * 3 < free < files * 4
        for number in range(5):
            reference = f"oci:{tmp_path}/layout{number}:latest"
            image = small(reference, first=1000 * number, frame_bytes=4 * KiB)
            place = daemon.mount(reference)
            assert output(daemon.reading(place / "f7")) == image.summary(7)
            if number > 1:  # all of it stays, as present sectors
                assert daemon.run("fetch", "--all", place).code == 0
            assert daemon.run("umount", place).code == 0
            if number == 1:
                daemon.wait(lambda: os.statvfs(disk).f_ffree > free - 40)
        sectors = [path for path in (disk / "root/sectors").rglob("*") if path.is_file()]
        assert all(path.stat().st_size for path in sectors)
        place = daemon.mount(f"oci:{tmp_path}/layout0:latest")
        store = daemon.run("cache", "ls", "--json").json["store"]
        assert store["removals"] > 0
        assert store["files"] == len(list(_files(disk / "root")))
        assert daemon.run("umount", place).code == 0
        until = time.monotonic() + PATIENCE_S
        while os.statvfs(disk).f_ffree < free:  # the kernel lets go a moment after umount
            assert daemon.run("cache", "prune").code == 0
            assert time.monotonic() < until
        assert os.statvfs(disk).f_ffree == free


def _files(root: Path) -> Iterator[Path]:
    """Yield everything that counts as a file of the store, image directories included."""
    yield from (path for path in (root / "sectors").rglob("*") if path.is_file())
    yield from (root / "images").rglob("*")
    yield from (root / "references").iterdir()


def test_a_daemon_removes_empty_files_at_the_start(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    """Files of the standing mount stay: EROFS has opened them."""
    place = daemon.mount(plain[0])
    daemon.end_all(signal.SIGKILL)
    strays = [daemon.root / f"sectors/ab/ab{digit * 62}" for digit in "01"]
    for stray in strays:
        stray.touch(mode=0o600)
    daemon.start()
    daemon.wait(lambda: not any(stray.exists() for stray in strays))
    assert output(daemon.reading(place / "f3")) == plain[1].summary(3)


def test_excess_metadata_of_unmounted_images_is_evicted(
    tmp_path: Path,
) -> None:
    limit, names = 3 * MiB, []

    def metadata_bytes() -> int:
        size: int = daemon.run("cache", "ls", "--json").json["store"]["metadata_bytes"]
        return size

    with Daemon(tmp_path, "--cache-max", str(limit)) as daemon:
        for number in range(6):
            names.append(put_links(tmp_path, number))
            place = daemon.mount(names[-1], f"mnt{number}")
            assert output(daemon.reading(place / "f", 0, 1)).startswith("1 ")
            if number:
                assert daemon.run("umount", place).code == 0
        daemon.wait(lambda: metadata_bytes() < limit)
        listed = daemon.run("cache", "ls", "--json").json
        left = [name for row in listed["images"] for name in row["names"]]
        assert len(left) <= 3
        assert {names[0], names[5]} <= set(left)  # the mounted one, and the last
        assert len(list((daemon.root / "references").iterdir())) == len(left)
        held = sum(row["metadata_bytes"] for row in listed["images"])
        assert held == listed["store"]["metadata_bytes"]


def put_links(scratch: Path, number: int) -> str:
    """Convert an image with a megabyte of symbolic links; return the reference."""
    links = [Symlink(f"l{n}", target=str(number) * 4000) for n in range(250)]
    write_layout(Image([Layer([*links, File("f", b"x")])]), scratch / f"plain{number}")
    source, target = (f"oci:{scratch}/{kind}{number}:latest" for kind in ("plain", "lazy"))
    convert(parse_reference(source), parse_reference(target), ConvertOptions())
    return target


# Files on the disk.


def test_flipped_bits_are_found_and_repaired(tmp_path: Path) -> None:
    outcome = flip.measure(tmp_path, flips=3)
    assert outcome.is_good, outcome
    assert [row.fate.split(";")[0] for row in outcome.rows] == [
        "fetched again",
        "fetched again when they were read",
        "removed",
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_unverified_sectors_outlive_the_fetcher(
    daemon: Daemon, plain: tuple[str, PlainImage], number: int
) -> None:
    """Only marks remember them. When the group goes, so do its marks: then every sector is
    unverified."""
    place = daemon.mount(plain[0])
    assert daemon.run("fetch", "--all", place).code == 0
    assert daemon.run("umount", place).code == 0
    flip.flip(daemon.root, 3)
    daemon.mount(plain[0])
    if number == signal.SIGKILL:
        before = daemon.fetcher
        os.kill(before, number)
        daemon.wait(lambda: daemon.fetcher != before)
    else:
        daemon.end_all(number)
        daemon.start()
    assert flip.wrong_files(place, plain[1]) == 0
    assert daemon.status()["store"]["damaged"] == 3


def test_checked_data_costs_nothing(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    read_all(daemon, place, plain[1])
    assert daemon.run("umount", place).code == 0
    drop_caches()
    daemon.mount(plain[0])
    read_all(daemon, place, plain[1])
    assert daemon.status()["store"]["checked"] == 0  # the fetcher verified it on arrival
    daemon.end_all(signal.SIGTERM)
    daemon.start()
    drop_caches()
    read_all(daemon, place, plain[1])
    assert daemon.status()["store"]["checked"] == COUNT
    drop_caches()
    os.kill(daemon.supervisor, signal.SIGSTOP)  # the process that reads events: there are none
    try:
        read_all(daemon, place, plain[1])
    finally:
        os.kill(daemon.supervisor, signal.SIGCONT)
    assert daemon.status()["store"]["checked"] == COUNT


def test_power_cuts(tmp_path: Path) -> None:
    outcome = power.measure(tmp_path, cuts=2)
    assert outcome.is_good, outcome


# Commands.


def test_the_cache_is_listed_with_a_daemon_and_without(
    daemon: Daemon, plain: tuple[str, PlainImage], other: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    read_all(daemon, place, plain[1])
    second = daemon.mount(other[0], "second")
    assert output(daemon.reading(second / "f1", 0, SECTOR)) == other[1].summary(1, 0, SECTOR)
    assert daemon.run("umount", second).code == 0
    document = daemon.run("cache", "ls", "--json").json
    first, last = document["images"]
    assert (first["names"], first["mounts"], first["pinned"]) == ([plain[0]], 1, False)
    assert (first["present"], first["bytes"], first["alone_bytes"]) == (8, 8 * SECTOR, 8 * SECTOR)
    assert (last["names"], last["mounts"], last["present"]) == ([other[0]], 0, 1)
    assert document["unclaimed"] == {"sectors": 0, "bytes": 0}
    daemon.end_all(signal.SIGTERM)
    alone = daemon.run("cache", "ls", "--json").json
    assert [row | {"last_used": 0} for row in alone["images"]] == [
        row | {"last_used": 0} for row in document["images"]
    ]
    ran = daemon.run("cache", "ls")
    assert ran.code == 0
    assert "mounted       8 of 8    2.0 MiB     2.0 MiB     now" in ran.stdout
    assert "9 sectors, 2.2 MiB; " in ran.stdout
    assert "KiB of metadata; 23 files; " in ran.stdout


@pytest.mark.parametrize("attended", [True, False])
def test_prune_leaves_mounted_images(
    daemon: Daemon, plain: tuple[str, PlainImage], other: tuple[str, PlainImage], attended: bool
) -> None:
    place = daemon.mount(plain[0])
    read_all(daemon, place, plain[1])
    second = daemon.mount(other[0], "second")
    read_all(daemon, second, other[1])
    assert daemon.run("umount", second).code == 0
    if not attended:
        daemon.end_all(signal.SIGTERM)
    dry = daemon.run("cache", "prune", "--dry-run")
    assert dry.stdout == "1 image and 8 sectors (2.0 MiB) would be removed\n"
    some = daemon.run("cache", "prune", "--to", str(12 * SECTOR), "--json").json
    assert some == {"sectors": 4, "bytes": 4 * SECTOR, "images": []}
    rest = daemon.run("cache", "prune", "--json").json
    assert (rest["sectors"], rest["bytes"], len(rest["images"])) == (4, 4 * SECTOR, 1)
    assert daemon.run("cache", "prune", "--json").json == {"sectors": 0, "bytes": 0, "images": []}
    if not attended:
        daemon.start()
    drop_caches()
    read_all(daemon, place, plain[1])
    read_all(daemon, daemon.mount(other[0], "second"), other[1])


def test_a_mount_succeeds_during_a_prune_of_unmounted_images(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    done = threading.Event()

    def prune() -> None:
        while not done.is_set():
            daemon.client.post("/cache/prune", keep_bytes=0, dry_run=False)

    def mount(number: int) -> None:
        place = daemon.scratch / f"at{number}"
        place.mkdir()
        for _ in range(20):
            daemon.client.post("/mount", image=plain[0], directory=str(place))
            daemon.client.post("/umount", directory=str(place))

    with ThreadPoolExecutor() as pool:
        pruning = pool.submit(prune)
        try:
            list(pool.map(mount, range(4)))
        finally:
            done.set()
        pruning.result()
    read_all(daemon, daemon.mount(plain[0]), plain[1])


def test_offline_verify_leaves_standing_mounts_alone(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    assert daemon.run("fetch", "--all", place).code == 0
    daemon.end_all(signal.SIGTERM)
    flip.flip(daemon.root, 1)
    ran = daemon.run("cache", "verify", "--repair")
    assert ran.code == 5
    assert "is damaged\n" in ran.stdout
    assert "start one, and repair again" in ran.stdout
    daemon.start()
    for _ in range(2):
        assert "1 damaged" in daemon.run("cache", "verify").stdout
    ran = daemon.run("cache", "verify", "--repair")
    assert ran.code == 0, ran
    assert "was damaged, and is fetched again" in ran.stdout
    assert daemon.status()["store"]["damaged"] == 1, "whoever finds it, and however often"
    assert daemon.run("cache", "verify").stdout == "8 sectors, 2.0 MiB, checked: 0 damaged\n"
    assert flip.wrong_files(place, plain[1]) == 0


def test_an_image_whose_metadata_is_damaged_is_fetched_again(
    daemon: Daemon, plain: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(plain[0])
    assert daemon.run("umount", place).code == 0
    (metadata,) = (daemon.root / "images").glob("*/metadata")
    data = bytearray(metadata.read_bytes())
    data[-1] ^= 1
    metadata.write_bytes(data)
    ran = daemon.run("cache", "verify", "--json")
    assert (ran.code, ran.json["ok"]) == (5, False)
    assert [image["outcome"] for image in ran.json["images"]] == ["damaged"]
    daemon.mount(plain[0])
    assert daemon.log("its file metadata is damaged")
    read_all(daemon, place, plain[1])
    assert daemon.run("cache", "verify").code == 0
