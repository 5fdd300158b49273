# SPDX-License-Identifier: Apache-2.0
"""Detached containers: log, stop, remove, and the leftovers of deaths."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstread.errors import UsageError
from firstread.run.containers import ContainerStore, Record, Status, status_of
from firstread.run.control import read_container_log, remove_container, stop_container
from firstread.run.overlay import mounts_below
from firstread.testing.containers import Node, find_busybox, make_rootfs
from firstread.testing.patience import PATIENCE_S

pytestmark = pytest.mark.privileged

RUNTIMES = [name for name in ("crun", "runc") if shutil.which(name)]
LOOP = "while :; do sleep 0.02; done"


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = find_busybox()
    if os.geteuid() or not busybox or not RUNTIMES:
        pytest.skip("needs root, busybox-static, and crun or runc")
    return make_rootfs(tmp_path_factory.mktemp("rootfs"), busybox)


@pytest.fixture
def node(rootfs: Path, tmp_path: Path) -> Iterator[Node]:
    made = Node(rootfs, tmp_path / "state", {"Env": ["PATH=/bin"], "StopSignal": "SIGQUIT"})
    yield made
    store = ContainerStore(made.state_dir)
    for record in store.list():
        remove_container(store, record, force=True)
    assert mounts_below(tmp_path) == []
    assert list((made.state_dir / "runtime").glob("*")) == []


def start(node: Node, script: str, *flags: str) -> tuple[ContainerStore, Record]:
    """Start a detached container; return its store and record."""
    done = node.run("-d", *flags, "image", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    store = ContainerStore(node.state_dir)
    return store, store.find(done.stdout.strip())


def output(store: ContainerStore, record: Record, stream: str = "stdout") -> bytes:
    """Return the whole output of a container."""
    entries = read_container_log(store, record, follow=True)
    return b"".join(entry.content for entry in entries if entry.stream == stream)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_output_is_logged_and_the_exit_code_kept(node: Node, runtime: str) -> None:
    script = r"printf 'a\377\nhalf'; echo err >&2; exit 5"
    store, record = start(node, script, "--runtime", runtime)
    assert output(store, record) == b"a\xff\nhalf"
    assert output(store, record, "stderr") == b"err\n"
    stop_container(store, record)
    ended = store.find(record.id)
    assert (status_of(ended), ended.exit_code) == (Status.EXITED, 5)
    assert ended.finished is not None
    assert ended.started is not None
    assert ended.finished >= ended.started
    assert mounts_below(node.state_dir) == []
    remove_container(store, ended)
    assert store.list() == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_stop_sends_the_signal_of_the_image(node: Node, runtime: str) -> None:
    script = f"trap 'echo bye; exit 4' QUIT; trap '' TERM; echo ready; {LOOP}"
    store, record = start(node, script, "--runtime", runtime, "--name", "web")
    log = read_container_log(store, record, follow=True)
    assert next(log).content == b"ready\n"
    assert status_of(record) is Status.RUNNING
    stop_container(store, record)
    assert store.find("web").exit_code == 4
    assert [entry.content for entry in log] == [b"bye\n"]


def test_stop_kills_a_process_that_ignores_signals(node: Node) -> None:
    store, record = start(node, f"trap '' QUIT; echo ready; {LOOP}")
    next(read_container_log(store, record, follow=True))
    stop_container(store, record, timeout_seconds=0.1)
    assert store.find(record.id).exit_code == 137


def test_detached_and_removed_on_exit(node: Node) -> None:
    store, record = start(node, "read x", "--rm", "-i")
    assert status_of(store.find(record.id)) is Status.RUNNING
    stop_container(store, record, timeout_seconds=0)
    assert store.list() == []
    until(lambda: not store.directory(record).exists())  # its record is removed first


def test_a_container_that_exits_at_once(node: Node) -> None:
    store, record = start(node, "exit 0")
    stop_container(store, record)
    assert store.find(record.id).exit_code == 0


def test_a_running_container_is_not_removed(node: Node) -> None:
    store, record = start(node, LOOP)
    with pytest.raises(UsageError, match="cannot remove a running container"):
        remove_container(store, record)
    remove_container(store, record, force=True)
    assert store.list() == []


def test_a_name_in_use(node: Node) -> None:
    _, record = start(node, LOOP, "--name", "web")
    done = node.run("-d", "--name", "web", "image", "true")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        f'firstread: the container name "web" is already in use by container {record.short_id}\n'
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_errors_before_the_start_reach_the_command(node: Node, runtime: str) -> None:
    done = node.run("-d", "--runtime", runtime, "image", "nosuch")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == 'firstread: exec: "nosuch": executable not found in $PATH\n'
    assert ContainerStore(node.state_dir).list() == []


def test_terminal_in_the_background(node: Node) -> None:
    store, record = start(node, "tty; test -t 2 && echo all", "-t")
    assert output(store, record) == b"/dev/pts/0\r\nall\r\n"


def test_input_stays_open(node: Node) -> None:
    store, record = start(node, "read line; echo never", "-i")
    time.sleep(0.2)
    assert status_of(store.find(record.id)) is Status.RUNNING


def test_the_monitor_survives_its_terminal(node: Node, tmp_path: Path) -> None:
    """The end of the session that started a container sends SIGHUP to all its processes."""
    argv = node.argv("-d", "image", "sh", "-c", f"trap '' HUP; {LOOP}")
    with subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE) as process:
        assert process.stdout
        container_id = process.stdout.read().decode().strip()
    store = ContainerStore(node.state_dir)
    record = store.find(container_id)
    assert record.attendant
    assert os.getsid(record.attendant.pid) != process.pid
    assert os.readlink(f"/proc/{record.attendant.pid}/cwd") == "/"
    links = os.listdir(f"/proc/{record.attendant.pid}/fd")
    held = {os.readlink(f"/proc/{record.attendant.pid}/fd/{number}") for number in links}
    assert not any("pts" in target or str(Path.cwd()) in target for target in held)


def test_the_monitor_is_killed(node: Node) -> None:
    """The container continues; its end is unknown, and removing still cleans up."""
    store, record = start(node, "trap '' PIPE; read x", "-i", "--rm")
    assert record.attendant
    assert record.process
    os.kill(record.attendant.pid, signal.SIGKILL)
    # Its input ends with the monitor, and so does the container.
    until(lambda: status_of(store.find(record.id)) is Status.DEAD)
    assert mounts_below(node.state_dir)
    remove_container(store, store.find(record.id))
    assert store.list() == []


def test_the_command_in_the_foreground_is_killed(node: Node) -> None:
    argv = node.argv("--name", "web", "image", "sh", "-c", f"echo ready; {LOOP}")
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.kill()
    store = ContainerStore(node.state_dir)
    record = store.find("web")
    assert status_of(record) is Status.RUNNING
    stop_container(store, record, timeout_seconds=0)
    assert status_of(store.find("web")) is Status.DEAD
    remove_container(store, store.find("web"))


def test_the_end_cannot_be_recorded(node: Node) -> None:
    """On a full disk the container's output stays, and its exit code is the command's."""
    argv = node.argv(
        "-i", "--name", "web", "image", "sh", "-c", "echo kept >/tmp/x; read x; exit 3"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stderr=pipe, text=True) as process:
        store = ContainerStore(node.state_dir)
        until(lambda: any(status_of(record) is Status.RUNNING for record in store.list()))
        directory = store.directory(store.find("web"))
        until((directory / "upper/tmp/x").exists)
        (directory / "record.json.new").mkdir()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    assert "is not written down: cannot write the container's record" in errors
    assert (directory / "upper/tmp/x").read_text() == "kept\n"
    assert status_of(store.find("web")) is Status.DEAD


def test_the_hooks(node: Node, tmp_path: Path) -> None:
    """Start, first output and end, in this order, and where they happen."""
    script = f"""
import os, sys
from pathlib import Path
from firstread.run.lifecycle import run_container
from firstread.run.options import RunOptions
from firstread.run.overlay import mounts_below
detach = sys.argv[1] == "detach"
events = Path({str(tmp_path / "events")!r})
state = Path({str(node.state_dir)!r})
def note(text):
    with events.open("a") as file:
        file.write(f"{{text}} {{os.getpid() == me}}\\n")
me = os.getpid()
code = run_container(
    Path({str(node.lower)!r}), {{}},
    RunOptions(command=("/bin/sh", "-c", "sleep 0.1; echo x; exit 6"), detach=detach, remove=True),
    state,
    on_start=lambda record: note(f"start {{record.process is not None}}"),
    on_first_output=lambda: note("output"),
    on_unused=lambda: note(f"unused {{mounts_below(state) == []}}"),
)
sys.exit(code)
"""
    for mode, code, expected in (
        ("foreground", 6, ["start True True", "output True", "unused True True"]),
        ("detach", 0, ["start True True", "unused True False"]),
    ):
        (tmp_path / "events").unlink(missing_ok=True)
        argv = [sys.executable, "-c", script, mode]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, "")
        store = ContainerStore(node.state_dir)
        until(lambda store=store: not store.list())  # type: ignore[misc]
        assert (tmp_path / "events").read_text().splitlines() == expected


def test_many_at_once(node: Node) -> None:
    processes = [
        subprocess.Popen(node.argv("-d", "image", "sh", "-c", "exit 3"), stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    for process in processes:
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    store = ContainerStore(node.state_dir)
    for record in store.list():
        stop_container(store, record)
    assert [record.exit_code for record in store.list()] == [3] * 8
    assert len({record.name for record in store.list()}) == 8
