# SPDX-License-Identifier: Apache-2.0
"""Detached containers from their user's view: run -d, ps, logs, stop, rm; and real servers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.images.build import build, default_cache

from firstread.testing.command import firstread
from firstread.testing.containers import find_busybox
from firstread.testing.images import write_layout
from firstread.testing.machine import Machine, until
from firstread.testing.patience import PATIENCE_S
from firstread.testing.runnable import data_file, runnable_image

pytestmark = pytest.mark.privileged

LOOP = "while :; do sleep 0.02; done"

# Asks a server in the network namespace of a container until it answers as the recipe says.
_ASK = """
import sys, time
from benchmarks.images.ready import answers
from benchmarks.images.recipes import IMAGES
deadline = time.monotonic() + 30
while not answers(IMAGES[sys.argv[1]].ready):
    if time.monotonic() > deadline:
        sys.exit("no answer")
    time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def nothing_is_left(machine: Machine) -> Iterator[None]:
    yield
    machine.remove_all()
    assert machine.left_over() == {}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> str:
    scratch = tmp_path_factory.mktemp("app")
    write_layout(runnable_image(scratch / "rootfs", find_busybox() or ""), scratch / "layout")
    return convert(scratch / "layout", scratch)


def convert(layout: Path, scratch: Path) -> str:
    ran = firstread("convert", f"oci:{layout}:latest", f"oci:{scratch}/converted:x")
    assert ran.code == 0, ran
    return f"oci:{scratch}/converted:x"


def state(machine: Machine, container: str) -> tuple[str, int | None]:
    """Return status and exit code of a container."""
    listed = json.loads(machine.output("ps", "-a", "--json"))["containers"]
    (found,) = [c for c in listed if container in (c["name"], c["id"])]
    return found["status"], found["exit_code"]


def test_the_life_of_a_container(machine: Machine, app: str) -> None:
    script = f"trap 'echo bye; exit 4' QUIT; echo out; echo err >&2; {LOOP}"
    started = machine.call("run", "-d", "--name", "web", "-l", "tier=1", app, script)
    assert (started.returncode, started.stderr) == (0, "")
    assert re.fullmatch(r"[0-9a-f]{64}\n", started.stdout)
    container = started.stdout.strip()

    head, row = machine.output("ps").splitlines()
    assert re.split(r" {2,}", head) == [
        *("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES")
    ]
    short, image, command, created, status, name = re.split(r" {2,}", row)
    assert (short, image, status, name) == (container[:12], app, "running", "web")
    assert command.startswith("sh -c 'trap")
    assert re.fullmatch(r"\d+ s ago", created)
    assert machine.output("ps", "-q") == f"{container[:12]}\n"

    until(lambda: "err" in machine.call("logs", "web").stderr)
    shown = machine.call("logs", "web")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "out\n", "err\n")
    with machine.start("logs", "-f", container[:12]) as following:
        assert following.stdout
        assert following.stdout.readline() == "out\n"
        assert machine.output("stop", "web") == "web\n"
        assert following.stdout.read() == "bye\n"
        assert following.wait(10) == 0

    assert machine.output("ps", "-q") == ""
    assert state(machine, "web") == ("exited", 4)
    assert "exited (4)" in machine.output("ps", "-a")
    assert machine.status()["mounts"] == []
    assert machine.output("rm", "web") == "web\n"
    assert machine.containers() == []


def test_an_error_after_the_start_takes_nothing_away(machine: Machine, app: str) -> None:
    script = "echo precious >/tmp/x; read go </tmp/fifo; cat /tmp/x"
    flags = ("-d", "--name", "web", "-u", "0", "--entrypoint", "sh")
    with open("/dev/full", "w") as full:
        arguments = ("run", *flags, app, "-c", f"mkfifo /tmp/fifo; {script}")
        with machine.start(*arguments, stdout=full) as process:
            _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors.partition("\n")[0]) == (
        125,
        f"firstread: {app}: cannot write the output: No space left on device",
    )
    assert state(machine, "web") == ("running", None)
    (directory,) = (machine.root / "containers/containers").glob("[!.]*")
    until((directory / "upper/tmp/fifo").exists)
    (directory / "rootfs/tmp/fifo").write_text("go\n")
    until(lambda: state(machine, "web")[0] == "exited")
    assert machine.output("logs", "web") == "precious\n"


def test_the_document_of_ps(machine: Machine, app: str) -> None:
    container = machine.output("run", "-d", "-l", "tier=1", app, "sleep 600").strip()
    (found,) = json.loads(machine.output("ps", "--json"))["containers"]
    assert found["id"] == container
    assert found["image"] == app
    assert found["command"] == ["sh", "-c", "sleep 600"]
    assert found["created"] <= found["started"]
    assert found["labels"] == {"tier": "1"}
    assert (found["status"], found["finished"], found["exit_code"]) == ("running", None, None)
    assert Path(f"/proc/{found['pid']}/comm").read_text() in {"sh\n", "sleep\n"}


def command_lines() -> bytes:
    """Return the command lines of all processes, which everybody can read."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return b"\0".join(found)


@pytest.mark.parametrize("detached", [True, False], ids=["detached", "foreground"])
def test_a_secret_is_for_the_container_alone(machine: Machine, app: str, detached: bool) -> None:
    """No command line shows a value from ``-e NAME=VALUE`` while the container runs."""
    secret = os.urandom(8).hex()
    flags = ("-e", f"A={secret}1", f"--env=B={secret}2", f"-eC={secret}3", *["-d"] * detached)
    script = f"echo $A $B; {LOOP}"
    with machine.start("run", "--name", "web", *flags, app, script) as running:
        assert running.stdout
        try:
            until(lambda: machine.containers() and state(machine, "web")[0] == "running")
            assert secret.encode() not in command_lines()
            kept = machine.root / "containers"
            files = [path for path in kept.rglob("*") if path.is_file()]
            holding = [path for path in files if secret.encode() in path.read_bytes()]
            (bundle,) = (kept / "containers").glob("[!.]*")
            assert bundle / "config.json" in holding
            for path in (kept, kept / "containers", bundle, *holding):
                assert path.stat().st_mode & 0o077 == 0, path
            if not detached:
                assert running.stdout.readline() == f"{secret}1 {secret}2\n"
        finally:
            machine.call("rm", "-f", "web")


def test_logs_with_times(machine: Machine, app: str) -> None:
    machine.output("run", "-d", "--name", "web", app, "printf 'a\\nb'")
    machine.output("stop", "web")
    shown = machine.output("logs", "-t", "web")
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert re.fullmatch(rf"{time} a\n{time} b", shown)


def test_logs_of_lines_in_pieces(machine: Machine, app: str) -> None:
    script = "for piece in a b 'c\nd'; do printf \"$piece\"; sleep 0.1; done"
    machine.output("run", "-d", "--name", "web", app, script)
    machine.output("logs", "-f", "web")  # until its end
    shown = machine.output("logs", "-t", "web")
    assert re.fullmatch(r"\S{27} abc\n\S{27} d", shown)


def test_logs_into_a_full_device(machine: Machine, app: str) -> None:
    machine.output("run", "-d", "--name", "web", app, "seq 100000")
    assert machine.output("logs", "-f", "web").endswith("\n100000\n")
    with open("/dev/full", "w") as full, machine.start("logs", "web", stdout=full) as process:
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5
    assert errors.startswith("firstread: cannot write the output: No space left on device\n")
    with machine.start("logs", "web") as process:
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == ""
        assert process.wait(30) == 0


def test_bytes_in_the_log(machine: Machine, app: str) -> None:
    machine.output("run", "-d", "--name", "web", app, "cat /data/5")
    machine.output("stop", "web")
    show = machine.argv("logs", "web")
    shown = subprocess.run(show, env=machine.env, capture_output=True, check=True).stdout
    assert shown == data_file(5)


def test_stop_kills_after_a_while(machine: Machine, app: str) -> None:
    machine.output("run", "-d", "--name", "deaf", app, f"trap '' QUIT; echo ready; {LOOP}")
    until(lambda: machine.call("logs", "deaf").stdout)
    machine.output("stop", "-t", "0.1", "deaf")
    assert state(machine, "deaf") == ("exited", 137)


def test_removed_when_it_ends(machine: Machine, app: str) -> None:
    machine.output("run", "-d", "--rm", "--name", "short", app, "sleep 0.2")
    until(lambda: machine.containers() == [])
    assert machine.left_over() == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stop", "nosuch"), "no such container: nosuch"),
        (("rm", "nosuch"), "no such container: nosuch"),
        (("logs", "nosuch"), "no such container: nosuch"),
        (("rm", "web"), "cannot remove a running container"),
        (("rm",), "Missing argument 'CONTAINER...'"),
    ],
)
def test_refusals(machine: Machine, app: str, arguments: tuple[str, ...], words: str) -> None:
    if "web" in arguments:
        machine.output("run", "-d", "--name", "web", app, "sleep 600")
    done = machine.call(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"firstread: {words}")


def test_several_at_once_with_one_missing(machine: Machine, app: str) -> None:
    for name in ("one", "two"):
        machine.output("run", "-d", "--name", name, app, "sleep 600")
    done = machine.call("rm", "-f", "one", "nosuch", "two")
    assert done.returncode == 2
    assert done.stdout.split() == ["one", "two"]
    assert "no such container: nosuch" in done.stderr
    assert machine.containers() == []


def test_looking_needs_no_daemon(tmp_path: Path) -> None:
    with Machine(tmp_path) as fresh:
        assert fresh.output("ps", "-aq") == ""
        assert json.loads(fresh.output("ps", "--json")) == {"containers": []}
        assert not fresh.client.alive()


@pytest.mark.parametrize("name", ["nginx", "redis"])
def test_servers(machine: Machine, tmp_path: Path, name: str) -> None:
    """The image decides user, command and stop signal; each server has its own network."""
    (layout,) = build([name], default_cache())
    image = convert(layout, tmp_path)
    flags = ("-d", "--network", "none", "--name", name)
    machine.output("run", *flags, image)
    (found,) = json.loads(machine.output("ps", "--json"))["containers"]
    ask = ("nsenter", "--net", "--target", str(found["pid"]), sys.executable, "-c", _ASK, name)
    subprocess.run(ask, check=True, timeout=PATIENCE_S)
    (mount,) = machine.status()["mounts"]
    assert 0 < mount["present"] < mount["sectors"]
    machine.output("stop", name)
    assert state(machine, name) == ("exited", 0)


def test_the_starting_session_ends(machine: Machine, app: str) -> None:
    with machine.start("run", "-d", app, "sleep 600", start_new_session=True) as process:
        container, _ = process.communicate(timeout=PATIENCE_S)
    with contextlib.suppress(ProcessLookupError):  # expected: nothing is left in it
        os.killpg(process.pid, signal.SIGHUP)
    assert state(machine, container.strip()) == ("running", None)
