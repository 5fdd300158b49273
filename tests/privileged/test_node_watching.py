# SPDX-License-Identifier: Apache-2.0
"""Status, metrics, events and logs of a node; its cost; its start."""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from firstread import __version__
from firstread.control.daemonlog import LOG_BYTES
from firstread.testing.command import firstread, program
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB, MiB

pytestmark = pytest.mark.privileged

SECTOR = 256 * KiB
MEMORY_LIMIT = 120 * MiB  # in all processes of a daemon with fifty mounts
UNIT = Path(__file__).parents[2] / "packaging/firstread.service"


def metrics_of(text: str) -> dict[str, float]:
    """Return each sample, keyed by its name and the last part of its mount point."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            place = sample.labels.get("mountpoint", "").rpartition("/")[2]
            labels = [place] if place else []
            labels += [sample.labels["cause"]] if "cause" in sample.labels else []
            found[" ".join([sample.name, *labels])] = sample.value
    return found


def test_status_shows_each_mount(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    assert output(daemon.reading(place / "f0", 0, SECTOR)) == plain[1].summary(0, 0, SECTOR)
    daemon.wait(lambda: daemon.mounted(place)["wanted"] == 0)
    ran = daemon.run("status", "--json")
    document = ran.json
    assert document["supervisor"] == {
        "pid": daemon.supervisor,
        "version": __version__,
        "upgrades": 0,
    }
    assert document["fetcher"] == {
        "pid": daemon.fetcher,
        "version": __version__,
        "restarts": 0,
        "healthy": True,
        "waiting_reads": 0,
    }
    store = document["store"]
    for name in ("free_bytes", "free_files", "metadata_bytes", "files"):
        assert store.pop(name) > 0
    assert document["store"] == {
        "bytes": SECTOR,
        "sectors": 1,
        "limit_bytes": None,
        "limit_files": None,
        "min_free_bytes": None,
        "evictions": 0,
        "evicted_bytes": 0,
        "removals": 0,
        "removed_bytes": 0,
        "checked": 0,
        "damaged": 0,
    }
    (mount,) = document["mounts"]
    expected = {
        "mountpoint": str(place),
        "image": plain[0],
        "device": "fanotify",
        "sectors": 8,
        "present": 1,
        "events": 1,
        "requests": 1,
        "failed_reads": 0,
        "last_error": None,
        "self_sufficient": False,
        "pinned": False,
        "source": plain[0].removesuffix(":latest"),
    }
    assert {key: mount[key] for key in expected} == expected
    assert mount["bytes_fetched"] > SECTOR  # it cannot be compressed

    text = daemon.run("status").stdout
    assert f"{place}  {plain[0]}" in text
    assert "1 of 8 present, lazy" in text
    assert daemon.run("fetch", "--all", plain[0]).code == 0
    assert "8 of 8 present, self-sufficient, pinned" in daemon.run("status").stdout


def test_metrics_say_the_same(tmp_path: Path, plain: tuple[str, PlainImage]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Daemon(tmp_path, "--metrics", f"127.0.0.1:{port}") as daemon:
        place = daemon.mount(plain[0])
        assert output(daemon.reading(place / "f1")) == plain[1].summary(1)
        daemon.wait(lambda: daemon.mounted(place)["wanted"] == 0)
        found = metrics_of(daemon.run("status", "--metrics").stdout)
        assert found["firstread_mount_present_sectors mnt"] == 1
        assert found["firstread_mount_sectors mnt"] == 8
        assert found["firstread_mount_waited_reads_total mnt"] == 1
        assert found["firstread_mount_requests_total mnt demand"] == 1
        assert found["firstread_store_bytes"] == SECTOR
        assert found["firstread_fetcher_restarts_total"] == 0

        os.kill(daemon.fetcher, signal.SIGKILL)
        assert daemon.status()["fetcher"]["restarts"] == 1
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            found = metrics_of(answer.read().decode())
        assert found["firstread_fetcher_restarts_total"] == 1
        assert found["firstread_mount_present_sectors mnt"] == 1


def test_events_are_seen_as_they_happen(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    with daemon.watching(place) as watcher:
        reader = daemon.reading(place / "f0", 8192, 100, "random")
        assert output(reader) == plain[1].summary(0, 8192, 100)
        assert watcher.stdout is not None
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["event"] != "present":
            event = json.loads(watcher.stdout.readline())
            if event.get("pid") == reader.pid or (seen and event["sector"] == seen[0]["sector"]):
                seen.append(event)
    assert [event["event"] for event in seen] == ["read", "request", "present"]
    assert seen[0]["image"] == daemon.mounted(place)["digest"]
    assert (seen[0]["offset"], seen[0]["bytes"]) == (8192, 4096)
    assert seen[1]["cause"] == seen[2]["cause"] == "demand"


def test_events_whose_reader_leaves(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    with daemon.watching(place) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.close()
        daemon.reading(place / "f0").wait(timeout=PATIENCE_S)
        assert watcher.wait(timeout=PATIENCE_S) == 0


@pytest.mark.parametrize("how", [["--watch"], ["--watch", "--json"]], ids=["human", "json"])
def test_a_watch_whose_reader_leaves(standing: Daemon, how: list[str]) -> None:
    command = program("status", *how, "--run-dir", str(standing.run_dir))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert watch.stdout.readline()
        watch.stdout.close()
        assert watch.wait(timeout=PATIENCE_S) == 0
        assert watch.stderr.read() == b""


@pytest.mark.parametrize("how", [[], ["--metrics"]], ids=["human", "metrics"])
def test_a_status_that_cannot_be_written(standing: Daemon, how: list[str]) -> None:
    command = program("status", *how, "--run-dir", str(standing.run_dir))
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False
        )
    assert ran.returncode == 5
    assert ran.stderr.startswith(b"firstread: cannot write the output: No space left on device\n")


def test_metrics_are_printed_once(standing: Daemon) -> None:
    ran = standing.run("status", "--metrics", "--watch")
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr == "firstread: --metrics goes with neither --watch nor --json\n"


def test_events_end_with_the_daemon(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    with daemon.watching(daemon.mount(plain[0])) as watcher:
        daemon.end_all(signal.SIGTERM)
        assert watcher.wait(timeout=PATIENCE_S) == 0


def test_the_log_is_lines_of_json_without_secrets(
    daemon: Daemon, tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    login = tmp_path / "config.json"
    login.write_text(json.dumps({"auths": {"127.0.0.1:1": {"auth": "c2VjcmV0OnNlY3JldA=="}}}))
    (tmp_path / "mnt").mkdir()
    ran = daemon.run(
        "mount", "127.0.0.1:1/a/b:1", tmp_path / "mnt", "--authfile", login, "--retries", "0"
    )
    assert ran.code == 4
    daemon.mount(plain[0])
    os.kill(daemon.fetcher, signal.SIGKILL)
    daemon.wait(lambda: daemon.log("took over"))
    for record in daemon.log():
        assert {"time", "level", "part", "message"} <= record.keys()
    assert "c2VjcmV0" not in daemon.output() + ran.stderr


def test_a_daemon_with_fifty_mounts_is_small(daemon: Daemon, tmp_path: Path) -> None:
    for number in range(10):
        put_plain_image(
            f"oci:{tmp_path}/i{number}:latest",
            count=300,
            first=number * 300,
            sector_bytes=16 * KiB,
            frame_bytes=16 * KiB,
        )
    for number in range(50):
        daemon.mount(f"oci:{tmp_path}/i{number % 10}:latest", f"m{number}")
    reader = daemon.reading_files([tmp_path / f"m{number}/f{number}" for number in range(50)])
    assert [line.split()[0] for line in output(reader).splitlines()] == ["4096"] * 50
    assert daemon.run("fetch", "--all", tmp_path / "m0").code == 0
    assert len(daemon.status()["mounts"]) == 50
    assert daemon.rss_bytes() < MEMORY_LIMIT


def test_no_descriptor_is_left_open(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    def opened() -> int:
        pids = daemon.supervisor, daemon.fetcher
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)

    place = daemon.mount(plain[0])
    assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
    daemon.wait(lambda: daemon.mounted(place)["wanted"] == 0)
    before = opened()
    output(daemon.reading_files([place / f"f{number % 8}" for number in range(40)], how="random"))
    assert daemon.run("fetch", "--all", place).code == 0
    daemon.wait(lambda: opened() <= before + 4)  # connections of the control socket


# Starting.


def test_commands_start_a_daemon_when_none_runs(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    daemon = Daemon(tmp_path)  # not started
    place = tmp_path / "mnt"
    place.mkdir()
    places = ("--root", daemon.root, "--run-dir", daemon.run_dir)
    try:
        command = program("mount", plain[0], place, *places)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"{plain[0]} is mounted at {place}")
        assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
        assert (daemon.run_dir / "daemon.log").exists()
    finally:
        daemon.__exit__(None, None, None)


def test_paths_in_the_environment_are_relative_to_the_command(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    """A daemon that a command starts has / as its working directory."""
    daemon = Daemon(tmp_path)  # not started
    place = tmp_path / "mnt"
    place.mkdir()
    (tmp_path / "own.toml").write_text("[policy]\nstall_s = 77.0\n")
    command = program("mount", plain[0], place, "--root", daemon.root, "--run-dir", daemon.run_dir)
    environment = {**os.environ, "FIRSTREAD_CONFIG": "own.toml"}
    try:
        subprocess.run(command, capture_output=True, check=True, cwd=tmp_path, env=environment)
        assert daemon.mounted(place)["policies"]["stall_s"] == 77
    finally:
        daemon.__exit__(None, None, None)


def test_a_daemon_that_does_not_start_says_why_and_what_to_do(tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text("[policy]\nstall = 77.0\n")
    places = ("--root", tmp_path / "root", "--run-dir", tmp_path / "run")
    ran = subprocess.run(
        program("mount", "oci:x", tmp_path, *places),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "FIRSTREAD_CONFIG": str(config)},
    )
    assert ran.returncode == 5
    assert ran.stderr == (
        f"firstread: the daemon does not start: {config}: the configuration is not valid:"
        " Object contains unknown field `stall` - at `$.policy`\n  see docs/node.md\n"
    )


def test_without_a_daemon_the_others_say_so(tmp_path: Path) -> None:
    for verb in ("status", "events"):
        ran = firstread(verb, "--run-dir", tmp_path)
        assert ran.code == 5
        assert "no daemon answers" in ran.stderr


def test_readiness_is_told_to_systemd(tmp_path: Path, plain: tuple[str, PlainImage]) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(address))
        service.settimeout(20)

        def ready() -> list[str]:
            while "READY=1" not in (lines := service.recv(1000).decode().split("\n")):
                assert lines[0] in ("FDSTORE=1", "FDSTOREREMOVE=1")
            return lines

        with Daemon(tmp_path, command=("env", f"NOTIFY_SOCKET={address}")) as daemon:
            first = daemon.supervisor
            assert ready() == ["READY=1", f"MAINPID={first}"]
            place = daemon.mount(plain[0])
            fetcher = daemon.fetcher
            os.kill(first, signal.SIGKILL)
            assert ready() == ["READY=1", f"MAINPID={fetcher}"]
            assert output(daemon.reading(place / "f0")) == plain[1].summary(0)


def test_the_service_has_the_rights_that_it_needs(
    tmp_path: Path, plain: tuple[str, PlainImage]
) -> None:
    """The test sets only the unit's capabilities; its other restrictions need systemd."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    allowed = unit["Service"]["CapabilityBoundingSet"].lower().replace("cap_", "+").split()
    command = ("setpriv", "--no-new-privs", f"--bounding-set=-all,{','.join(allowed)}")
    with Daemon(tmp_path, command=command) as daemon:
        status = Path(f"/proc/{daemon.supervisor}/status").read_text()
        bounding = int(re.findall(r"CapBnd:\s+(\w+)", status)[0], 16)
        assert 1 < bounding.bit_count() <= len(allowed)  # this machine may not have all of them
        place = daemon.mount(plain[0])
        user = subprocess.Popen(["sleep", "60"], cwd=place)
        assert f"pid {user.pid}" in daemon.run("umount", place).stderr
        user.kill()
        user.wait()
        assert output(daemon.reading(place / "f0")) == plain[1].summary(0)
        os.kill(daemon.supervisor, signal.SIGKILL)
        daemon.wait(lambda: daemon.log("took over"))
        assert output(daemon.reading(place / "f1")) == plain[1].summary(1)
        assert daemon.run("umount", place).code == 0


def test_the_service_gives_itself_no_mount_namespace() -> None:
    """Nobody else would see its mounts: systemd.exec(5) on MountFlags=."""
    unit = UNIT.read_text()
    for option in (
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "ProtectKernel",
        "ProtectControlGroups",
        "PrivateMounts",
        "RootDirectory",
        "BindPaths",
        "ProtectProc",
        "DynamicUser",
    ):
        assert not re.search(rf"^{option}\w*=", unit, re.MULTILINE), option


def test_any_process_of_a_daemon_rotates_its_log(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    log, before = run_dir / "daemon.log", run_dir / "daemon.log.1"
    log.touch()
    os.link(log, tmp_path / "log")  # the options with which a command starts the daemon
    with ScriptedRegistry() as registry, Daemon(tmp_path) as daemon:
        put_plain_image(f"docker://{registry.host}/lazy/plain:1")
        place = daemon.mount(f"{registry.host}/lazy/plain:1")
        os.truncate(log, LOG_BYTES)
        os.kill(daemon.fetcher, signal.SIGKILL)
        daemon.wait(lambda: "took over mount" in log.read_text())
        assert before.stat().st_size >= LOG_BYTES
        assert log.stat().st_size < MiB

        os.truncate(log, LOG_BYTES + 1)
        registry.script("GET /blobs/ status 503")
        assert output(daemon.reading(place / "f0")) != "errno 5"
        daemon.wait(lambda: "an endpoint rests" in log.read_text())  # the fetcher, confined
        assert before.stat().st_size >= LOG_BYTES + 1
        assert log.stat().st_size < MiB
