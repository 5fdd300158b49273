# SPDX-License-Identifier: Apache-2.0
"""The verbs for containers without a running container: usage, lists, cost of a start."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firstread import __version__
from firstread.cli.completion import SHELLS
from firstread.cli.nodestate import container_store
from firstread.cli.timeline import Timeline
from firstread.errors import NodeError
from firstread.run.containerlog import log_time
from firstread.run.containers import ContainerStore, Record, new_id, now
from firstread.run.processes import ProcessIdentity
from firstread.testing.command import Ran, firstread, program

RUN_DOC = Path(__file__).parents[3] / "docs/run.md"
HEAVY = {
    *("asyncio", "email", "hashlib", "http", "random", "rich", "secrets", "ssl", "tempfile"),
    *("urllib3", "zstandard"),
}
GONE = ProcessIdentity(pid=2**22, start_ticks=1, boot_id="another")


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, ...]:
    return "--root", str(tmp_path / "root"), "--run-dir", str(tmp_path / "run")


@pytest.fixture
def store(tmp_path: Path) -> ContainerStore:
    return container_store(tmp_path / "root")


def add(store: ContainerStore, name: str, **known: Any) -> Record:
    known = {"command": ("sleep", "60"), "image": "x/y", "created": now(), **known}
    return store.create(Record(id=new_id(), **known), name)


USAGE = {
    "option": (["--nosuch"], "No such option '--nosuch'"),
    "value": (["--pull", "often", "x"], "Invalid value for '--pull'"),
    "no image": ([], "Missing argument 'REF'"),
    "name": (["--name", "-", "x"], "invalid container name (-)"),
    "network": (["--network", "bridge", "x"], "network bridge not found"),
    "volume": (["-v", "data:/x", "x"], "invalid volume specification: 'data:/x'"),
    "twice": (["-v", "/a:/x", "--tmpfs", "/x/", "x"], "duplicate mount point: /x/"),
    "reference": (["A/B"], "'A/B' is not the name of an image"),
    "published": (["-p", "80:80", "x"], "no port can be published: there is no bridge"),
    "published, long": (["--publish=80:80", "x"], "no port can be published: there is no bridge"),
    "published, all": (["-P", "x"], "no port can be published: there is no bridge"),
    "no terminal": (["-it", "x"], "the input device is not a TTY"),
    "no runtime": (["--runtime", "nosuch", "x"], "OCI runtime 'nosuch' is not installed"),
    "no device": (["--device", "/dev/nosuch", "x"], "error gathering device information"),
    "no place for a record": (["--record", "/no/such", "x"], "/no/such cannot be written"),
    "no capability": (["--cap-add", "nosuch", "x"], "unknown capability: 'nosuch'"),
}


@pytest.mark.parametrize(("arguments", "words"), USAGE.values(), ids=USAGE)
def test_wrong_usage_of_run(
    places: tuple[str, ...], tmp_path: Path, arguments: list[str], words: str
) -> None:
    """run exits as docker run does, and starts no daemon."""
    ran = firstread("run", *places, *arguments)
    assert (ran.code, ran.stdout) == (125, "")
    assert ran.stderr.startswith(f"firstread: {words}")
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "root").rglob("record.json"))


def test_a_name_that_is_taken_starts_no_daemon(
    places: tuple[str, ...], store: ContainerStore, tmp_path: Path
) -> None:
    add(store, "web", exit_code=0)
    ran = firstread("run", *places, "--name", "web", "localhost:1/x")
    assert ran.code == 125
    assert 'the container name "web" is already in use' in ran.stderr
    assert not (tmp_path / "run").exists()
    assert len(store.list()) == 1


def test_a_daemon_that_does_not_start_leaves_no_container(
    places: tuple[str, ...], store: ContainerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTREAD_START_DAEMON", "0")
    ran = firstread("run", *places, "localhost:1/x")
    assert ran.code == 125
    assert "none may be started" in ran.stderr
    assert store.list() == []


NEEDLESS = {
    "umount": (["umount", "/nowhere"], 2, "/nowhere is not a mount of firstread"),
    "umount of another": (["umount", "/proc"], 2, "/proc is not a mount of firstread"),
    "fetch": (["fetch", "--all", "x"], 2, "x is not mounted"),
    "login, nobody": (["login", "localhost:1"], 2, "name the user"),
    "login, nowhere": (["login", "oci:x/y"], 2, ""),
    "stop": (["daemon", "--stop"], 5, "no daemon runs in"),
    "reload": (["daemon", "--reload"], 5, "no daemon runs in"),
    "status": (["status"], 5, "no daemon answers"),
    "version": (["version"], 0, ""),
}


@pytest.mark.parametrize(("arguments", "code", "words"), NEEDLESS.values(), ids=NEEDLESS)
def test_commands_that_need_no_daemon_start_none(
    places: tuple[str, ...], tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    ran = firstread(*arguments, *places)
    assert ran.code == code
    assert ran.stderr.startswith(f"firstread: {words}" if code else "")
    assert not (tmp_path / "run").exists()


def test_the_versions(places: tuple[str, ...], tmp_path: Path) -> None:
    assert [line.split(maxsplit=1) for line in _lines(firstread("version", *places))] == [
        ["firstread", __version__],
        ["daemon", f"none runs in {tmp_path / 'run'}"],
        ["kernel", "{0.sysname} {0.release} {0.machine}".format(os.uname())],
        ["python", platform.python_version()],
    ]
    document = firstread("version", "--json", *places).json
    assert document.pop("daemon") is None
    described = (RUN_DOC.parent / "json.md").read_text().partition("## version\n")[2]
    assert set(document) | {"daemon", "daemon.version", "daemon.pid"} == {
        name
        for cell in re.findall(r"^\| (.+?) \|", described, re.MULTILINE)
        for name in re.findall(r"`([\w.]+)`", cell)
    }


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_complete(shell: str) -> None:
    assert f"firstread completion {shell}" in RUN_DOC.read_text()
    ran = firstread("completion", shell)
    assert (ran.code, ran.stderr) == (0, "")
    assert f"_FIRSTREAD_COMPLETE={shell}_complete" in ran.stdout
    if shutil.which(shell):
        command = [shell, "-n"]
        checked = subprocess.run(
            command, input=ran.stdout, capture_output=True, text=True, check=True
        )
        assert checked.stderr == ""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("firstread ex", {"exec", "export", "extract"}),
        ("firstread exec --wor", {"--workdir"}),
        ("firstread cache ", {"ls", "prune", "verify"}),
        ("firstread run --pull ", {"missing", "always", "never"}),
    ],
)
def test_completions(line: str, offered: set[str]) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    env = os.environ | {"_FIRSTREAD_COMPLETE": "bash_complete"} | words
    done = subprocess.run(program(), capture_output=True, text=True, env=env, check=True)
    assert {item.partition(",")[2] for item in done.stdout.splitlines()} == offered


def test_arguments_of_the_container_are_not_ours(places: tuple[str, ...]) -> None:
    ran = firstread("run", *places, "A/B", "--json", "--nosuch")
    assert (ran.code, ran.stdout) == (125, "")
    assert ran.stderr.startswith("firstread: 'A/B' is not")


def test_every_option_is_documented() -> None:
    described = RUN_DOC.read_text()
    listed = set(re.findall(r"--[a-z][a-z-]+", firstread("run", "--help").stdout))
    options = listed - {"--help", "--retries"}
    assert not {option for option in options if not re.search(rf"{option}\b", described)} - {
        *("--interactive", "--tty", "--detach", "--env", "--volume", "--workdir", "--user"),
        *("--memory", "--label"),  # by their short form
    }


def test_ps(places: tuple[str, ...], store: ContainerStore) -> None:
    ended = add(store, "web", exit_code=3, created=now() - 7200)
    dead = add(store, "db", attendant=GONE, command=("sh", "-c", "x " * 40))
    assert firstread("ps", *places).stdout.splitlines() == [
        "CONTAINER ID   IMAGE   COMMAND   CREATED   STATUS   NAMES"
    ]
    rows = [re.split(r" {2,}", row) for row in _lines(firstread("ps", "-a", *places))[1:]]
    command = ("sh -c '" + "x " * 40)[:29] + "…"
    assert rows == [
        [dead.short_id, "x/y", command, "0 s ago", "dead", "db"],
        [ended.short_id, "x/y", "sleep 60", "2 h ago", "exited (3)", "web"],
    ]
    assert _lines(firstread("ps", "-aq", *places)) == [dead.short_id, ended.short_id]
    assert firstread("ps", "-q", *places).stdout == ""
    listed = firstread("ps", "-a", "--json", *places).json["containers"]
    assert [c["status"] for c in listed] == ["dead", "exited"]
    assert [c["exit_code"] for c in listed] == [None, 3]


def test_the_document_of_ps_is_described(places: tuple[str, ...], store: ContainerStore) -> None:
    add(store, "web", exit_code=0)
    (document,) = firstread("ps", "-a", "--json", *places).json["containers"]
    described = (RUN_DOC.parent / "json.md").read_text().partition("## ps\n")[2].partition("## ")[0]
    assert {f"containers[].{name}" for name in document} == set(
        re.findall(r"`(containers\[\]\.\w+)`", described)
    )


def test_control_characters_of_an_image_name(
    places: tuple[str, ...], store: ContainerStore
) -> None:
    add(store, "web", exit_code=0, image="x\x1b[2J", command=("a\nb",))
    shown = firstread("ps", "-a", *places).stdout
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2


def test_rm_continues_after_an_error(
    places: tuple[str, ...], store: ContainerStore, tmp_path: Path
) -> None:
    """It needs no daemon for containers that have released their mounts."""
    for name in ("one", "two"):
        add(store, name, exit_code=0)
    ran = firstread("rm", "one", "no", "nor", "two", *places)
    assert (ran.code, ran.stdout) == (2, "one\ntwo\n")
    assert ran.stderr.splitlines() == [
        "firstread: no such container: no",
        "firstread: no such container: nor",
        "  ps -a lists all containers",
    ]
    assert store.list() == []
    assert not (tmp_path / "run").exists()


def test_rm_continues_when_nobody_reads_its_output(
    places: tuple[str, ...], store: ContainerStore
) -> None:
    for name in ("one", "two"):
        add(store, name, exit_code=0)
    with subprocess.Popen(
        program("rm", "one", "two", *places), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert store.list() == []


@pytest.mark.parametrize("time", ["nan", "inf", "1e300", "-1", "soon"])
def test_an_invalid_time_to_stop(places: tuple[str, ...], store: ContainerStore, time: str) -> None:
    add(store, "web", exit_code=0)
    ran = firstread("stop", "-t", time, "web", *places)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr == (
        f"firstread: Invalid value for '-t' / '--time': '{time}' is not a number of seconds,"
        " 0 at least and below 1,000,000,000\n  see 'firstread stop --help'\n"
    )


def test_logs_of_one_that_was_not_detached(places: tuple[str, ...], store: ContainerStore) -> None:
    add(store, "web", exit_code=0)
    ran = firstread("logs", "web", *places)
    assert (ran.code, ran.stdout) == (2, "")
    assert "was not detached" in ran.stderr


def logged(store: ContainerStore) -> Record:
    """Add a container that printed four lines, an hour, a minute and a second ago."""
    record = add(store, "web", exit_code=0, detached=True)
    lines = [
        f"{log_time(now() - ago)} {stream} F {text}\n"
        for ago, stream, text in (
            *((3600, "stdout", "one"), (60, "stderr", "two")),
            *((60, "stdout", "three"), (1, "stdout", "four")),
        )
    ]
    (store.directory(record) / "log").write_text("".join(lines))
    return record


@pytest.mark.parametrize(
    ("flags", "stdout", "stderr"),
    [
        ([], "one\nthree\nfour\n", "two\n"),
        (["--tail", "all"], "one\nthree\nfour\n", "two\n"),
        (["--tail", "-1"], "one\nthree\nfour\n", "two\n"),
        (["--tail", "999999999999"], "one\nthree\nfour\n", "two\n"),
        (["--tail", "3"], "three\nfour\n", "two\n"),
        (["-n1"], "four\n", ""),
        (["--tail=0", "-f"], "", ""),
        (["--since", "10m"], "three\nfour\n", "two\n"),
        (["--since", "30s"], "four\n", ""),
        (["--since", "2000-01-01", "-n", "2"], "three\nfour\n", ""),
        (["--since", "2100-01-01"], "", ""),
    ],
)
def test_some_of_a_log(
    places: tuple[str, ...], store: ContainerStore, flags: list[str], stdout: str, stderr: str
) -> None:
    logged(store)
    done = subprocess.run(
        program("logs", *flags, "web", *places), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, stdout, stderr)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tail", "x"], "Invalid value for '-n' / '--tail': 'x' is neither a number of lines"),
        (["--since", "soon"], "invalid time: 'soon'\n  write it as 10m"),
    ],
)
def test_wrong_usage_of_logs(
    places: tuple[str, ...], store: ContainerStore, flags: list[str], words: str
) -> None:
    logged(store)
    ran = firstread("logs", *flags, "web", *places)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"firstread: {words}")


def test_a_start_loads_little() -> None:
    """Every container pays for each millisecond of a start, so a start loads nothing large."""
    code = (
        "import sys, firstread.cli.main, firstread.cli.run, firstread.control.client;"
        "import firstread.oci.reference, firstread.run.lifecycle; print(*sys.modules)"
    )
    argv = [sys.executable, "-c", code]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_the_command_ends_with_the_code_and_all_output(
    places: tuple[str, ...], store: ContainerStore
) -> None:
    """It exits without tearing down the interpreter, and still flushes its output."""
    for number in range(50):
        add(store, f"c{number}", exit_code=0)
    done = subprocess.run(program("ps", "-aq", *places), capture_output=True, check=False)
    assert (done.returncode, len(done.stdout.split())) == (0, 50)


class Daemon:
    """Answers like a daemon; raises a status that is an exception."""

    def __init__(self, *counters: tuple[int, int] | NodeError) -> None:
        self._counters = list(counters)

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/status"
        answer = self._counters.pop(0)
        if isinstance(answer, NodeError):
            raise answer
        fetched, requests = answer
        counts = {"bytes_fetched": fetched, "requests": requests, "present": 4, "sectors": 9}
        return {"mounts": [{"mountpoint": "/else"}, {"mountpoint": "/here", **counts}]}


MOUNT = {"mountpoint": "/here", "timeline": {"resolve": 0.0, "metadata": 0.0, "mount": 0.0}}


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ((100, 1), (100 + 2048, 3), "2.0 KiB in 2 requests; 4 of 9 sectors are on this node"),
        ((9999, 9), (1024, 1), "1.0 KiB in 1 request; 4 of 9 sectors are on this node"),
        ((0, 0), NodeError("no daemon answers"), "unknown: no daemon answers"),
    ],
    ids=["counted", "another fetcher", "no daemon"],
)
def test_bytes_fetched(
    before: tuple[int, int], after: tuple[int, int] | NodeError, line: str
) -> None:
    timeline = Timeline()
    timeline.mounted(MOUNT, Daemon(before, after))  # type: ignore[arg-type]
    timeline.fetched()
    assert timeline.report()[-1] == f"  fetched      {line}"


def test_steps_are_in_the_order_of_time() -> None:
    timeline = Timeline()
    timeline.mounted(MOUNT, Daemon((0, 0)))  # type: ignore[arg-type]
    for step in ("first output", "start", "exit"):
        timeline.note(step)
    names = [line[2:15].strip() for line in timeline.report()]
    assert names == ["command", "resolve", "metadata", "mount", "first output", "start", "exit"]


def _lines(ran: Ran) -> list[str]:
    assert (ran.code, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


def test_json_errors_of_ps(places: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file, not a directory")
    ran = firstread("ps", "--json", *places)
    assert ran.code == 5
    assert json.loads(ran.stdout)["error"] == "NodeError"
