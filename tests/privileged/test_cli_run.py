# SPDX-License-Identifier: Apache-2.0
"""``firstread run`` on images in a real registry: the container's view, and the fetched bytes."""

from __future__ import annotations

import hashlib
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.machine import Machine
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import DATA_FILES, data_file

pytestmark = pytest.mark.privileged

LAST = DATA_FILES - 1  # nothing behind it is read ahead


@pytest.fixture(scope="module")
def registry(app_registry: DockerRegistry, lazy_debian: str) -> DockerRegistry:
    """A registry with `app`, and ``debian`` converted."""
    there = f"docker://{app_registry.host}/debian:latest"
    copy = ("skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests")
    subprocess.run([*copy, lazy_debian, there], check=True, timeout=PATIENCE_S)
    return app_registry


@pytest.fixture(scope="module")
def app(registry: DockerRegistry) -> str:
    return f"{registry.host}/app"


@pytest.fixture
def machine(machine: Machine) -> Iterator[Machine]:
    """The machine of these tests; nothing of a test is left on it."""
    yield machine
    machine.remove_all()
    assert machine.left_over() == {}


def test_the_image_says_how_to_run_it(machine: Machine, app: str) -> None:
    assert machine.output("run", "--rm", app) == "from the image\n"
    script = 'echo "$FROM $MINE $HOME"; pwd; id'
    assert machine.output("run", "--rm", "-e", "MINE=own", app, script).splitlines() == [
        "image own /home/app",
        "/srv/empty",
        "uid=1000(app) gid=1001(app) groups=29(audio),50(staff),1001(app)",
    ]


def test_the_command_line_overrides_the_image(machine: Machine, app: str) -> None:
    flags = ("-u", "0:50", "-w", "/data", "-e", "FROM=here")
    echo = ("--entrypoint", "echo")
    assert machine.output("run", "--rm", *flags, *echo, app, "a", "b") == "a b\n"
    shown = machine.output("run", "--rm", *flags, app, "id -u; id -g; pwd; echo $FROM; ls")
    assert shown.split() == ["0", "50", "/data", "here", "0", "1", "2", "3", "4", "5"]


def test_writes_go_to_the_overlay(machine: Machine, app: str) -> None:
    change = "rm /data/0; echo mine >/data/1; echo new >/data/new; cat /data/1; ls /data"
    changed = machine.output("run", "--rm", "-u", "root", app, change)
    assert changed.split() == ["mine", "1", "2", "3", "4", "5", "new"]
    again = machine.output("run", "--rm", app, "ls /data; head -c 9 /data/1 | od -An -tx1")
    assert again.split() == [*"012345", *(f"{byte:02x}" for byte in data_file(1)[:9])]


def test_the_mount_is_read_only_and_shared(machine: Machine, app: str) -> None:
    """Two containers share one read-only mount; the last one releases it."""
    ids = [machine.output("run", "-d", app, "sleep 600").strip() for _ in range(2)]
    (mount,) = machine.status()["mounts"]
    assert mount["holders"] == ids
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = [line for line in lines if f" {mount['mountpoint']} " in line]
    options, _, kind = line.partition(" - ")
    assert options.split()[5].split(",")[0] == "ro"
    assert kind.split()[0] == "erofs"
    with pytest.raises(OSError, match="Read-only file system"):
        Path(mount["mountpoint"], "x").touch()
    machine.output("rm", "-f", ids[0])
    assert [mount["holders"] for mount in machine.status()["mounts"]] == [ids[1:]]
    machine.output("rm", "-f", ids[1])
    assert machine.status()["mounts"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("true",), 0, ""),
        (("exit 7",), 7, ""),
        (("kill -9 $$",), 137, ""),
        (("kill -TERM $$",), 143, ""),
    ],
    ids=["0", "7", "killed", "terminated"],
)
def test_exit_codes_of_the_container(
    machine: Machine, app: str, arguments: tuple[str, ...], code: int, error: str
) -> None:
    # A second shell: nothing inside a container can kill its first process.
    done = machine.run("--rm", app, f"sh -c '{arguments[0]}'; exit $?")
    assert (done.returncode, done.stdout) == (code, "")


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("nosuch", 127, "executable not found in $PATH"),
        ("/no/such", 127, "no such file or directory"),
        ("/bin/text", 126, "permission denied"),
    ],
)
def test_invalid_commands(machine: Machine, app: str, program: str, code: int, words: str) -> None:
    done = machine.run("--rm", "--entrypoint", program, app)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f'firstread: docker://{app}:latest: exec: "{program}": {words}\n'
    assert machine.left_over() == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nosuch", "{app}"), "No such option '--nosuch'\n  see 'firstread run --help'"),
        ((), "Missing argument 'REF'"),
        (("-m", "1k", "{app}"), "invalid memory limit '1k': the minimum is 6m"),
        (("--name", "a/b", "{app}"), "invalid container name (a/b)"),
        (("Not A Name",), "'Not A Name' is not the name of an image"),
        (("{host}/nosuch",), "docker://{host}/nosuch:latest: cannot read manifest latest"),
        (("{host}/app:old",), "docker://{host}/app:old: "),
        (("127.0.0.1:1/app",), "docker://127.0.0.1:1/app:latest: registry 127.0.0.1:1: "),
        (("{host}/ordinary",), "docker://{host}/ordinary:latest: this is an ordinary image"),
        (("oci:/nosuch/layout",), "oci:/nosuch/layout: there is no directory"),
        (("--pull", "never", "{host}/debian:none"), "{host}/debian:none: the image is not on"),
        (("-u", "nobody", "{app}"), "docker://{app}:latest: unable to find user nobody"),
        (("-it", "{app}"), "the input device is not a TTY"),
    ],
)
def test_images_that_cannot_run(
    machine: Machine, registry: DockerRegistry, app: str, arguments: tuple[str, ...], words: str
) -> None:
    names = {"app": app, "host": registry.host}
    done = machine.run(*(argument.format(**names) for argument in arguments))
    assert (done.returncode, done.stdout) == (125, "")
    assert words.format(**names) in done.stderr
    assert done.stderr.startswith("firstread: ")
    assert len(done.stderr.splitlines()) <= 2
    assert machine.left_over() == {}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream(machine: Machine, app: str, closed: str) -> None:
    """No file of firstread gets its number: neither a lock nor a connection receives the output."""
    command = machine.argv("run", "--rm", "-i", app, "echo out; echo err >&2; cat; exit 7")
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    stdin, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(
        shell, env=machine.env, stdin=stdin, stdout=pipe, stderr=pipe, text=True
    ) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 7
    assert output == ("" if " >&-" in f" {closed}" else "out\n")
    assert errors == ("" if "2>&-" in closed else "err\n")


def test_the_callers_umask_stays_outside(machine: Machine, app: str, tmp_path: Path) -> None:
    flags = ("--rm", "-v", f"{tmp_path}/made:/made", "-v", "/anonymous")
    command = ("run", *flags, app, "stat -c %a /made /anonymous; umask")
    with machine.start(*command, umask=0o077) as process:
        assert process.communicate(timeout=PATIENCE_S) == ("755\n755\n0022\n", "")


def test_a_name_in_use(machine: Machine, app: str) -> None:
    used = machine.output("run", "-d", "--name", "web", app, "sleep 600").strip()
    done = machine.run("--name", "web", app)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith('firstread: the container name "web" is already in use by ')
    assert machine.containers() == [used[:12]]
    machine.output("rm", "-f", "web")
    assert machine.output("run", "--rm", "--name", "web", app) == "from the image\n"


def test_a_known_name_needs_no_registry(
    machine: Machine, registry: DockerRegistry, app: str
) -> None:
    machine.output("run", "--rm", app)
    registry.forget()
    machine.output("run", "--rm", app)
    assert registry.counts.requests_of() == 0
    machine.output("run", "--rm", "--pull", "always", app)
    assert 1 <= registry.counts.requests_of("manifests") <= 2
    assert registry.counts.requests_of("blobs") == 0  # the metadata is present


def test_a_start_fetches_only_what_it_reads(
    registry: DockerRegistry, debian: Path, tmp_path: Path
) -> None:
    """On an empty machine a start fetches a part, and a second start nothing."""
    name = f"{registry.host}/debian"
    whole = sum(path.stat().st_size for path in (debian / "blobs/sha256").iterdir())
    with Machine(tmp_path) as machine:
        registry.forget()
        shown = machine.run("--rm", "--stats", name, "sh", "-c", "cat /etc/debian_version")
        first = registry.counts
        assert (shown.returncode, shown.stdout[:3]) == (0, "12.")
        assert 0 < first.bytes_of("blobs") < whole / 3
        # Manifest, metadata; then requests for a few sectors. On a fast link that is one
        # for each; beside load the link seems slow, and a request ends early in a sector of which
        # nobody has read the rest (`firstread.fetch.queue.request_end`).
        present, sectors = map(int, _words(shown.stderr, r"(\d+) of (\d+) sectors"))
        assert 0 < present < sectors / 3
        assert first.requests_of("GET") <= 2 + 2 * present
        fetched, requests = _words(shown.stderr, r"fetched +(\S+ \S+) in (\d+) requests")
        assert fetched != "0 B"
        assert 0 < int(requests) <= first.requests_of("GET") - 2

        registry.forget()
        again = machine.run("--rm", "--stats", name, "sh", "-c", "cat /etc/debian_version")
        assert again.stdout == shown.stdout
        assert "0 B in 0 requests" in again.stderr
        assert registry.counts.requests_of() == 0
        assert machine.left_over() == {}


def test_all_readers_share_one_fetch_of_a_sector(
    registry: DockerRegistry, app: str, tmp_path: Path
) -> None:
    with Machine(tmp_path) as machine:
        machine.output("run", "--rm", app, "true")
        registry.forget()
        digest = hashlib.sha256(data_file(LAST)).hexdigest()
        printed: list[str] = []

        def read() -> None:
            printed.append(machine.output("run", "--rm", app, f"sha256sum /data/{LAST}"))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert printed == [f"{digest}  /data/{LAST}\n"] * 4
        sent = registry.counts.bytes_of("blobs")
        assert len(data_file(LAST)) <= sent < 1.02 * len(data_file(LAST))


def test_the_statistics_change_nothing_else(machine: Machine, app: str) -> None:
    script = "echo out; echo err >&2; exit 3"
    plain = machine.run("--rm", app, script)
    shown = machine.run("--rm", "--stats", app, script)
    assert (plain.returncode, plain.stdout, plain.stderr) == (3, "out\n", "err\n")
    assert (shown.returncode, shown.stdout) == (3, "out\n")
    first, *lines = shown.stderr.splitlines()
    assert first == "err"
    steps = [re.fullmatch(r"  (\w[\w ]*?) +(\d+) ms", line) for line in lines[:-1]]
    assert all(steps)
    found = {step[1]: int(step[2]) for step in steps if step}
    assert list(found)[:4] == ["command", "resolve", "metadata", "mount"]
    assert set(list(found)[4:6]) == {"start", "first output"}
    assert list(found)[6:] == ["exit"]
    assert list(found.values()) == sorted(found.values())
    assert re.fullmatch(
        r"  fetched +\S+ \S+ in \d+ requests; .* sectors are on this node", lines[-1]
    )


def test_the_statistics_of_a_detached_container(machine: Machine, app: str) -> None:
    done = machine.run("-d", "--rm", "--stats", app, "sleep 600")
    assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout)
    assert [line.split()[0] for line in done.stderr.splitlines()] == [
        *("command", "resolve", "metadata", "mount", "start", "fetched")
    ]


def test_input_and_files_of_the_host(machine: Machine, app: str, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\n# no\nB=two words\n")
    (tmp_path / "in").write_text("of the host\n")
    flags = ("-i", "--env-file", str(tmp_path / "env"), "-v", f"{tmp_path}/in:/in:ro")
    done = machine.run("--rm", *flags, app, 'echo "$A $B"; cat /in; cat', stdin="typed\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 two words\nof the host\ntyped\n"


def _words(text: str, pattern: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    assert match, text
    return match.groups()
