# SPDX-License-Identifier: Apache-2.0
"""Deaths while a container runs leave nothing that ``rm`` does not find."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from firstread.testing.machine import Machine, until
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import data_file
from firstread.testing.terminal import Terminal

pytestmark = pytest.mark.privileged

LOOP = "while :; do sleep 0.02; done"


@pytest.fixture(autouse=True)
def nothing_is_left(machine: Machine) -> Iterator[None]:
    yield
    machine.remove_all()
    assert machine.left_over() == {}


@pytest.fixture
def registry(app_registry: DockerRegistry) -> DockerRegistry:
    return app_registry


@pytest.fixture
def app(registry: DockerRegistry) -> str:
    return f"{registry.host}/app"


def containers(machine: Machine) -> list[dict[str, str | int | None]]:
    found: list[dict[str, str | int | None]] = json.loads(machine.output("ps", "-a", "--json"))[
        "containers"
    ]
    return found


@contextlib.contextmanager
def silent(registry: DockerRegistry) -> Iterator[None]:
    """Keep the registry silent for a while."""
    os.kill(registry.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(registry.pid, signal.SIGCONT)


def sha256sum(number: int) -> str:
    return hashlib.sha256(data_file(number)).hexdigest()


# -- terminal and signals --------------------------------------------------------------------------


def test_a_shell_in_a_terminal(machine: Machine, app: str) -> None:
    argv = machine.argv("run", "--rm", "-it", "-e", "PS1=> ", "--entrypoint", "sh", app)
    with Terminal(argv, machine.env) as shell:
        shell.expect("> ")
        shell.type("tty; stty size; echo $TERM\r")
        shell.expect("/dev/pts/0\r\n33 77\r\nxterm\r\n")
        shell.resize(10, 20)
        shell.process.send_signal(signal.SIGWINCH)
        # The key can arrive before the signal.
        shell.type("until stty size | grep '10 20'; do sleep 0.05; done\r")
        shell.expect("10 20\r\n")
        shell.type("sleep 60; echo interrupted $?\r")
        shell.expect("$?\r\n")
        time.sleep(0.2)
        shell.type("\x03")
        shell.expect("> ")
        shell.type("stty raw -echo; echo raw $((1 + 1)); head -c 5 | od -An -tx1; exit 4\r")
        shell.expect("raw 2")
        shell.type(b"\x00\x03\x04\xff\r")
        shell.expect("00 03 04 ff 0d")
        assert shell.process.wait(15) == 4
        assert shell.restored()


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1", "INT"])
def test_signals_reach_the_container(machine: Machine, app: str, name: str) -> None:
    script = f"trap 'echo got; exit 9' {name}; echo ready; {LOOP}"
    with machine.start("run", "--rm", app, script) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.stdout.read() == "got\n"
        assert process.wait(20) == 9


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_interrupted_before_the_start(
    machine: Machine, registry: DockerRegistry, app: str, number: signal.Signals, code: int
) -> None:
    """The daemon waits for a registry and finishes a mount that nobody wants any more."""
    with silent(registry), machine.start("run", "--rm", "--pull", "always", app) as process:
        until(lambda: containers(machine))
        assert [c["status"] for c in containers(machine)] == ["created"]
        process.send_signal(number)
        assert process.wait(20) == code
        assert containers(machine) == []
    machine.output("run", "--rm", "--pull", "always", app)  # after the abandoned one
    assert machine.left_over() == {}


@pytest.mark.skipif(not shutil.which("crun"), reason="needs crun")
def test_a_runtime_that_dies(machine: Machine, app: str) -> None:
    """crun takes on the container's limits before it writes its own state, which kills it here."""
    done = machine.run("--rm", "--runtime", "crun", "--ulimit", "fsize=0", app, "true")
    assert done.returncode == 125
    assert "crun cannot create the container" in done.stderr


def test_removed_before_the_start(machine: Machine, registry: DockerRegistry, app: str) -> None:
    arguments = ("run", "-d", "--name", "web", "--pull", "always", app)
    with silent(registry), machine.start(*arguments) as process:
        until(lambda: containers(machine))
        assert machine.output("stop", "web") == "web\n"
        assert [c["status"] for c in containers(machine)] == ["created"]
        assert machine.output("rm", "-f", "web") == "web\n"
        assert process.wait(20) == 143
        assert containers(machine) == []


# -- the command dies ------------------------------------------------------------------------------


@pytest.mark.parametrize("detached", [False, True], ids=["foreground", "monitor"])
def test_the_attendant_is_killed(machine: Machine, app: str, detached: bool) -> None:
    """The container continues unattended and ends unseen; rm finds everything that it leaves."""
    script = "echo ready; while [ ! -e /go/on ]; do sleep 0.02; done; sha256sum /data/2 >/go/sum"
    go = machine.root.parent / f"go-{detached}"
    go.mkdir()
    go.chmod(0o777)
    flags = ("--name", "web", "-v", f"{go}:/go", *(("-d",) if detached else ()))
    process = machine.start("run", *flags, app, script)
    if detached:
        process.communicate()
        until(lambda: machine.call("logs", "web").stdout)
        record = next((machine.root / "containers/containers").glob("*/record.json"))
        os.kill(json.loads(record.read_bytes())["attendant"]["pid"], signal.SIGKILL)
    else:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.kill()
        process.communicate()
    assert [c["status"] for c in containers(machine)] == ["running"]
    (go / "on").touch()
    until(lambda: [c["status"] for c in containers(machine)] == ["dead"])
    assert (go / "sum").read_text().split()[0] == sha256sum(2)
    assert machine.status()["mounts"][0]["holders"] == [containers(machine)[0]["id"]]
    assert machine.output("rm", "web") == "web\n"
    assert machine.left_over() == {}


def start_seconds(machine: Machine, app: str) -> float:
    """Start a lasting container on a node that has the image; return the time that it took."""
    machine.output("run", "--rm", app)
    began = time.monotonic()
    machine.output("run", "-d", app, "sleep 600")
    return time.monotonic() - began


def test_killed_at_any_moment(machine: Machine, app: str) -> None:
    whole = start_seconds(machine, app)
    for moment in range(24):
        flags = ("-d",) if moment % 2 else ()
        devnull = subprocess.DEVNULL
        process = machine.start("run", *flags, app, "sleep 600", stdout=devnull, stderr=devnull)
        time.sleep(whole * (moment + 6) / 30)
        process.kill()
        process.wait()
    machine.remove_all()
    assert machine.left_over() == {}


def test_ended_at_any_moment(machine: Machine, app: str) -> None:
    """A detached container then either runs or leaves nothing, whichever process was at work."""
    whole = start_seconds(machine, app)
    for moment in range(16):
        devnull = subprocess.DEVNULL
        process = machine.start("run", "-d", app, "sleep 600", stdout=devnull, stderr=devnull)
        time.sleep(whole * (moment + 6) / 22)
        process.terminate()
        process.wait(30)
    until(lambda: {c["status"] for c in containers(machine)} == {"running"})
    machine.remove_all()
    assert machine.left_over() == {}


def test_killed_while_the_image_is_on_its_way(
    machine: Machine, registry: DockerRegistry, app: str
) -> None:
    with silent(registry):
        process = machine.start("run", "--name", "never", "--pull", "always", app)
        until(lambda: containers(machine))
        process.kill()
        process.communicate()
        assert [(c["name"], c["status"]) for c in containers(machine)] == [("never", "dead")]
        machine.output("rm", "never")
    machine.output("run", "--rm", "--pull", "always", app)
    assert machine.left_over() == {}


# -- the daemon dies -------------------------------------------------------------------------------


def test_the_daemon_is_killed(machine: Machine, app: str) -> None:
    """The container survives; the next command starts a daemon, and its reads are right."""
    script = "echo ready; while read number; do sha256sum /data/$number; done"
    with machine.start("run", "--rm", "-i", app, script, stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        machine.kill_daemon()
        assert not machine.client.alive()
        assert containers(machine)[0]["status"] == "running"
        assert machine.output("run", "--rm", app) == "from the image\n"
        process.stdin.write("4\n")
        process.stdin.flush()
        assert process.stdout.readline().split()[0] == sha256sum(4)
        process.stdin.close()
        assert process.wait(20) == 0


def test_the_daemon_is_gone_at_the_end(machine: Machine, app: str) -> None:
    """The container starts another daemon to release its mount."""
    with machine.start(
        "run", "--rm", "-i", app, "read x; exit 5", stdin=subprocess.PIPE
    ) as process:
        until(lambda: containers(machine) and machine.status()["mounts"])
        until(lambda: containers(machine)[0]["status"] == "running")
        machine.kill_daemon()
        assert process.stdin
        process.stdin.close()
        assert process.wait(20) == 5
    assert machine.client.alive()
    assert machine.status()["mounts"] == []


def test_the_registry_is_gone(machine: Machine, registry: DockerRegistry, app: str) -> None:
    """A start that reads only present sectors needs no registry."""
    machine.output("run", "--rm", app, "sha256sum /data/1")
    registry.stop()
    try:
        assert sha256sum(1) in machine.output("run", "--rm", app, "sha256sum /data/1")
        done = machine.run("--rm", "--pull", "always", app)
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.startswith(f"firstread: docker://{app}:latest: registry ")
    finally:
        registry.restart()
