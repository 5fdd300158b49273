# SPDX-License-Identifier: Apache-2.0
"""Reports about real starts: of a mount, and of a container whose mount has ended with it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from firstread.testing.command import program
from firstread.testing.daemon import Daemon
from firstread.testing.lazymount import output
from firstread.testing.machine import Machine
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage
from firstread.testing.registry import DockerRegistry
from firstread.testing.terminal import Terminal
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 256 * KiB


@pytest.fixture
def app(app_registry: DockerRegistry) -> str:
    return f"{app_registry.host}/app"


def test_a_report_of_a_mount(daemon: Daemon, plain: tuple[str, PlainImage], tmp_path: Path) -> None:
    place = daemon.mount(plain[0])
    assert output(daemon.reading(place / "f3", 0, SECTOR)) == plain[1].summary(3, 0, SECTOR)
    daemon.wait(lambda: daemon.mounted(place)["present"] == 1)
    record = daemon.run("report", place, "--json").json
    (file,) = record["files"]
    assert (file["path"], file["cached"]) == ("/f3", SECTOR)
    assert 0 < file["bytes"] <= SECTOR
    assert record["used"] == [0, 0, 0, SECTOR, 0, 0, 0, 0]

    page = tmp_path / "report.html"
    ran = daemon.run("report", "-o", page)
    assert ran.stdout == f"{page}: a page about {plain[0]}\n"
    assert "/f3" in page.read_text()
    assert "a read asked for it: 1 sector, 256.0 KiB" in page.read_text()

    (tmp_path / "run.json").write_text(json.dumps(record))
    both = daemon.run("report", tmp_path / "run.json", plain[0], "-o", page)
    assert both.stdout == f"{page}: a page about run, {plain[0]}\n"


def test_a_report_without_a_mount(daemon: Daemon, tmp_path: Path) -> None:
    ran = daemon.run("report", "-o", tmp_path / "page")
    assert (ran.code, ran.stderr.splitlines()[0]) == (2, "firstread: nothing is mounted")
    ran = daemon.run("report", "app:1", "-o", tmp_path / "page")
    assert (ran.code, ran.stderr.splitlines()[0]) == (2, "firstread: app:1 is not mounted")


def recorded(machine: Machine, app: str, path: Path, script: str) -> dict[str, Any]:
    ran = machine.run("--rm", "--record", str(path), app, script)
    assert (ran.returncode, ran.stderr) == (0, "")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_a_container_leaves_the_record_of_its_start(tmp_path: Path, app: str) -> None:
    with Machine(tmp_path) as machine:
        first = recorded(machine, app, tmp_path / "one.json", "cat /data/3 >/dev/null; echo here")
        steps = [step["name"] for step in first["steps"]]
        assert steps[:4] == ["command", "resolve", "metadata", "mount"]
        assert set(steps[4:6]) == {"start", "first output"}
        assert "/data/3" in {file["path"] for file in first["files"]}
        mounted = first["steps"][3]["at"] + first["steps"][3]["seconds"]
        assert first["reads"]
        assert all(mounted < read["at"] for read in first["reads"])
        assert sum(request["received"] for request in first["requests"]) > 0

        again = recorded(machine, app, tmp_path / "two.json", "cat /data/3 >/dev/null; echo here")
        assert again["requests"] == []
        assert again["began"] > first["began"]
        assert {sector["cause"] for sector in again["sectors"]} == {None}


def test_a_record_that_cannot_be_written(machine: Machine, app: str, tmp_path: Path) -> None:
    """It is an error before the container runs, and a warning afterwards."""
    ran = machine.run("--rm", "--record", "/nonexistent/run.json", app, "exit 3")
    assert ran.returncode == 125
    assert ran.stderr.startswith("firstread: /nonexistent/run.json cannot be written")
    place = tmp_path / "place"
    place.mkdir()
    options = ("--rm", "-u", "0", "-v", f"{tmp_path}:/host", "--record", str(place / "run.json"))
    ran = machine.run(*options, app, "rmdir /host/place; exit 3")
    assert ran.returncode == 3
    assert ran.stderr.startswith("firstread: the start is not recorded: cannot write")
    ran = machine.run("-d", "--rm", "--record", "run.json", app, "true")
    assert ran.returncode == 125
    assert ran.stderr.startswith("firstread: --record goes with a container in the foreground")


def test_a_running_container_is_part_of_the_start(
    machine: Machine, app: str, tmp_path: Path
) -> None:
    container = machine.output("run", "-d", "--rm", app, "sleep 600").strip()
    try:
        record = json.loads(machine.output("report", app, "--json"))
        assert [step["name"] for step in record["steps"]] == [
            *("resolve", "metadata", "mount", "container")
        ]
    finally:
        machine.output("stop", "-t", "0", container)


def test_a_watch_on_a_terminal(daemon: Daemon, plain: tuple[str, PlainImage]) -> None:
    place = daemon.mount(plain[0])
    command = program("status", "--watch", "--run-dir", str(daemon.run_dir))
    with Terminal(command) as terminal:
        terminal.expect("of 8 sectors")
        assert output(daemon.reading(place / "f5")) == plain[1].summary(5)
        terminal.expect("1 demand")
        terminal.expect("last waits: ")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(timeout=PATIENCE_S) == 130
        terminal.expect("firstread: interrupted")
        assert terminal.restored()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_watch_that_is_ended_gives_the_cursor_back(
    daemon: Daemon, number: signal.Signals
) -> None:
    with Terminal(program("status", "--watch", "--run-dir", str(daemon.run_dir))) as terminal:
        terminal.expect("\x1b[?25l")
        terminal.expect("daemon")
        terminal.process.send_signal(number)
        assert terminal.process.wait(timeout=PATIENCE_S) == 128 + number
        terminal.expect("\x1b[?25h")
