# SPDX-License-Identifier: Apache-2.0
"""Processes of the daemon die, or stop answering, during reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from firstread.errors import UsageError
from firstread.mountinfo import read_mountinfo
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon, tree_of
from firstread.testing.lazymount import output
from firstread.testing.pacedreader import PacedReader
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

EIO = "errno 5"
SECTOR = 64 * KiB
COUNT = 400  # files of `many`


def read_all(place: Path, threads: int = 2) -> subprocess.Popen[str]:
    """Start a process that reads all files, in some threads, and prints its results."""
    code = (
        "import concurrent.futures, hashlib, sys\n"
        "def one(number):\n"
        "    with open(f'{sys.argv[1]}/f{number}', 'rb') as file:\n"
        "        return hashlib.sha256(file.read()).hexdigest()\n"
        f"with concurrent.futures.ThreadPoolExecutor({threads}) as pool:\n"
        f"    print(*pool.map(one, range({COUNT})))\n"
    )
    command = [sys.executable, "-c", code, str(place)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def expected(image: PlainImage) -> list[str]:
    return [image.summary(number, 0, SECTOR).split()[1] for number in range(COUNT)]


def got(reader: subprocess.Popen[str]) -> list[str]:
    text, _ = reader.communicate(timeout=PATIENCE_S)
    assert reader.returncode == 0
    return text.split()


def test_the_fetcher_dies_eight_times_and_no_read_fails(
    daemon: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(many[0])
    with PacedReader(place, COUNT, stretches=8) as reader:
        for _ in range(8):
            pid = daemon.fetcher
            reader.go_on()
            os.kill(pid, signal.SIGKILL)
            daemon.wait(lambda pid=pid: daemon.fetcher != pid)  # type: ignore[misc]
        assert reader.digests() == expected(many[1])
    status = daemon.status()
    assert status["fetcher"]["restarts"] == 8
    assert status["supervisor"]["pid"] == daemon.supervisor
    daemon.wait(lambda: daemon.mounted(place)["present"] == COUNT)
    assert daemon.status()["fetcher"]["waiting_reads"] == 0


def test_the_supervisor_dies_and_the_fetcher_takes_its_place(
    daemon: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(many[0])
    with PacedReader(place, COUNT, stretches=3, pause_s=0.01) as reader:
        for _ in range(3):
            supervisor, fetcher = daemon.supervisor, daemon.fetcher
            reader.go_on()
            os.kill(supervisor, signal.SIGKILL)
            daemon.wait_supervisor(fetcher)
            assert daemon.fetcher not in (supervisor, fetcher)
        assert reader.digests() == expected(many[1])
    assert len(daemon.log("takes its place")) == 3
    assert daemon.status()["fetcher"]["restarts"] == 3


def test_a_waiting_read_outlives_the_supervisor(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path) as daemon:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        place = daemon.mount(reference)
        registry.script("GET /blobs/ status 503 x1000")
        readers = [daemon.reading(place / f"f{number}", how="random") for number in (0, 3, 5)]
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 3)
        os.kill(daemon.supervisor, signal.SIGKILL)
        daemon.wait(lambda: daemon.log("takes its place"))
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 3)
        os.kill(daemon.fetcher, signal.SIGKILL)
        registry.script("")
        assert [output(r) for r in readers] == [image.summary(n) for n in (0, 3, 5)]


def test_a_full_run_directory_does_not_end_the_daemon(
    tmp_path: Path, many: tuple[str, PlainImage]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    options = ["-t", "tmpfs", "-o", "size=64k,mode=0700"]
    subprocess.run(["mount", *options, "tmpfs", run_dir], check=True, timeout=PATIENCE_S)
    filler = run_dir / "filler"
    try:
        with Daemon(tmp_path) as daemon:
            place = daemon.mount(many[0])
            supervisor, fetcher = daemon.supervisor, daemon.fetcher
            with pytest.raises(OSError, match="No space left"):
                filler.write_bytes(bytes(64 * KiB))
            os.kill(supervisor, signal.SIGKILL)
            assert output(daemon.reading(place / "f9")) == many[1].summary(9)
            assert daemon.status()["supervisor"]["pid"] == fetcher
            assert daemon.supervisor == supervisor  # there was no room to write them
            assert daemon.log("until there is room")
            filler.unlink()
            daemon.wait_supervisor(fetcher)
            assert daemon.run("daemon", "--reload").code == 0
    finally:
        subprocess.run(["umount", "-l", run_dir], check=True, timeout=PATIENCE_S)


def test_all_die_reads_fail_and_the_next_daemon_heals_the_same_mount(
    daemon: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(many[0])
    mount_id = os.stat(place).st_dev
    for number in (0, 7):
        whole = many[1].summary(number, 0, SECTOR)
        assert output(daemon.reading(place / f"f{number}", 0, SECTOR)) == whole
    daemon.end_all(signal.SIGKILL)
    drop_caches()

    assert output(daemon.reading(place / "f7", 0, SECTOR)) == many[1].summary(7, 0, SECTOR)
    assert output(daemon.reading(place / "f100")) == EIO
    daemon.start()
    assert [record["message"] for record in daemon.log("took over")] == [
        f"took over mount {place} of {many[0]}"
    ]
    assert got(read_all(place)) == expected(many[1])
    assert os.stat(place).st_dev == mount_id


def test_waiting_reads_fail_when_all_die(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path) as daemon:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        place = daemon.mount(reference)
        registry.script("GET /blobs/ status 503 x1000")
        reader = daemon.reading(place / "f1", how="random")
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 1)
        daemon.end_all(signal.SIGKILL)
        assert output(reader) == EIO
        registry.script("")
        daemon.start()
        assert output(daemon.reading(place / "f1")) == image.summary(1)


def test_waiting_reads_fail_when_the_daemon_stops(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path) as daemon:
        reference = f"{registry.host}/lazy/plain:1"
        put_plain_image(f"docker://{reference}")
        place = daemon.mount(reference)
        registry.script("GET /blobs/ status 503 x1000")
        reader = daemon.reading(place / "f1", how="random")
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 1)
        daemon.end_all(signal.SIGTERM)
        assert output(reader) == EIO
        assert daemon.log("stopping while 1 reads wait")


def test_a_fetcher_that_hangs_is_replaced(tmp_path: Path, many: tuple[str, PlainImage]) -> None:
    with Daemon(tmp_path, "--health", "2") as daemon:
        place = daemon.mount(many[0])
        hung = daemon.fetcher
        os.kill(hung, signal.SIGSTOP)
        assert output(daemon.reading(place / "f9")) == many[1].summary(9)
        assert daemon.fetcher != hung
        assert daemon.log(f"fetcher {hung} does not answer")


@pytest.mark.parametrize("frozen", ["supervisor", "both"])
def test_a_thawed_supervisor_does_not_kill_its_fetcher(
    tmp_path: Path, many: tuple[str, PlainImage], frozen: str
) -> None:
    """The freezer of a container runtime, or of the whole machine, does that."""
    with Daemon(tmp_path, "--health", "2") as daemon:
        place = daemon.mount(many[0])
        supervisor, fetcher = daemon.supervisor, daemon.fetcher
        stopped = [supervisor, fetcher] if frozen == "both" else [supervisor]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        reader = daemon.reading(place / "f9", how="random")
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(4)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        assert output(reader) == many[1].summary(9)
        assert daemon.fetcher == fetcher
        assert not daemon.log("does not answer")


def test_more_reads_than_the_channel_holds_wait_for_a_fetcher_that_is_slow(
    daemon: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(many[0])
    fetcher = daemon.fetcher
    os.kill(fetcher, signal.SIGSTOP)
    reader = read_all(place, threads=COUNT)
    opened = Path(f"/proc/{daemon.supervisor}/fd")
    daemon.wait(lambda: len(os.listdir(opened)) > COUNT)  # each waiting read is an open file
    os.kill(fetcher, signal.SIGCONT)
    assert got(reader) == expected(many[1])
    assert daemon.fetcher == fetcher
    daemon.wait(lambda: len(os.listdir(opened)) < 20)


def test_a_command_that_asks_while_the_fetcher_dies_is_answered(daemon: Daemon) -> None:
    for _ in range(3):
        pid = daemon.fetcher
        os.kill(pid, signal.SIGKILL)
        ran = daemon.run("status", "--json")
        assert ran.code == 0, ran
        assert ran.json["fetcher"]["pid"] != pid


def test_present_sectors_need_no_daemon(daemon: Daemon, many: tuple[str, PlainImage]) -> None:
    place = daemon.mount(many[0])
    assert daemon.run("fetch", "--all", place).code == 0
    daemon.end_all(signal.SIGKILL)
    drop_caches()
    assert got(read_all(place)) == expected(many[1])
    assert len(tree_of(place)) == COUNT + 1


def test_a_mount_in_progress_survives_the_fetcher(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path) as daemon:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        registry.script("GET /manifests/ blackhole 60")
        before, first = len(registry.asked("/manifests/")), daemon.fetcher
        with ThreadPoolExecutor() as pool:
            mounting = pool.submit(daemon.mount, reference)
            daemon.wait(lambda: len(registry.asked("/manifests/")) > before)
            os.kill(first, signal.SIGKILL)
            place = mounting.result()
        assert daemon.fetcher != first
        assert output(daemon.reading(place / "f1")) == image.summary(1)


def test_a_finished_mount_is_not_repeated_after_the_fetchers_death(
    daemon: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = daemon.scratch / "mnt"
    place.mkdir()
    asked = {"image": many[0], "directory": str(place)}
    answer = daemon.client.post("/mount", **asked, command="first")
    os.kill(daemon.fetcher, signal.SIGKILL)  # and nobody has learned of it
    again = daemon.client.post("/mount", **asked, command="first")
    assert (again["mountpoint"], again["digest"]) == (answer["mountpoint"], answer["digest"])
    assert [mount.place for mount in read_mountinfo()].count(os.fsencode(place)) == 1
    for command in ("second", ""):
        with pytest.raises(UsageError, match="is a mount of"):
            daemon.client.post("/mount", **asked, command=command)
