# SPDX-License-Identifier: Apache-2.0
"""The user namespace of an ordinary user's node: made by the first command, joined by the others.

Owns the namespaces of users and mounts in which daemon, mounts and containers of the node live, the
keeper, which is a process that only holds them, and the record in the run directory that names it.
Root has no use for any of this. Invariant: whatever makes or joins them is root inside afterwards,
and has one thread before.

Facts about user namespaces (user_namespaces(7); tests/privileged/test_rootless.py shows them):

* Whoever owns a namespace has all capabilities in it, and may join it from outside.
* A process maps its own id alone. Subordinate ids take newuidmap(1), a set-user-ID program that has
  to run outside. A map can be written once.
* Mounts of the parent stay visible inside, and new ones appear; mounts made inside are seen only
  there. Nobody inside can unmount those of the parent.
* Joining a mount namespace moves the working directory to its root.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from firstread.control.client import Client
from firstread.control.namespace import ANEW
from firstread.device import syscalls
from firstread.errors import NodeError, from_os_error
from firstread.private import check_way, private_directory
from firstread.wholefile import replace_file

RECORD = "namespace"  # in the run directory
_MOST_RANGES = 64  # of subordinate ids; the kernel takes 340 lines
_KINDS = ("user", "mnt")
_UNSHARED = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS
_SWITCHES = {
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}
"""Settings of distributions, and the value that denies namespaces."""


def enter(root: Path, run_dir: Path) -> None:
    """Join the namespaces of a node, or make them. Does nothing for root.

    Args:
        root: of the node; need not exist.
        run_dir: of the node; made if it is missing.

    Raises:
        NodeError: this host gives ordinary users no namespace, or a directory is unsafe.
    """
    if not os.geteuid():
        return
    check_way(root)  # before `private_directory` makes one
    private_directory(run_dir)
    with open(run_dir / f"{RECORD}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not join(run_dir):
            require_none(run_dir)
            make()
            _keep(run_dir / RECORD)


def require_none(run_dir: Path) -> None:
    """Check that no daemon runs whose namespaces could not be joined.

    Raises:
        NodeError: one does: what it has mounted would not be seen in others.
    """
    if Client(run_dir).alive():
        raise NodeError(
            f"a daemon runs in {run_dir}, and its namespaces cannot be joined",
            hint=f"try again; if that does not help: {ANEW}",
        )


def join(run_dir: Path, root: Path | None = None) -> bool:
    """Join the namespaces of a node; return whether there are any. Does nothing for root.

    Args:
        run_dir: of the node; need not exist.
        root: of the node, if the caller uses it; need not exist.

    Raises:
        NodeError: the kernel refuses, or a directory is unsafe.
    """
    if not os.geteuid():
        return False
    for place in filter(None, (run_dir, root)):  # inside, owners do not differ any more
        check_way(place, whole=place is run_dir)
    for pid, names in _candidates(run_dir):
        with contextlib.ExitStack() as opened:
            try:
                files = [opened.enter_context(open(f"/proc/{pid}/ns/{kind}")) for kind in _KINDS]
            except OSError:
                continue  # the process has ended, or is not ours
            found = [os.readlink(f"/proc/self/fd/{file.fileno()}") for file in files]
            if found[0] == os.readlink("/proc/self/ns/user") or names not in ([], found):
                continue
            try:
                _join([file.fileno() for file in files])
            except OSError as exc:
                error = from_os_error(exc, f"cannot join the namespaces of process {pid}")
                error.hint = f"run it outside of other namespaces; if that does not help: {ANEW}"
                raise error from exc
            return True
    return False


def _candidates(run_dir: Path) -> Iterable[tuple[int, list[str]]]:
    """Yield processes that may be in the namespaces, and what those are called, if it is known.

    The keeper first; then the daemon, which may be in namespaces that others keep, as podman does.
    """
    for name in (RECORD, "daemon.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid, *names = (run_dir / name).read_text().split()
            if names or Client(run_dir).alive():  # else another process may have the number
                yield int(pid), names


def _join(files: list[int]) -> None:
    try:
        here = os.getcwd()
    except OSError:
        here = "/"  # it was removed
    for fd, kind in zip(files, (syscalls.CLONE_NEWUSER, syscalls.CLONE_NEWNS), strict=True):
        syscalls.setns(fd, kind)
    with contextlib.suppress(OSError):
        os.chdir(here)


# -- making them -----------------------------------------------------------------------------------


def make() -> None:
    """Make namespaces for this process, with the user as root and subordinate ids as the others.

    Raises:
        NodeError: this host gives ordinary users none.
    """
    user, group = os.geteuid(), os.getegid()
    source, sink = os.pipe()
    mapper = os.fork()
    if not mapper:
        os.close(sink)
        _map_from_outside(os.getppid(), source, user, group)
    try:
        os.close(source)
        syscalls.unshare(_UNSHARED)
        os.write(sink, b"\n")
    except OSError as exc:
        raise refusal(exc) from exc
    finally:
        os.close(sink)  # the mapper ends without a word
        os.waitpid(mapper, 0)
    try:
        _map_alone(user, group)
    except OSError as exc:
        raise from_os_error(exc, "cannot map the ids of a user namespace") from exc


def _map_from_outside(pid: int, source: int, user: int, group: int) -> NoReturn:
    """Map the ids of process `pid` once it says that it has its namespace; then end."""
    try:
        if os.read(source, 1):
            for program, path, own in (
                ("newuidmap", "/etc/subuid", user),
                ("newgidmap", "/etc/subgid", group),
            ):
                ranges = subordinate_ids(_text(path), _names(user))
                if ranges and (found := shutil.which(program)):
                    words = map(str, (pid, *mapping(own, ranges)))
                    subprocess.run([found, *words], capture_output=True, check=False)
    finally:
        os._exit(0)


def _map_alone(user: int, group: int) -> None:
    """Map the one id of a kind that has no map yet."""
    own = Path("/proc/self")
    if not (own / "uid_map").read_bytes():
        (own / "uid_map").write_text(f"0 {user} 1\n")
    if not (own / "gid_map").read_bytes():
        (own / "setgroups").write_text("deny")
        (own / "gid_map").write_text(f"0 {group} 1\n")


def subordinate_ids(text: str, names: Iterable[str]) -> list[tuple[int, int]]:
    """Return the ranges that a file gives a user: first id and count. Source: subuid(5).

    Args:
        text: of the file.
        names: of the user: its name, its number.
    """
    wanted, found = set(names), []
    for line in text.splitlines():
        name, _, rest = line.strip().partition(":")
        first, _, count = rest.partition(":")
        if name in wanted and first.isdecimal() and count.isdecimal() and int(count):
            found.append((int(first), int(count)))
    return found[:_MOST_RANGES]


def mapping(own: int, ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Return the numbers of a map: `own` is 0 inside, and the ranges follow one another."""
    numbers, inside = [0, own, 1], 1
    for first, count in ranges:
        numbers += [inside, first, count]
        inside += count
    return numbers


def refusal(exc: OSError) -> NodeError:
    """Return the error of a user to whom the kernel gives no namespace."""
    off = [path for path, value in _SWITCHES.items() if _text(path).strip() == value]
    hint = "an administrator can allow it, or run firstread as root"
    if exc.errno == errno.ENOSPC:
        hint = "raise sysctl user.max_user_namespaces, or run firstread as root"
    elif off:
        name = off[0].removeprefix("/proc/sys/").replace("/", ".")
        hint = f"it is off by sysctl {name}: {hint}"
    elif exc.errno == errno.EINVAL:
        hint = "the kernel has none (CONFIG_USER_NS): run firstread as root"
    what = "an ordinary user needs a user namespace, and this host gives none"
    return NodeError(f"{what}: {exc.strerror}", hint=hint)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _names(user: int) -> list[str]:
    try:
        return [str(user), pwd.getpwuid(user).pw_name]
    except KeyError:
        return [str(user)]


# -- the keeper ------------------------------------------------------------------------------------


def _keep(record: Path) -> None:
    """Leave a process in our namespaces, and write down which one."""
    source, sink = os.pipe()
    between = os.fork()
    if not between:
        _become_keeper(sink)
    os.close(sink)
    os.waitpid(between, 0)  # the keeper is nobody's child
    with open(source, "rb") as file:
        answer = file.read()
    if not answer:
        raise NodeError("there can be no more processes", hint="try again, or raise ulimit -u")
    pid = int(answer)
    names = " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in _KINDS)
    replace_file(record, f"{pid} {names}\n".encode())


def _become_keeper(sink: int) -> NoReturn:
    try:
        if not os.fork():
            os.setsid()
            os.chdir("/")
            os.write(sink, b"%d" % os.getpid())
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            if program := shutil.which("sleep"):  # smaller than we are
                with contextlib.suppress(OSError):
                    os.execv(program, ["sleep", "infinity"])
            while True:
                signal.pause()
    finally:
        os._exit(0)
