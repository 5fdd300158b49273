# SPDX-License-Identifier: Apache-2.0
"""The filter that the kernel holds for a container, asked about every system call there is.

The program is read back from the kernel and run here, so nothing has to be called to see whether it
would be refused: neither reboot(2) nor what a later kernel brings.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstread.run.seccomp import ALLOWED
from firstread.testing.containers import Node, find_busybox, make_rootfs
from firstread.testing.machine import until
from firstread.testing.patience import PATIENCE_S

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows the numbers of x86-64"),
]
RUNTIMES = [name for name in ("crun", "runc") if shutil.which(name)]
HEADERS = Path("/usr/include", sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu", "asm")

X86_64, I386 = 0xC000003E, 0x40000003  # AUDIT_ARCH_*
X32 = 0x40000000  # __X32_SYSCALL_BIT
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
MOST = 1024  # numbers that are tried; Linux 6.18 has 470

# Newer than Debian's headers, from 451 on everywhere. Source: Linux 6.17, scripts/syscall.tbl.
LATER = (
    "cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount "
    "lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat "
    "removexattrat open_tree_attr file_getattr file_setattr"
)
BY_ARGUMENT = {"clone", "socket", "personality"}
# What io_uring, AF_ALG and the like answer, and what the C library falls back from.
ASKED = """
import ctypes, errno, socket
call = ctypes.CDLL(None, use_errno=True).syscall
for number in (425, 250, 272, 435, 447, 1000):  # io_uring_setup keyctl unshare clone3 memfd_secret
    result = call(number, 0, 0, 0, 0, 0)
    print(number, errno.errorcode[ctypes.get_errno()] if result < 0 else "done")
for family in (38, 40):
    try: socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc: print(family, errno.errorcode[exc.errno])
print(ctypes.CDLL(None).personality(ctypes.c_ulong(0xffffffff)))
"""
ORDINARY = """
import asyncio, concurrent.futures, mmap, multiprocessing, os, select, signal, socket, sqlite3, ssl
import subprocess, sys, tarfile, tempfile, threading, zipfile

async def serve():
    async def answer(reader, writer):
        writer.write(await reader.readline())
        writer.close()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n")
    assert await reader.readline() == b"hello\\n"
    server.close()
    done = await asyncio.create_subprocess_exec("true")
    assert await done.wait() == 0

os.chdir(tempfile.mkdtemp())
asyncio.run(serve())
with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-3]) == [3]
with sqlite3.connect("records.db") as records:
    records.execute("pragma journal_mode=wal")
    records.execute("create table t (a)")
subprocess.run(["tar", "--xattrs", "-cf", "a.tar", "records.db"], check=True)
subprocess.run(["tar", "-xf", "a.tar", "-C", "/tmp"], check=True)
subprocess.run(["sh", "-c", "sleep 9 & kill $!; wait; mknod p p; chown 1:1 p"], check=True)
assert subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL).returncode
mmap.mmap(-1, 4096)[:2] = b"ab"
os.close(os.memfd_create("m")); os.close(os.pidfd_open(os.getpid())); os.close(os.eventfd(0))
os.posix_fallocate(os.open("f", os.O_CREAT | os.O_RDWR), 0, 4096)
os.sched_setaffinity(0, os.sched_getaffinity(0)); os.setpriority(os.PRIO_PROCESS, 0, 1)
signal.pthread_sigmask(signal.SIG_BLOCK, []); os.setgroups([]); os.setresuid(1, 1, 1)
print("all of it works")
"""


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = find_busybox()
    if os.geteuid() or not busybox or not RUNTIMES:
        pytest.skip("needs root, busybox-static, and crun or runc")
    return make_rootfs(tmp_path_factory.mktemp("rootfs"), busybox)


class Filter:
    """A program of classic BPF, as seccomp(2) runs it."""

    def __init__(self, code: bytes) -> None:
        self._steps: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", code))

    def __call__(self, number: int, *arguments: int, architecture: int = X86_64) -> int:
        """Return what becomes of a call."""
        words = (*arguments, *[0] * (6 - len(arguments)))
        data = struct.pack("=IIQ6Q", number, architecture, 0, *words)
        accumulator, at = 0, 0
        while True:
            operation, if_true, if_false, value = self._steps[at]
            at += 1
            match operation:
                case 0x20:  # load a word of the data
                    (accumulator,) = struct.unpack_from("=I", data, value)
                case 0x54:  # and
                    accumulator &= value
                case 0x05:  # jump always
                    at += value
                case 0x06:  # return
                    return value
                case 0x15 | 0x25 | 0x35 | 0x45:  # jump if ==, >, >=, &
                    holds = {
                        0x15: accumulator == value,
                        0x25: accumulator > value,
                        0x35: accumulator >= value,
                        0x45: bool(accumulator & value),
                    }
                    at += if_true if holds[operation] else if_false
                case _:
                    raise AssertionError(hex(operation))


def _ptrace(request: int, pid: int, address: int = 0, data: object = None) -> int:
    function = ctypes.CDLL(None, use_errno=True).ptrace
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    result = int(function(request, pid, address, data))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def filter_of(pid: int) -> Filter:
    """Return the filter of a process: PTRACE_SECCOMP_GET_FILTER."""
    _ptrace(0x4206, pid)  # PTRACE_SEIZE
    _ptrace(0x4207, pid)  # PTRACE_INTERRUPT
    os.waitpid(pid, 0x40000000)  # __WALL
    try:
        steps = _ptrace(0x420C, pid)
        code = ctypes.create_string_buffer(8 * steps)
        _ptrace(0x420C, pid, 0, code)
        with pytest.raises(OSError):  # there is no second one
            _ptrace(0x420C, pid, 1)
    finally:
        _ptrace(17, pid)  # PTRACE_DETACH
    return Filter(code.raw)


@contextmanager
def held(node: Node, *options: str) -> Iterator[Filter]:
    """Run a container that sleeps; yield its filter."""
    mark = f"MARK={uuid.uuid4()}"
    arguments = (*options, "--rm", "-i", "-e", mark, "image", "cat")
    with subprocess.Popen(node.argv(*arguments), stdin=subprocess.PIPE) as container:
        found: list[int] = []

        def started() -> list[int]:
            found[:] = [pid for pid in map(int, _numbers()) if _runs(pid, mark)]
            return found

        until(started, PATIENCE_S)
        yield filter_of(found[0])
        container.communicate(timeout=PATIENCE_S)
    assert container.returncode == 0


def _numbers() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def _runs(pid: int, mark: str) -> bool:
    try:
        cat = Path(f"/proc/{pid}/cmdline").read_bytes() == b"cat\0"
        return cat and mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def numbers(header: str) -> dict[str, int]:
    """Return the calls of an architecture by name."""
    path = HEADERS / header
    if not path.exists():
        pytest.skip(f"there is no {path}")
    found = re.findall(r"#define __NR_(\w+)\s+(\d+)", path.read_text())
    last = {name: number for number, name in enumerate(LATER.split(), 451)}
    return last | {name: int(number) for name, number in found}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_call_that_no_list_names_is_refused(
    rootfs: Path, tmp_path: Path, runtime: str
) -> None:
    allowed = {*ALLOWED.split(), "chroot", *BY_ARGUMENT}  # chroot: CAP_SYS_CHROOT is granted
    with held(Node(rootfs, tmp_path / "state"), "--runtime", runtime) as decide:
        for header, architecture in (("unistd_64.h", X86_64), ("unistd_32.h", I386)):
            known = numbers(header)
            open_ = {
                number
                for number in range(MOST)
                if decide(number, architecture=architecture) == ALLOW
            }
            by_number = {number: name for name, number in known.items()}
            assert {by_number.get(number, number) for number in open_} <= allowed
            # The runtime may not know the latest names; those that it has known for years it does.
            old = {name for name in allowed & known.keys() if known[name] < 440}
            assert {name for name in old if known[name] not in open_} <= BY_ARGUMENT
            assert decide(MOST, architecture=architecture) == ENOSYS
        assert ALLOW not in {decide(number | X32) for number in range(MOST)}
        calls = numbers("unistd_64.h")
        assert decide(calls["read"], architecture=0xC00000B7) != ALLOW  # of another processor


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_arguments_and_errors(rootfs: Path, tmp_path: Path, runtime: str) -> None:
    calls = numbers("unistd_64.h")
    with held(Node(rootfs, tmp_path / "state"), "--runtime", runtime) as decide:
        for name in (
            "io_uring_setup",
            "keyctl",
            "mount",
            "bpf",
            "reboot",
            "unshare",
            "userfaultfd",
        ):
            assert decide(calls[name]) == EPERM, name
        assert decide(calls["clone3"]) == ENOSYS
        assert decide(calls["clone"], signal.SIGCHLD) == ALLOW
        assert decide(calls["clone"], 0x3D0F00) == ALLOW  # a thread
        for bit in (17, *range(25, 31)):
            assert decide(calls["clone"], 1 << bit | signal.SIGCHLD) == EPERM
        families = {family: decide(calls["socket"], family) for family in range(60)}
        assert {family for family, verdict in families.items() if verdict == ALLOW} == {
            *range(12), *range(13, 19), 21, 22, 24, *range(26, 34), 35, 36, 39, *range(41, 46)
        }  # fmt: skip
        assert set(families.values()) == {ALLOW, ENOSYS}
        assert decide(calls["socket"], 1 << 32 | 16) == ENOSYS
        for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
            assert decide(calls["personality"], value) == ALLOW
        for value in (1, 4, 9, 0x40000, 0x0400000, 0xFFFFFFFE, 1 << 32):
            assert decide(calls["personality"], value) == ENOSYS


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_widens_it(rootfs: Path, tmp_path: Path, runtime: str) -> None:
    calls = numbers("unistd_64.h")
    node = Node(rootfs, tmp_path / "state")
    with held(node, "--runtime", runtime, "--cap-add", "SYS_ADMIN") as decide:
        for name in ("mount", "unshare", "setns", "bpf", "clone3", "pivot_root", "perf_event_open"):
            assert decide(calls[name]) == ALLOW, name
        assert decide(calls["clone"], 0x20000) == ALLOW
        for name in ("io_uring_setup", "keyctl", "reboot", "userfaultfd", "init_module"):
            assert decide(calls[name]) == EPERM, name
    with held(node, "--runtime", runtime, "--cap-drop", "SYS_CHROOT") as decide:
        assert decide(calls["chroot"]) == EPERM
    done = node.run(
        *("--runtime", runtime, "--rm", "--security-opt", "seccomp=unconfined", "image"),
        *("grep", "Seccomp:", "/proc/self/status"),
    )
    assert done.stdout.split() == ["Seccomp:", "0"]


def python(tmp_path: Path, runtime: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with this machine's Python and programs, in a container."""
    rootfs = tmp_path / "host"
    for name in ("usr", "etc", "tmp", "root", "proc", "sys", "dev"):
        (rootfs / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (rootfs / name).symlink_to(f"usr/{name}")
    (rootfs / "tmp").chmod(0o1777)
    places = {Path("/usr"), Path("/etc"), Path(sys.base_prefix).resolve()}
    shared = [word for place in places for word in ("-v", f"{place}:{place}:ro")]
    node = Node(rootfs, tmp_path / "state", {"Env": [f"PATH={os.defpath}"]})
    interpreter = str(Path(sys.executable).resolve())
    return node.run("--runtime", runtime, "--rm", *shared, "image", interpreter, "-c", script)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_ordinary_programs_notice_nothing(tmp_path: Path, runtime: str) -> None:
    done = python(tmp_path, runtime, ORDINARY)
    assert (done.stdout, done.stderr) == ("all of it works\n", "")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_a_program_is_told(tmp_path: Path, runtime: str) -> None:
    done = python(tmp_path, runtime, ASKED)
    lines = done.stdout.splitlines()
    assert lines[:4] == ["425 EPERM", "250 EPERM", "272 EPERM", "435 ENOSYS"], done
    assert lines[5:] == ["1000 ENOSYS", "38 ENOSYS", "40 ENOSYS", "0"]
