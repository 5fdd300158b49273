# SPDX-License-Identifier: Apache-2.0
"""The next version of a daemon replaces it during reads."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstread.testing.command import Ran, program
from firstread.testing.daemon import Daemon
from firstread.testing.installation import Installation
from firstread.testing.lazymount import output
from firstread.testing.pacedreader import PacedReader
from firstread.testing.patience import PATIENCE_S
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.scripted import ScriptedRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 64 * KiB
COUNT = 300  # files of `many` that are read
EIO = "errno 5"


class Waiting:
    """A daemon and three readers that wait for a dead registry.

    Args:
        scratch: directory of the daemon.
        registry: receives the image.
        python: runs the daemon.
    """

    def __init__(self, scratch: Path, registry: ScriptedRegistry, daemon: Daemon) -> None:
        reference = f"{registry.host}/lazy/plain:1"
        self.image = put_plain_image(f"docker://{reference}")
        self.place = daemon.mount(reference)
        self.daemon, self.registry = daemon, registry
        registry.script("GET /blobs/ status 503 x100000")
        self.numbers = (0, 3, 5)
        self.readers = [daemon.reading(self.place / f"f{n}", how="random") for n in self.numbers]
        self.wait()

    def wait(self) -> None:
        """Wait until all of them wait."""
        self.daemon.wait(lambda: self.daemon.status()["fetcher"]["waiting_reads"] == 3)

    def finish(self) -> None:
        """Repair the registry, and check that every read gets its bytes."""
        self.registry.script("")
        expected = [self.image.summary(number) for number in self.numbers]
        assert [output(reader) for reader in self.readers] == expected


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        yield running


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "installation")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def asked(daemon: Daemon, question: bytes) -> socket.socket:
    """Return a connection to the supervisor that has sent a request."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(10)
    connection.connect(str(daemon.run_dir / "supervisor.sock"))
    connection.send(question)
    return connection


def test_six_upgrades_during_a_full_read_and_no_read_fails(
    daemon: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(many[0])
    counts = []
    with PacedReader(place, COUNT, stretches=6) as reader:
        for number in range(1, 7):
            reader.go_on()
            if number % 2:
                ran = daemon.run("daemon", "--reload")
                line = f"firstread 0.1.0 serves now (process {daemon.supervisor})\n"
                assert ran == Ran(0, line, "")
            else:
                daemon.replace()
            daemon.wait_version(number)
            counts.append((descriptors(daemon.supervisor), descriptors(daemon.fetcher)))
        expected = [many[1].summary(number, 0, SECTOR).split()[1] for number in range(COUNT)]
        assert reader.digests() == expected
    assert daemon.status()["fetcher"]["restarts"] == 0
    assert daemon.mounted(place)["failed_reads"] == 0
    assert max(counts[-1][0], counts[-2][0]) <= max(counts[0][0], counts[1][0]) + 2, counts
    assert not daemon.log("a read fails")


def test_waiting_reads_outlive_every_kind_of_upgrade(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    with Daemon(tmp_path) as daemon:
        waiting = Waiting(tmp_path, registry, daemon)
        supervisor = daemon.supervisor
        os.kill(supervisor, signal.SIGHUP)
        daemon.wait_version(1)
        assert daemon.supervisor == supervisor
        waiting.wait()
        daemon.replace()
        daemon.wait_version(2)
        waiting.wait()
        os.kill(daemon.supervisor, signal.SIGKILL)
        daemon.wait(lambda: daemon.log("takes its place"))
        waiting.wait()
        assert daemon.run("daemon", "--reload").code == 0
        waiting.wait()
        os.kill(daemon.fetcher, signal.SIGKILL)
        waiting.finish()
        assert daemon.status()["supervisor"]["upgrades"] == 3


def test_a_new_version_takes_over_and_a_broken_one_does_not(
    tmp_path: Path, registry: ScriptedRegistry, installation: Installation
) -> None:
    with Daemon(tmp_path, python=installation.python) as daemon:
        waiting = Waiting(tmp_path, registry, daemon)
        for broken in (
            {"daemon__supervisor": "import nothing_of_this_name"},
            {"fetch__lane": "raise SystemExit('cannot work here')"},
            {"daemon__handover": "FORMATS = (99,)"},
        ):
            installation.install("0.3.0", **broken)
            ran = daemon.run("daemon", "--reload")
            assert (ran.code, ran.stdout) == (5, "")
            assert "no upgrade: the installed version does not start" in ran.stderr
            assert "the daemon goes on as it was" in ran.stderr
        installation.install("0.3.0", daemon__serve="def _await_start(*_): sys.exit(3)")
        ran = daemon.run("daemon", "--reload")
        assert ran.code == 5
        assert "the new fetcher ended with 3: the one before goes on" in ran.stderr
        waiting.wait()
        assert daemon.status()["fetcher"]["version"] == "0.1.0"
        installation.install("0.4.0")
        ran = daemon.run("daemon", "--reload")
        assert ran.stdout == f"firstread 0.4.0 serves now (process {daemon.supervisor})\n"
        status = daemon.status()
        assert (status["supervisor"]["version"], status["fetcher"]["version"]) == ("0.4.0",) * 2
        waiting.finish()


def test_a_daemon_can_be_stopped_during_a_reload(daemon: Daemon) -> None:
    supervisor = daemon.supervisor
    line = Path(f"/proc/{supervisor}/cmdline")
    os.kill(supervisor, signal.SIGHUP)
    daemon.wait(lambda: b"--inherit" in line.read_bytes())  # for a moment, while it loads
    daemon.end_all(signal.SIGTERM)
    assert daemon.supervisor == supervisor
    assert not daemon.client.alive()
    assert not daemon.log("takes its place")


def test_a_hangup_during_a_reload_causes_another(daemon: Daemon) -> None:
    supervisor = daemon.supervisor
    line = Path(f"/proc/{supervisor}/cmdline")
    os.kill(supervisor, signal.SIGHUP)
    daemon.wait(lambda: b"--inherit" in line.read_bytes())  # it may have read its configuration
    os.kill(supervisor, signal.SIGHUP)
    daemon.wait_version(2)


def test_without_an_interpreter_the_old_version_goes_on(
    tmp_path: Path, registry: ScriptedRegistry, installation: Installation
) -> None:
    with Daemon(tmp_path, python=installation.python) as daemon:
        waiting = Waiting(tmp_path, registry, daemon)
        python = Path(installation.python)
        python.rename(python.with_name("away"))
        ran = daemon.run("daemon", "--reload")
        assert ran.code == 5
        assert "does not start" in ran.stderr
        assert f"{python}: No such file or directory" in ran.stderr
        os.kill(daemon.supervisor, signal.SIGHUP)
        daemon.wait(lambda: len(daemon.log("no upgrade")) == 2)
        waiting.wait()
        python.with_name("away").rename(python)
        waiting.finish()


def test_the_fetcher_keeps_the_reads_until_the_installation_is_repaired(
    tmp_path: Path, registry: ScriptedRegistry, installation: Installation
) -> None:
    with Daemon(tmp_path, python=installation.python) as daemon:
        waiting = Waiting(tmp_path, registry, daemon)
        installation.install(daemon__supervisor="import nothing_of_this_name")
        os.kill(daemon.supervisor, signal.SIGKILL)
        daemon.wait(lambda: "installation of firstread is broken" in daemon.output())
        installation.install("0.5.0")
        daemon.wait(lambda: "takes its place" in daemon.output())
        daemon.wait(lambda: daemon.status()["supervisor"]["version"] == "0.5.0")
        waiting.finish()


def test_a_configuration_is_reloaded_and_a_wrong_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[policy]\nstall_s = 60\n")
    with Daemon(tmp_path, "--config", str(path), "--workers", "3") as daemon:
        path.write_text("[policy]\nstal_s = 5\n")
        ran = daemon.run("daemon", "--reload")
        assert ran.code == 5
        assert "unknown field `stal_s`" in ran.stderr
        path.write_text('[node]\nlog_level = "DEBUG"\n')
        assert daemon.run("daemon", "--reload").code == 0
        line = Path(f"/proc/{daemon.fetcher}/cmdline").read_bytes().split(b"\0")[3]
        config = json.loads(line)["settings"]["config"]
        assert config["node"]["log_level"] == "DEBUG"
        assert config["node"]["workers"] == 3
        assert config["policy"]["stall_s"] == 300.0


def test_a_successor_that_gives_up_leaves_everything_as_it_was(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    with Daemon(tmp_path) as daemon:
        waiting = Waiting(tmp_path, registry, daemon)
        question = {"ask": "replace", "root": str(daemon.root), "format": 1}
        for _ in range(2):
            successor = asked(daemon, json.dumps(question).encode())
            word, fds, _, _ = socket.recv_fds(successor, 65536, 253)
            assert word == b"handover"
            for fd in fds:
                os.close(fd)
            successor.close()
        daemon.wait(lambda: len(daemon.log("wanted to take the place of this one")) == 2)
        waiting.wait()
        another = daemon.reading(waiting.place / "f7")
        daemon.wait(lambda: daemon.status()["fetcher"]["waiting_reads"] == 4)
        waiting.finish()
        assert output(another) == waiting.image.summary(7)


def test_a_successor_that_gives_up_late_does_not_cost_the_fetcher_its_life(
    tmp_path: Path, many: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--health", "2") as daemon:
        place, fetcher = daemon.mount(many[0]), daemon.fetcher
        question = {"ask": "replace", "root": str(daemon.root), "format": 1}
        with asked(daemon, json.dumps(question).encode()) as successor:
            _, fds, _, _ = socket.recv_fds(successor, 65536, 253)
            for fd in fds:
                os.close(fd)
            reader = daemon.reading(place / "f9", how="random")
            with pytest.raises(subprocess.TimeoutExpired):
                reader.wait(4)
        assert output(reader) == many[1].summary(9)
        assert daemon.fetcher == fetcher
        assert not daemon.log("does not answer")


@pytest.mark.parametrize(
    "question", [b"", b"{", b"[]", b"\xff", b'{"ask": "all"}', b'{"ask": 5}', b"x" * 60000]
)
def test_a_question_that_makes_no_sense_is_not_answered(standing: Daemon, question: bytes) -> None:
    with asked(standing, question) as connection:
        assert connection.recv(100) == b""
    assert standing.run("status").code == 0


def test_only_root_may_ask(daemon: Daemon) -> None:
    path = daemon.run_dir / "supervisor.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o666)  # so that only the credentials decide
    for folder in list(path.parents)[:-2]:
        folder.chmod(folder.stat().st_mode | 0o005)
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.settimeout(10)\n"
        "s.connect(sys.argv[1])\n"
        "try:\n"
        '    s.send(b\'{"ask": "reload"}\')\n'
        "    print(s.recv(100))\n"
        "except OSError as exc:\n"
        "    print(b'')\n"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    python = [sys.executable, "-I", "-S", "-c", code, str(path)]
    done = subprocess.run(
        [*command, *python], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.stdout, done.stderr) == ("b''\n", "")
    assert not daemon.log("reloading")


def test_a_daemon_of_another_root_keeps_its_place(standing: Daemon, tmp_path: Path) -> None:
    places = ("--root", str(tmp_path / "other"), "--run-dir", str(standing.run_dir))
    command = program("daemon", "--replace", *places)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 5
    assert f"the daemon here has the --root {standing.root}" in done.stderr
    assert standing.run("status").code == 0


def test_nothing_to_replace_or_reload(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--replace")
    ran = daemon.run("daemon", "--reload")
    assert ran.code == 5
    assert ran.stderr.endswith("start one: firstread daemon\n")
    with daemon:
        assert daemon.status()["supervisor"]["upgrades"] == 0
        ran = daemon.run("daemon", "--reload", "--workers", "3")
        assert ran.code == 2
        assert "--reload takes no other option" in ran.stderr


def test_a_command_in_progress_is_answered(tmp_path: Path, registry: ScriptedRegistry) -> None:
    with Daemon(tmp_path) as daemon:
        reference = f"{registry.host}/lazy/plain:1"
        put_plain_image(f"docker://{reference}")
        registry.script("GET /manifests/ slow 3")
        before = len(registry.asked("/manifests/"))
        place = tmp_path / "mnt"
        place.mkdir()
        places = ("--root", str(daemon.root), "--run-dir", str(daemon.run_dir))
        command = program("mount", reference, str(place), *places)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as mounting:
            daemon.wait(lambda: len(registry.asked("/manifests/")) > before)
            fetcher = daemon.fetcher
            reloading = threading.Thread(target=daemon.run, args=("daemon", "--reload"))
            reloading.start()
            text, _ = mounting.communicate(timeout=PATIENCE_S)
        reloading.join(timeout=PATIENCE_S)
        assert mounting.returncode == 0
        assert f"{reference} is mounted at {place}" in text
        assert daemon.fetcher != fetcher
        assert daemon.mounted(place)["present"] == 0


def more_than_the_channel_holds(daemon: Daemon, reference: str) -> subprocess.Popen[str]:
    """Stop the fetcher, and start a reader of all files at once."""
    place = daemon.mount(reference)
    fetcher, supervisor = daemon.fetcher, daemon.supervisor
    os.kill(fetcher, signal.SIGSTOP)
    paths = [place / f"f{number}" for number in range(COUNT)]
    reader = daemon.reading_files(paths, SECTOR, how="random")
    daemon.wait(lambda: descriptors(supervisor) > COUNT)
    return reader


def test_unsent_events_outlive_the_supervisor(daemon: Daemon, many: tuple[str, PlainImage]) -> None:
    reader = more_than_the_channel_holds(daemon, many[0])
    (fetcher,), supervisor = daemon.children(), daemon.supervisor
    os.kill(supervisor, signal.SIGKILL)
    os.kill(fetcher, signal.SIGCONT)
    daemon.wait_supervisor(fetcher)
    expected = [many[1].summary(number, 0, SECTOR) for number in range(COUNT)]
    assert output(reader).splitlines() == expected


def test_unsent_events_outlive_an_heir_that_gives_up(
    daemon: Daemon, many: tuple[str, PlainImage]
) -> None:
    reader = more_than_the_channel_holds(daemon, many[0])
    question = {"ask": "replace", "root": str(daemon.root), "format": 1}
    with asked(daemon, json.dumps(question).encode()) as successor:
        word, fds, _, _ = socket.recv_fds(successor, 65536, 253)
        assert word == b"handover"
        for fd in fds:
            os.close(fd)
    daemon.wait(lambda: daemon.log("wanted to take the place of this one"))
    os.kill(daemon.children()[0], signal.SIGCONT)
    expected = [many[1].summary(number, 0, SECTOR) for number in range(COUNT)]
    assert output(reader).splitlines() == expected


def test_unsent_events_outlive_a_failed_reload(
    tmp_path: Path, installation: Installation, many: tuple[str, PlainImage]
) -> None:
    with Daemon(tmp_path, "--health", "60", python=installation.python) as daemon:
        reader = more_than_the_channel_holds(daemon, many[0])
        (fetcher,) = daemon.children()
        installation.install("0.3.0", daemon__serve="def _await_start(*_): sys.exit(3)")
        ran = daemon.run("daemon", "--reload")
        assert "the new fetcher ended with 3: the one before goes on" in ran.stderr
        os.kill(fetcher, signal.SIGCONT)
        expected = [many[1].summary(number, 0, SECTOR) for number in range(COUNT)]
        assert output(reader).splitlines() == expected
        assert daemon.fetcher == fetcher


@pytest.fixture
def running() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Starts processes, and ends each of them."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def test_watching_continues_through_an_upgrade(
    daemon: Daemon, many: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(many[0])
    with daemon.watching(place) as watcher:
        assert daemon.run("daemon", "--reload").code == 0
        daemon.replace()
        daemon.wait_version(2)
        assert watcher.stdout is not None
        os.set_blocking(watcher.stdout.fileno(), False)
        watcher.stdout.read()  # what happened before
        seen = ""
        for number in range(50):  # it may take a moment until it listens again
            daemon.reading(place / f"f{number}").wait(timeout=PATIENCE_S)
            if select.select([watcher.stdout], [], [], 0.2)[0]:
                seen += watcher.stdout.read() or ""
            if '"event": "read"' in seen:
                break
        assert '"event": "read"' in seen
        daemon.end_all(signal.SIGTERM)
        assert watcher.wait(timeout=PATIENCE_S) == 0


def test_users_of_a_detached_mount_read_on_after_an_upgrade(
    daemon: Daemon,
    many: tuple[str, PlainImage],
    running: Callable[[list[str]], subprocess.Popen[str]],
) -> None:
    place = daemon.mount(many[0])
    code = (
        "import hashlib, sys\n"
        "files = [open(f'{sys.argv[1]}/f{number}', 'rb') for number in range(3)]\n"
        "for file in files:\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    print(hashlib.sha256(file.read()).hexdigest(), flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(place)]
    user = running(command)
    assert user.stdout is not None
    assert user.stdout.readline() == "open\n"
    assert daemon.run("umount", "--lazy", place).code == 0
    for number in range(3):
        text = f"{many[1].summary(number, 0, SECTOR).split()[1]}\n"
        assert user.stdin is not None
        user.stdin.write("\n")
        user.stdin.flush()
        assert user.stdout.readline() == text
        if number < 2:
            assert user.stdout.readline() == "open\n"
        if number == 0:
            assert daemon.run("daemon", "--reload").code == 0
        if number == 1:
            daemon.end_all(signal.SIGKILL)
            daemon.start()
    assert user.wait(timeout=PATIENCE_S) == 0
    assert len(os.listdir(daemon.root / "mounts")) == 1
    assert daemon.run("daemon", "--reload").code == 0
    daemon.wait(lambda: os.listdir(daemon.root / "mounts") == [])  # by the next fetcher
