# SPDX-License-Identifier: Apache-2.0
"""Real containers in the foreground: output, exit code, and their rights."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.errors import NodeError
from firstread.run.overlay import mount_overlay, mounts_below, unmount_below
from firstread.testing.containers import Node, find_busybox, make_rootfs
from firstread.testing.patience import PATIENCE_S

pytestmark = pytest.mark.privileged

CONFIG = {
    "Env": ["PATH=/bin", "FROM=image"],
    "Cmd": ["sh", "-c", "echo from the image"],
    "WorkingDir": "/made/for/it",
    "Volumes": {"/srv/empty": {}, "/srv/full": {}, "/srv/new": {}},
}
RUNTIMES = [name for name in ("crun", "runc") if shutil.which(name)]


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = find_busybox()
    if os.geteuid() or not busybox or not RUNTIMES:
        pytest.skip("needs root, busybox-static, and crun or runc")
    return make_rootfs(tmp_path_factory.mktemp("rootfs"), busybox)


@pytest.fixture
def node(rootfs: Path, tmp_path: Path) -> Iterator[Node]:
    before = tree(rootfs)
    yield Node(rootfs, tmp_path / "state", CONFIG)
    assert tree(rootfs) == before, "the image was changed"
    assert mounts_below(tmp_path) == [], "a mount was left behind"


def tree(directory: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in directory.rglob("*"))


def left_over(node: Node) -> list[str]:
    """Return the remaining containers and runtime states."""
    places = (node.state_dir / "containers", node.state_dir / "runtime")
    return [path.name for place in places for path in place.glob("[!.]*")]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_output_and_exit_code(node: Node, runtime: str) -> None:
    done = node.run(
        "--runtime", runtime, "--rm", "image", "sh", "-c", "echo out; echo err >&2; exit 7"
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert left_over(node) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("nosuch", 127, 'firstread: exec: "nosuch": executable not found in $PATH\n'),
        ("/no/such", 127, 'firstread: exec: "/no/such": no such file or directory\n'),
        ("/bin/text", 126, 'firstread: exec: "/bin/text": permission denied\n'),
        ("no\nsuch", 127, 'firstread: exec: "no\nsuch": executable not found in $PATH\n'),
    ],
)
def test_no_command_to_run(node: Node, runtime: str, command: str, code: int, words: str) -> None:
    done = node.run("--runtime", runtime, "image", command)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", words)
    assert left_over(node) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_program_of_another_machine(node: Node, runtime: str) -> None:
    """Only execve(2) finds out, so it is an exit code of the container."""
    done = node.run("--runtime", runtime, "--rm", "image", "foreign")
    assert done.returncode == 1
    assert "/bin/foreign" in done.stderr
    assert done.stderr.lower().endswith("exec format error\n")


def test_lost_output(node: Node) -> None:
    """The container's own exit code would report success."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            node.argv("--rm", "image", "echo", "backup"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 125
    assert done.stderr == (
        "firstread: cannot write the output of the container: No space left on device\n"
    )
    assert left_over(node) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("-u", "nobody", "image"),
            "unable to find user nobody: no matching entries in passwd file",
        ),
        (
            ("-u", "app:none", "image"),
            "unable to find group none: no matching entries in group file",
        ),
        (("--entrypoint", "", "image"), "no command specified"),
        (("--runtime", "nosuch", "image"), "OCI runtime 'nosuch' is not installed"),
        (
            ("--runtime", "/bin/true", "image", "x"),
            "/bin/true has started no process, and reports success",
        ),
        (("-it", "image"), "the input device is not a TTY"),
        (("--device", "/dev/nosuch", "image"), "error gathering device information"),
        (("-m", "1m", "image"), "invalid memory limit '1m': the minimum is 6m"),
    ],
)
def test_failed_starts(node: Node, arguments: tuple[str, ...], words: str) -> None:
    done = node.run(*arguments)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(f"firstread: {words}")
    assert left_over(node) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_image_says_how_to_run_it(node: Node, runtime: str) -> None:
    assert node.run("--runtime", runtime, "--rm", "image").stdout == "from the image\n"
    script = 'echo "$FROM $HOME $HOSTNAME $MINE ${GONE-unset}"; pwd; id; cat /etc/hostname'
    done = node.run(
        *("--runtime", runtime, "--rm", "-u", "app", "-e", "MINE=1", "--hostname", "box"),
        *("image", "sh", "-c", script),
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "image /home/app box 1 unset",
        "/made/for/it",
        "uid=1000(app) gid=1001(app) groups=29(audio),50(staff),1001(app)",
        "box",
    ]


def test_what_a_container_wrote_outlasts_an_error_of_its_attendant(node: Node) -> None:
    """With SIGCHLD ignored nobody gets exit codes: the error comes when the container has ended."""
    ignoring = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    command = node.argv("image", "sh", "-c", "echo precious > /file")
    python = [sys.executable, "-c", ignoring, *command]
    done = subprocess.run(python, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode != 0
    (container,) = (node.state_dir / "containers").glob("[!.]*")
    assert (container / "upper" / "file").read_text() == "precious\n"


def test_writes_go_to_the_overlay(node: Node) -> None:
    script = "rm /etc/group; echo changed >/etc/passwd; mkdir /new; chmod 700 /srv; cat /etc/passwd"
    assert node.run("image", "sh", "-c", script).stdout == "changed\n"
    (container,) = (node.state_dir / "containers").glob("[!.]*")
    assert (container / "upper/etc/passwd").read_text() == "changed\n"
    assert node.run("--rm", "image", "grep", "-c", "root", "/etc/passwd").stdout == "1\n"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_read_only_root_with_writable_places(node: Node, runtime: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "deep").mkdir(parents=True)
    script = (
        "for f in /x /tmp/x /run/x /srv/empty/x /srv/full/x /srv/new/x /ro/x /ro/deep/x /rw/x; do "
        "(echo 1 >$f) 2>/dev/null && echo $f; done; stat -c '%a %u' /srv/empty; cat /srv/full/data"
    )
    done = node.run(
        *("--runtime", runtime, "--rm", "--read-only", "--tmpfs", "/run:size=1m"),
        *("-v", f"{shared}:/ro:ro", "-v", f"{tmp_path}/made:/rw", "image", "sh", "-c", script),
    )
    assert done.stderr == ""
    writable = ["/run/x", "/srv/empty/x", "/srv/full/x", "/srv/new/x", "/rw/x"]
    assert done.stdout.splitlines() == [*writable, "750 1000", "of the image"]
    assert (tmp_path / "made/x").read_text() == "1\n"
    assert os.listdir(shared) == ["deep"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_network_but_loopback(node: Node, runtime: str) -> None:
    run = ("--runtime", runtime, "--rm", "--network", "none", "image")
    done = node.run(*run, "sh", "-c", "ls /sys/class/net; ping -c1 127.0.0.1 >/dev/null; echo $?")
    assert done.stdout.splitlines() == ["lo", "0"]
    assert "localhost" in node.run(*run, "cat", "/etc/hosts").stdout


def test_network_of_the_host(node: Node) -> None:
    done = node.run("--rm", "--add-host", "db:10.1.2.3", "image", "sh", "-c", "cat /etc/hosts")
    assert done.stdout.endswith("10.1.2.3\tdb\n")
    listed = node.run("--rm", "image", "cat", "/proc/net/dev").stdout.splitlines()
    assert len(listed) == len(Path("/proc/net/dev").read_text().splitlines())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_capabilities(node: Node, runtime: str) -> None:
    def bounding(*flags: str) -> int:
        show = ("image", "grep", "CapBnd", "/proc/self/status")
        return int(node.run("--runtime", runtime, "--rm", *flags, *show).stdout.split()[1], 16)

    own = Path("/proc/self/status").read_text().partition("CapBnd:")[2].split()[0]
    assert bounding() == 0xA80425FB  # docker's default
    assert bounding("--cap-drop", "all") == 0
    assert bounding("--cap-drop", "all", "--cap-add", "chown") == 1
    assert bounding("--privileged") == int(own, 16)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_filters_and_masks(node: Node, runtime: str) -> None:
    script = (
        "unshare -U true 2>/dev/null || echo no namespace; "
        "mount -t tmpfs t /tmp 2>/dev/null || echo no mount; "
        "cat /proc/kcore 2>/dev/null | wc -c; "
        "(echo 0 >/proc/sys/kernel/sysrq) 2>/dev/null || echo read-only; "
        "mknod /tmp/m b 254 0 && (cat /tmp/m 2>/dev/null || echo no device)"
    )
    done = node.run("--runtime", runtime, "--rm", "image", "sh", "-c", script)
    assert done.stdout.splitlines() == [
        *("no namespace", "no mount", "0", "read-only", "no device"),
    ]
    privileged = node.run(
        *("--runtime", runtime, "--rm", "--privileged", "image", "sh", "-c"),
        "mount -t tmpfs t /tmp && echo mounted; ls /dev/kmsg",
    )
    assert privileged.stdout.splitlines() == ["mounted", "/dev/kmsg"]


def test_a_device_of_the_host(node: Node) -> None:
    flags = ("--device", "/dev/zero:/dev/nothing:r", "--rm")
    done = node.run(*flags, "image", "sh", "-c", "head -c 2 /dev/nothing | od -An -tx1")
    assert done.stdout.split() == ["00", "00"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_limits(node: Node, runtime: str) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; echo survived"
    run = ("--runtime", runtime, "--rm", "-m", "16m", "image", "sh", "-c")
    done = node.run(*run, f"({script.partition(';')[0]}) || echo killed")
    if "no limit is applied" in done.stderr:
        pytest.skip("no control group for memory here")
    assert done.stdout.splitlines()[-1] == "killed"
    limits = node.run(
        *("--runtime", runtime, "--rm", "--ulimit", "nofile=100:200", "image", "sh", "-c"),
        "ulimit -n; ulimit -Hn",
    )
    assert limits.stdout.split() == ["100", "200"]


@pytest.mark.skipif("crun" not in RUNTIMES, reason="only crun can do without control groups")
def test_limits_that_cannot_be_applied(node: Node) -> None:
    """Without control groups the container runs, and one warning names the lost limits."""
    read_only = (
        "mount --bind /sys/fs/cgroup /sys/fs/cgroup && "
        'mount -o remount,ro,bind /sys/fs/cgroup && exec "$@"'
    )
    run = node.argv("--runtime", "crun", "--rm", "-m", "16m", "--cpus", "1", "image")
    argv = ["unshare", "--mount", "sh", "-c", read_only, "sh", *run]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "from the image\n")
    words = "no limit is applied for --memory, --cpus: no control group for it here"
    assert done.stderr == f"WARNING: {words}\n"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_standard_input(node: Node, runtime: str) -> None:
    run = ("--runtime", runtime, "--rm")
    assert node.run(*run, "-i", "image", "cat", stdin=b"in\n" * 99).stdout == "in\n" * 99
    assert node.run(*run, "image", "cat", stdin=b"unseen").stdout == ""


def test_much_output_in_order(node: Node) -> None:
    done = node.run("--rm", "image", "seq", "1", "200000")
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 200001))


def test_a_reader_who_goes_away(node: Node) -> None:
    argv = node.argv("--rm", "image", "sh", "-c", "trap 'exit 3' PIPE; while :; do echo y; done")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(20) == 3
    assert left_over(node) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_container(node: Node, runtime: str, number: signal.Signals) -> None:
    script = f"trap 'echo got; exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.02; done"
    argv = node.argv("--runtime", runtime, "--rm", "image", "sh", "-c", script)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "got\n"
        assert process.wait(20) == 9


def test_three_interrupts_kill_a_process_that_ignores_them(node: Node) -> None:
    argv = node.argv("--rm", "image", "sh", "-c", "trap '' INT; echo ready; sleep 60")
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        assert process.wait(20) == 137
        assert process.stderr
        assert "got 3 SIGTERM/SIGINTs, killing the container" in process.stderr.read()
    assert left_over(node) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_killed_by_a_signal(node: Node, runtime: str) -> None:
    done = node.run(
        "--runtime", runtime, "--rm", "image", "sh", "-c", "ulimit -t 1; while :; do :; done"
    )
    assert done.returncode == 128 + signal.SIGKILL


def test_the_container_inherits_no_descriptor(node: Node, tmp_path: Path) -> None:
    show = node.argv("--rm", "image", "ls", "-l", "/proc/self/fd")
    with (tmp_path / "out").open("w+") as out, (tmp_path / "secret").open("w") as secret:
        subprocess.run(show, stdout=out, stderr=out, pass_fds=[secret.fileno()], check=True)
        out.seek(0)
        content = out.read()
    assert str(tmp_path) not in content
    assert content.count("pipe:") == 3


def test_odd_paths(rootfs: Path, tmp_path: Path) -> None:
    lower = tmp_path / "a:b,c\\d e"
    lower.symlink_to(rootfs)
    state = tmp_path / ("long" * 40) / "with: a, comma" / "x"
    node = Node(lower, state, {"Env": ["PATH=/bin"], "Volumes": {"/srv/full": {}}})
    done = node.run("--rm", "image", "sh", "-c", "echo x >/srv/full/data; cat /srv/full/data")
    assert (done.stdout, done.stderr) == ("x\n", "")
    assert mounts_below(tmp_path) == []


def test_a_root_on_another_overlay(rootfs: Path, tmp_path: Path) -> None:
    """As in a container whose root is one."""
    lower, outer, inner = (tmp_path / name for name in ("lower", "outer", "inner"))
    for directory in (lower, outer, inner):
        directory.mkdir()
    mount_overlay(lower, outer, inner)
    try:
        (inner / "root").mkdir()
        with pytest.raises(NodeError, match="not supported as upperdir") as caught:
            mount_overlay(rootfs, inner, inner / "root")
    finally:
        unmount_below(tmp_path)
    assert "choose a --root on a local file system" in (caught.value.hint or "")


def test_a_volume_over_a_file(rootfs: Path, tmp_path: Path) -> None:
    node = Node(rootfs, tmp_path / "state", {"Volumes": {"/etc/passwd": {}}, "Cmd": ["/bin/sh"]})
    done = node.run("image")
    assert done.returncode == 125
    words = "firstread: cannot mount a volume over /etc/passwd: not a directory\n"
    assert done.stderr == words
    assert left_over(node) == []
