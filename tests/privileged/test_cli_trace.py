# SPDX-License-Identifier: Apache-2.0
"""``firstread trace`` on an image in a real registry: what the container read, and what is left."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.oci.reference import parse_reference
from firstread.registry.open import open_source
from firstread.run.containers import ContainerStore, Status, status_of
from firstread.testing.machine import Machine, until
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry
from firstread.traces.attachedtraces import traces_attached
from firstread.traces.tracefile import Trace, read_trace

pytestmark = pytest.mark.privileged

PAGES = (("data/3", 100), ("data/1", 7), ("data/3", 60), ("data/0", 512))
DD = "; ".join(
    f"dd if=/{path} of=/dev/null bs=4096 count=1 skip={page} 2>&-" for path, page in PAGES
)
FOREVER = "while :; do sleep 1; done"
CLIENT = """
import socket

for port in (18082, 18083):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        code = 0
    except OSError:
        code = 1
raise SystemExit(code)
"""


@pytest.fixture
def app(app_registry: DockerRegistry) -> str:
    return f"{app_registry.host}/app"


@pytest.fixture
def machine(machine: Machine) -> Iterator[Machine]:
    """The machine of these tests; nothing of a test is left on it."""
    yield machine
    machine.remove_all()
    assert machine.left_over() == {}


def trace_in(path: Path) -> Trace:
    with path.open("rb") as file:
        return read_trace(file)


def pages_of_data(trace: Trace) -> list[tuple[str, int, int]]:
    """Return the reads below /data: path, first page, pages."""
    return [
        (read.path.decode(), read.offset // 4096, read.length // 4096)
        for read in trace.reads
        if read.path.startswith(b"data/")
    ]


def test_the_pages_that_a_container_reads_in_their_order(
    machine: Machine, app: str, tmp_path: Path
) -> None:
    out = tmp_path / "trace"
    done = machine.call("trace", "-o", str(out), app, f"{DD}; {DD}; echo done")
    assert (done.returncode, done.stdout) == (0, "done\n"), done
    assert done.stderr.startswith(f"{out}: ")
    trace = trace_in(out)
    assert pages_of_data(trace) == [(path, page, 1) for path, page in PAGES]
    assert trace.reads[0].path == b"etc/passwd"
    assert trace.header.image.startswith("sha256:")
    assert trace.header.command[:2] == ["sh", "-c"]
    assert trace.header.read_ahead_kib == 16
    assert trace.reads[-1].time_us <= (trace.header.ready_us or 0)
    assert os.listdir(tmp_path) == ["trace"]


def test_a_line_ends_the_start(machine: Machine, app: str, tmp_path: Path) -> None:
    """Reads after the line are not part of it."""
    out = tmp_path / "trace"
    script = f"cat /data/2 >&-; echo 'now rea'; echo 'now ready' >&2; sleep 0.2; {DD}; {FOREVER}"
    flags = ("--until-line", "now ready$", "-o", str(out))
    done = machine.call("trace", *flags, app, "--", f"trap exit QUIT; {script}")
    assert done.returncode == 0, done
    trace = trace_in(out)
    assert trace.header.ready_us
    assert {path for path, *_ in pages_of_data(trace)} <= {"data/2"}


def test_an_answer_ends_the_start(machine: Machine, app: str, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    script = f"{DD}; mkdir /tmp/w; echo hi >/tmp/w/index.html; exec httpd -f -p 127.0.0.1:18081 -h"
    flags = ("--until", "http://127.0.0.1:18081/", "-o", str(out), "-u", "root")
    done = machine.call("trace", *flags, app, f"{script} /tmp/w")
    assert done.returncode == 0, done
    trace = trace_in(out)
    assert trace.header.ready_us
    assert len(pages_of_data(trace)) == len(PAGES)


def test_a_command_ends_the_start(machine: Machine, app: str, tmp_path: Path) -> None:
    """What the workload reads for a client is part of it, whatever they speak."""
    out = tmp_path / "trace"
    script = f"nc -l -p 18082 </dev/null; {DD}; nc -l -p 18083 </dev/null; {FOREVER}"
    ask = shlex.join((sys.executable, "-c", CLIENT))
    done = machine.call("trace", "--until-command", ask, "-o", str(out), app, script)
    assert done.returncode == 0, done
    trace = trace_in(out)
    assert trace.header.ready_us
    assert len(pages_of_data(trace)) == len(PAGES)


def test_seconds_end_the_start(machine: Machine, app: str, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    done = machine.call("trace", "--seconds", "1", "-o", str(out), app, f"{DD}; {FOREVER}")
    assert done.returncode == 0, done
    trace = trace_in(out)
    assert trace.header.ready_us is None
    assert len(pages_of_data(trace)) == len(PAGES)


@pytest.mark.parametrize(
    ("flags", "script", "code", "words"),
    [
        (("--until-line", "never"), "exit 3", 125, "ended with exit code 3 before it was ready"),
        (("--until-line", "x", "--seconds", "1"), FOREVER, 125, "was not ready within 1 s"),
        (("--until-line", "("), "true", 125, "'(' is not a regular expression"),
        (("--until", "8080"), "true", 125, "'8080' is not the URL of a server"),
        (("--until-command", "/nosuch"), "true", 125, "'/nosuch' is no program of this machine"),
        (("--until-command", "true"), "true", 125, "true succeeds before the container runs"),
        (
            ("--until-command", "false", "--until", "http://127.0.0.1:18081/"),
            "true",
            125,
            "--until and --until-command exclude each other",
        ),
        (("-d",), "true", 125, "a container that is traced cannot be detached"),
        (("--entrypoint", "/nosuch"), "true", 127, "no such file or directory"),
    ],
)
def test_starts_without_a_trace(
    machine: Machine,
    app: str,
    tmp_path: Path,
    flags: tuple[str, ...],
    script: str,
    code: int,
    words: str,
) -> None:
    done = machine.call("trace", "-o", str(tmp_path / "trace"), *flags, app, script)
    assert done.returncode == code, done
    assert words in done.stderr
    assert os.listdir(tmp_path) == []


def test_an_exit_code_is_the_command_s(machine: Machine, app: str, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    assert machine.call("trace", "-o", str(out), app, "exit 4").returncode == 4
    assert trace_in(out).header.ready_us is None


def _running(
    machine: Machine, app: str, out: Path, trap: str = "trap 'exit 0' INT"
) -> subprocess.Popen[str]:
    flags = ("--until-line", "never", "-o", str(out))
    process = machine.start("trace", *flags, app, f"{trap}; {DD}; echo on; {FOREVER}")
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    return process


@pytest.mark.parametrize("trap", ["trap 'exit 0' INT", "trap '' INT TERM"])
def test_an_interrupted_start_is_written(
    machine: Machine, app: str, tmp_path: Path, trap: str
) -> None:
    out = tmp_path / "trace"
    with _running(machine, app, out, trap) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    trace = trace_in(out)
    assert trace.header.ready_us is None
    assert len(pages_of_data(trace)) == len(PAGES)


def test_what_a_killed_tracer_leaves_can_be_removed(
    machine: Machine, app: str, tmp_path: Path
) -> None:
    with _running(machine, app, tmp_path / "trace") as process:
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    assert os.listdir(tmp_path) == []
    store = ContainerStore(machine.root / "containers")
    (record,) = store.list()
    assert status_of(record) is Status.RUNNING
    assert any("traced" in mount for mount in machine.mounts())
    machine.output("rm", "-f", record.id)
    until(lambda: not machine.left_over())


def test_traces_are_merged(machine: Machine, app: str, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in "abc"]
    for name, script in zip(names, (DD, "cat /data/5 >/dev/null"), strict=False):
        assert machine.call("trace", "-o", name, app, script).returncode == 0
    done = machine.call("trace", "merge", *names[:2], "-o", names[2])
    assert done.returncode == 0, done
    merged = trace_in(Path(names[2]))
    assert merged.header.starts == 2
    assert merged.header.image
    assert {path for path, *_ in pages_of_data(merged)} == {"data/0", "data/1", "data/3", "data/5"}


def test_a_trace_travels_with_its_image(machine: Machine, app: str, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    done = machine.call("trace", "--attach", "-o", str(out), app, DD)
    assert done.returncode == 0, done
    with open_source(parse_reference(app)) as repository:
        subject, _ = repository.get_manifest()
        assert f"is attached to {subject.digest}\n" in done.stderr
        assert traces_attached(repository, subject) == [trace_in(out)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("app",), "say where the trace is to go"),
        (
            ("--attach", "oci-archive:/nosuch.tar"),
            "nothing can be attached to an image in",
        ),
        (("-o", "/nosuch/trace", "app"), "/nosuch/trace cannot be written"),
    ],
)
def test_a_trace_needs_a_place(machine: Machine, arguments: tuple[str, ...], words: str) -> None:
    """It shows before anything is fetched."""
    done = machine.call("trace", *arguments)
    assert (done.returncode, done.stdout) == (125, "")
    assert words in done.stderr
