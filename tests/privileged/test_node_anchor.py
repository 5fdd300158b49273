# SPDX-License-Identifier: Apache-2.0
"""Supervisor and fetcher die at once, without a service manager: reads wait for the next daemon."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.daemon.anchor import anchors
from firstread.errors import NodeError
from firstread.mountinfo import read_mountinfo
from firstread.testing.caches import drop_caches
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.pagereader import Pages
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import MiB

pytestmark = pytest.mark.privileged

EIO = "errno 5"
FEW_FILES = ("prlimit", "--nofile=1024:1024")


def of(daemon: Daemon) -> list[int]:
    return list(anchors(str(daemon.root)))


def waits(daemon: Daemon, reader: subprocess.Popen[str]) -> None:
    """Return when a reader waits in the kernel for an answer to its event."""
    wchan = Path(f"/proc/{reader.pid}/wchan")
    daemon.wait(lambda: "fanotify" in wchan.read_text())


def test_reads_wait_while_no_daemon_lives_and_the_next_one_answers_them(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path) as daemon:
        place = daemon.mount(plain[0])
        for number in range(3):
            daemon.end_all(signal.SIGKILL, anchor=False)
            drop_caches()
            reader = daemon.reading(place / f"f{number}")
            waits(daemon, reader)
            daemon.start()
            assert output(reader) == plain[1].summary(number)
        assert len(daemon.log("what was kept while no daemon lived")) == 3


def test_a_read_that_waited_before_all_died_continues(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry, Daemon(tmp_path) as daemon:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        place = daemon.mount(reference)
        registry.script("GET /blobs/ status 503 x1000")
        readers = [daemon.reading(place / f"f{n}", how="random") for n in range(3)]
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 3)
        daemon.end_all(signal.SIGKILL, anchor=False)
        registry.script("")
        daemon.start()
        assert [output(reader) for reader in readers] == [image.summary(n) for n in range(3)]


def test_there_is_one_anchor_after_any_succession(daemon: Daemon) -> None:
    first = of(daemon)
    assert len(first) == 1
    assert daemon.run("daemon", "--reload").code == 0
    daemon.wait(lambda: len(of(daemon)) == 1 and of(daemon) != first)
    second = of(daemon)
    daemon.replace()
    daemon.wait(lambda: len(of(daemon)) == 1 and of(daemon) != second)
    third, fetcher = of(daemon), daemon.fetcher
    os.kill(daemon.supervisor, signal.SIGKILL)
    daemon.wait_supervisor(fetcher)
    daemon.wait(lambda: len(of(daemon)) == 1 and of(daemon) != third)


def test_a_stopped_daemon_leaves_no_anchor(daemon: Daemon) -> None:
    daemon.wait(lambda: of(daemon))
    daemon.end_all(signal.SIGTERM, anchor=False)
    assert not of(daemon)


def test_a_stop_and_a_start_fail_no_read(tmp_path: Path) -> None:
    """An upgrade of a DaemonSet replaces its pods in this way."""
    with (
        ScriptedRegistry() as registry,
        Daemon(tmp_path, "--on-stop", "wait") as daemon,
    ):
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}")
        place = daemon.mount(reference)
        registry.script("GET /blobs/ status 503 x1000")
        readers = [daemon.reading(place / "f0", how="random")]
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 1)
        daemon.end_all(signal.SIGTERM, anchor=False)
        readers.append(daemon.reading(place / "f1", how="random"))
        waits(daemon, readers[1])
        registry.script("")
        daemon.start()
        assert [output(reader) for reader in readers] == [image.summary(n) for n in range(2)]


def test_an_abandoned_anchor_denies_waiting_reads_and_exits(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--anchor", "2") as daemon:
        place = daemon.mount(plain[0])
        daemon.end_all(signal.SIGKILL, anchor=False)
        readers = [daemon.reading(place / f"f{n}", how="random") for n in range(2)]
        assert [output(reader) for reader in readers] == [EIO, EIO]
        daemon.wait(lambda: not of(daemon))
        daemon.start()
        assert output(daemon.reading(place / "f1")) == plain[1].summary(1)


def test_without_an_anchor_reads_fail_at_once(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--anchor", "0") as daemon:
        place = daemon.mount(plain[0])
        assert not of(daemon)
        daemon.end_all(signal.SIGKILL, anchor=False)
        assert output(daemon.reading(place / "f1")) == EIO


def test_the_next_supervisor_replaces_a_killed_anchor(daemon: Daemon) -> None:
    (pid,) = of(daemon)
    os.kill(pid, signal.SIGKILL)
    os.kill(daemon.supervisor, signal.SIGKILL)
    daemon.wait(lambda: of(daemon) not in ([], [pid]))


def test_a_command_starts_a_daemon_that_takes_over_from_the_anchor(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path) as daemon:
        place = daemon.mount(plain[0])
        daemon.end_all(signal.SIGKILL, anchor=False)
        reader = daemon.reading(place / "f4")
        waits(daemon, reader)
        assert daemon.run("cache", "ls").code == 0
        verified = daemon.run("cache", "verify")
        assert verified.code == 5
        assert "the daemon has died, and reads wait for another one" in verified.stderr
        (daemon.scratch / "second").mkdir()
        assert daemon.tell("", "mount", plain[0], daemon.scratch / "second").code == 0
        assert output(reader) == plain[1].summary(4)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of version 2 for one test."""
    roots = [os.fsdecode(mount.place) for mount in read_mountinfo() if mount.kind == b"cgroup2"]
    if not roots:
        pytest.skip("no cgroup2 is mounted here")
    made = Path(roots[0], f"firstread-test-{os.getpid()}")
    made.mkdir()
    yield made
    made.rmdir()


def test_the_end_of_a_control_group_fails_no_read(
    tmp_path: Path, plain: tuple[str, PlainImage], group: Path
) -> None:
    """A container runtime ends a pod in this way."""
    entering = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
    with Daemon(tmp_path, command=entering) as daemon:
        place = daemon.mount(plain[0])
        pids = (group / "cgroup.procs").read_text().split()
        assert sorted(map(int, pids)) == sorted([daemon.supervisor, daemon.fetcher])
        (group / "cgroup.kill").write_text("1")
        daemon.wait(lambda: not (group / "cgroup.procs").read_text())
        reader = daemon.reading(place / "f5")
        waits(daemon, reader)
        daemon.start()
        assert output(reader) == plain[1].summary(5)
        daemon.end_all(signal.SIGTERM)
        daemon.wait(lambda: not (group / "cgroup.procs").read_text())


def test_memory_of_an_anchor_is_shared(daemon: Daemon) -> None:
    (pid,) = of(daemon)
    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    )
    private = sum(int(fields[f"Private_{kind}"].split()[0]) for kind in ("Clean", "Dirty"))
    assert private < 5 * 1024


def test_output_of_a_dead_daemon_is_closed(tmp_path: Path) -> None:
    """Otherwise a reader of it would wait for the end of the anchor."""
    with Daemon(tmp_path, command=("sh", "-c", '"$@" 2>&1 | cat', "sh")) as daemon:
        supervisor = daemon.supervisor
        assert of(daemon)
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(daemon.children()[0], signal.SIGKILL)
        os.kill(supervisor, signal.SIGKILL)
        assert daemon._process is not None
        daemon._process.wait(timeout=PATIENCE_S)


def test_more_reads_than_the_numbers_of_fixed_descriptors_wait_for_the_next_daemon(
    tmp_path: Path,
) -> None:
    """A daemon that may open fewer files says so, and the reads go on waiting."""
    with ScriptedRegistry() as registry, Daemon(tmp_path, "--health", "120") as daemon:
        reference = f"{registry.host}/lazy/plain:1"
        image = put_plain_image(f"docker://{reference}", count=2, sector_bytes=4 * MiB)
        place = daemon.mount(reference)
        registry.script("GET /blobs/ slow 600 x1000")
        pages = []
        for number in range(2):
            expected = tmp_path / f"expected{number}"
            expected.write_bytes(image.contents[number])
            pages.append(Pages(place / f"f{number}", expected, 0, 700))
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 1400)
        daemon.end_all(signal.SIGKILL, anchor=False)
        registry.script("")
        daemon.wrapper = ("setpriv", "--bounding-set", "-sys_resource", *FEW_FILES)
        with pytest.raises(NodeError, match="no daemon answers"):
            daemon.start()
        assert "a process may open 1024 files here, but a daemon needs 1" in daemon.output()
        daemon.wrapper = ()
        daemon.start()
        assert [each.outcome() for each in pages] == [(700, 0, 700)] * 2
