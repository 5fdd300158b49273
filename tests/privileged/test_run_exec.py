# SPDX-License-Identifier: Apache-2.0
"""``firstread exec``: another process in a container, from its user's view."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.run.containers import ContainerStore
from firstread.run.control import remove_container
from firstread.run.overlay import mounts_below
from firstread.testing.command import program
from firstread.testing.containers import Node, find_busybox, make_rootfs
from firstread.testing.machine import until
from firstread.testing.patience import PATIENCE_S
from firstread.testing.terminal import Terminal

pytestmark = pytest.mark.privileged

RUNTIMES = [name for name in ("crun", "runc") if shutil.which(name)]
LOOP = "while :; do sleep 0.2; done"


class Container:
    """A running container named ``web``."""

    def __init__(self, folder: Path, runtime: str) -> None:
        busybox = find_busybox()
        assert busybox
        config = {"Env": ["PATH=/bin", "PS1=> "], "WorkingDir": "/srv"}
        (folder / "root").mkdir(mode=0o700)
        self.node = Node(
            make_rootfs(folder / "rootfs", busybox), folder / "root/containers", config
        )
        self.store = ContainerStore(self.node.state_dir)
        self._places = ("--root", str(folder / "root"), "--run-dir", str(folder / "run"))
        flags = ("-d", "--name", "web", "--runtime", runtime, "-e", "A=1")
        done = self.node.run(*flags, "image", "sh", "-c", LOOP)
        assert (done.returncode, done.stderr) == (0, "")

    def argv(self, *arguments: str) -> list[str]:
        return program("exec", *self._places, *arguments)

    def exec(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        done = subprocess.run(
            self.argv(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def scratch(self) -> list[Path]:
        return list(self.store.directory(self.store.find("web")).glob("exec-*"))


@pytest.fixture(scope="module", params=RUNTIMES)
def web(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    if os.geteuid() or not find_busybox():
        pytest.skip("needs root and busybox-static")
    folder = tmp_path_factory.mktemp("exec")
    container = Container(folder, request.param)
    yield container
    assert container.scratch() == []
    remove_container(container.store, container.store.find("web"), force=True)
    assert mounts_below(folder) == []


def test_output_input_and_code(web: Container) -> None:
    assert web.exec("web", "sh", "-c", "echo out; echo err >&2; exit 5") == (5, "out\n", "err\n")
    assert web.exec("-i", "web", "cat", stdin="to it") == (0, "to it", "")
    assert web.exec("web", "cat", stdin="not to it") == (0, "", "")
    assert web.exec("web", "sh", "-c", "kill -9 $$") == (137, "", "")
    assert web.exec("web", "echo", "--json", "-x") == (0, "--json -x\n", "")


def test_it_inherits_from_the_first_process(web: Container) -> None:
    """Its namespaces, filter, capabilities, control group, directory and variables."""
    shown = (
        "pwd; echo $A $HOME; readlink /proc/$1/ns/*; grep -E 'Cap|Seccomp:|NoNew' /proc/$1/status"
    )
    _, of_ours, _ = web.exec("web", "sh", "-c", shown, "sh", "self")
    _, of_first, _ = web.exec("web", "sh", "-c", shown, "sh", "1")
    assert of_ours == of_first
    assert of_ours.startswith("/srv\n1 /root\n")


def test_a_user_of_its_own(web: Container) -> None:
    script = "id -u; id -g; id -G; echo $HOME; grep CapEff /proc/self/status"
    code, output, errors = web.exec("-u", "app", "web", "sh", "-c", script)
    assert (code, errors) == (0, "")
    uid, gid, groups, home, effective = output.splitlines()
    assert (uid, gid, home) == ("1000", "1001", "/home/app")
    assert set(groups.split()) == {"1001", "50", "29"}
    assert int(effective.split()[1], 16) == 0
    assert web.exec("-u", "7:8", "web", "sh", "-c", "id -u; id -g")[1] == "7\n8\n"


def test_variables_and_directory(web: Container) -> None:
    script = "echo $A-$B-$C; pwd"
    flags = ("-e", "A=2", "--env=B=x y", "-eC=3", "-w", "/tmp")
    assert web.exec(*flags, "web", "sh", "-c", script) == (0, "2-x y-3\n/tmp\n", "")


def test_a_secret_is_in_no_command_line(web: Container) -> None:
    secret = os.urandom(8).hex()
    argv = web.argv("-i", "-e", f"A={secret}", "web", "sh", "-c", "echo $A; read go")
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == f"{secret}\n"
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        until(lambda: not any((scratch / "process.json").exists() for scratch in web.scratch()))
        process.stdin.write("go\n")
    assert secret.encode() not in seen
    assert b"A=*\0" in seen


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("web", "nosuch"), 127, 'exec: "nosuch": executable not found in $PATH'),
        (("web", "/bin/nosuch"), 127, 'exec: "/bin/nosuch": no such file or directory'),
        (("web", "/bin/text"), 126, 'exec: "/bin/text": permission denied'),
        (("-u", "nosuch", "web", "true"), 125, "unable to find user nosuch"),
        (("-w", "here", "web", "true"), 125, "the working directory 'here' is invalid"),
        (("-it", "web", "true"), 125, "the input device is not a TTY"),
        (("nosuch", "true"), 125, "no such container: nosuch"),
        (("web",), 125, "Missing argument 'CMD...'"),
    ],
)
def test_processes_that_cannot_start(
    web: Container, arguments: tuple[str, ...], code: int, words: str
) -> None:
    ended, output, errors = web.exec(*arguments)
    assert (ended, output) == (code, "")
    assert errors.startswith(f"firstread: {words}")


def test_a_container_that_does_not_run(web: Container) -> None:
    done = web.node.run("--name", "done", "image", "true")
    assert done.returncode == 0
    short = web.store.find("done").short_id
    expected = f"firstread: container {short} is not running\n  see ps -a\n"
    assert web.exec("done", "true") == (125, "", expected)
    remove_container(web.store, web.store.find("done"))


def test_a_signal_is_forwarded(web: Container) -> None:
    script = f"trap 'echo got; exit 3' TERM; echo ready; {LOOP}"
    argv = web.argv("web", "sh", "-c", script)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "got\n"
        assert process.wait(PATIENCE_S) == 3


def test_a_terminal(web: Container) -> None:
    with Terminal(web.argv("-it", "web", "sh")) as shell:
        shell.expect("> ")
        shell.type("tty; stty size; echo $TERM\r")
        shell.expect("/dev/pts/0\r\n33 77\r\nxterm\r\n")
        shell.type("exit 4\r")
        assert shell.process.wait(PATIENCE_S) == 4
        assert shell.restored()


def test_the_end_of_the_container_ends_it(web: Container) -> None:
    done = web.node.run("-d", "--name", "short", "image", "sh", "-c", LOOP)
    assert done.returncode == 0
    argv = web.argv("short", "sh", "-c", f"echo ready; {LOOP}")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        remove_container(web.store, web.store.find("short"), force=True)
        assert process.wait(PATIENCE_S) == 137
    until(lambda: mounts_below(web.node.state_dir / "containers") != [])  # only those of web
