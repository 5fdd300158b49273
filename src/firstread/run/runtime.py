# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime, crun or runc: create, start, exec, delete.

Owns its command line and the meaning of its errors; does not wait for the container. Invariant: a
`create` that raises leaves nothing in the runtime's state.

``create`` and ``start`` replace ``run``, whose exit status could be the container's, or that of a
runtime which could not start it.

Facts about runc 1.1 and crun 1.8:

* The container's first process is a child of the runtime, which exits. The nearest child subreaper
  (prctl(2)) adopts the process, and can wait for it as for any child.
* ``create`` opens the executable, so a missing one is an error of the runtime; ``start`` succeeds
  before execve(2), so a bad interpreter shows in the exit status of the container.
* A failure writes its message to ``--log``, and to standard error, which is the container's. crun
  writes both in the format of the log, even when execve(2) fails after the start: so its log is
  plain text, the bare message, and runc's is JSON.
* Both hand LISTEN_FDS sockets and NOTIFY_SOCKET of their environment to the container.

Source: the command line of runc that crun shares; OCI runtime specification 1.0.2, runtime.md.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import AF_UNIX, recv_fds, socket

import msgspec

from firstread.errors import FirstreadError, NodeError, UsageError, from_os_error
from firstread.printable import printable
from firstread.run.cgroups import Cgroups, remove_groups

KNOWN = ("crun", "runc")
"""In order of preference: crun also works where it cannot create control groups."""

_LOG, _PID = "runtime.log", "pid"  # in the directory that a runtime gets
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_STATED = re.compile(r"exec: \"[^\"]*\": stat ")
_NOT_INVOKABLE = re.compile(r"open executable: |exec: \"[^\"]*\": (?:permission denied|stat )")


class CommandError(UsageError):
    """The container's command cannot be invoked (126) or found (127), in a shell's words."""

    def __init__(self, message: str, *, exit_code: int = 126, **context: str | None) -> None:
        super().__init__(message, **context)
        self.exit_code = exit_code


def run_exit_code(error: FirstreadError) -> int:
    """Return the exit code of ``run``, as docker has it: 125, or the command's 126 or 127."""
    return error.exit_code if isinstance(error, CommandError) else 125


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime program with one directory of state.

    Args:
        program: absolute path.
        state: its ``--root``.
        prefix: of the command lines of ``create`` and ``exec``, where crun refuses some hosts.
        cgroups: whether it can create control groups here.
    """

    program: str
    state: Path
    prefix: tuple[str, ...] = ()
    cgroups: bool = True

    @property
    def name(self) -> str:
        return Path(self.program).name

    def create(
        self,
        container_id: str,
        bundle: Path,
        program: str,
        stdio: Sequence[int],
        console: Path | None = None,
    ) -> int:
        """Create the container without starting it; return the pid of its first process.

        Args:
            container_id: chosen by the caller.
            bundle: directory with ``config.json``; gets ``pid`` and ``runtime.log``.
            program: that the container runs, for messages.
            stdio: three descriptors for the container; with a terminal, for the runtime.
            console: socket that receives the terminal.

        Raises:
            CommandError: the image does not have the command, or it cannot be executed.
            NodeError: anything else.
        """
        status = self._spawn(
            ["create", "--bundle", str(bundle)], container_id, bundle, stdio, console
        )
        if status:
            self.delete(container_id)
            message = _last_message(bundle / _LOG, program)
            raise _create_error(
                program, message, f"{self.name} cannot create the container", status
            )
        try:
            return self._pid(bundle)
        except NodeError:
            self.delete(container_id)
            raise

    def exec(
        self,
        container_id: str,
        directory: Path,
        program: str,
        stdio: Sequence[int],
        console: Path | None = None,
    ) -> int:
        """Start one more process in a running container; return its pid.

        Args:
            container_id: of the container.
            directory: with ``process.json``; gets ``pid`` and ``runtime.log``.
            program: that the process runs, for messages.
            stdio: as in `create`.
            console: as in `create`.

        Raises:
            CommandError: as `create`.
            NodeError: as `create`.
        """
        command = ["exec", "--detach", "--process", str(directory / "process.json")]
        status = self._spawn(command, container_id, directory, stdio, console)
        if status:
            message = _last_message(directory / _LOG, program)
            raise _create_error(program, message, f"{self.name} cannot start the process", status)
        return self._pid(directory)

    def _spawn(
        self,
        command: Sequence[str],
        container_id: str,
        directory: Path,
        stdio: Sequence[int],
        console: Path | None,
    ) -> int:
        """Run a command that makes a process; `directory` gets the pid and the runtime's log."""
        arguments = [*command, "--pid-file", str(directory / _PID)]
        if console:
            arguments += ["--console-socket", str(console)]
        return self._run(
            [*arguments, container_id],
            prefix=self.prefix,
            log=directory / _LOG,
            stdio=stdio,
            timeout_seconds=None,
        )

    def _pid(self, directory: Path) -> int:
        try:
            return int((directory / _PID).read_text())
        except (OSError, ValueError) as exc:
            raise NodeError(
                f"{self.program} has started no process, and reports success",
                hint="--runtime and FIRSTREAD_RUNTIME take crun, runc, or a program like them",
            ) from exc

    def start(self, container_id: str, bundle: Path) -> None:
        """Start the container's process.

        Raises:
            NodeError: the runtime fails.
        """
        log = bundle / _LOG
        status = self._run(["start", container_id], log=log)
        if status:
            message = _last_message(log) or f"exit status {status}"
            raise NodeError(f"{self.name} cannot start the container: {message}")

    def delete(self, container_id: str) -> None:
        """Kill and forget the container, if there is one, and what a dead runtime left of it."""
        self._run(["delete", "--force", container_id])
        remove_groups(container_id)

    def _run(
        self,
        arguments: Sequence[str],
        *,
        prefix: Sequence[str] = (),
        log: Path | None = None,
        stdio: Sequence[int] = (subprocess.DEVNULL,) * 3,
        timeout_seconds: float | None = 60,
    ) -> int:
        options = ["--root", str(self.state)]
        if log:
            # Relative: crun takes the text before a colon for the name of a log driver.
            options += ["--log", log.name]
            options += [] if self.name == "crun" else ["--log-format", "json"]
        if self.name == "crun" and not self.cgroups:
            options += ["--cgroup-manager", "disabled"]
        try:
            with subprocess.Popen(
                [*prefix, self.program, *options, *arguments],
                stdin=stdio[0],
                stdout=stdio[1],
                stderr=stdio[2],
                cwd=log.parent if log else None,
                env={"PATH": _PATH},
            ) as process:
                if not _ends(process, timeout_seconds):
                    raise NodeError(f"{self.name} {arguments[0]} does not come to an end")
        except OSError as exc:
            raise from_os_error(exc, f"cannot run {self.program}") from exc
        return process.returncode


def _ends(process: subprocess.Popen[bytes], timeout_seconds: float | None) -> bool:
    """Wait for a process; return whether it ended by itself. It never outlives the call.

    `Popen.wait` with a timeout polls, with pauses of up to 50 ms.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
        try:
            return bool(select.select([pidfd], [], [], timeout_seconds)[0])
        finally:
            os.close(pidfd)
    finally:
        process.kill()  # without effect after its end


def find_runtime(name: str | None, state: Path, cgroups: Cgroups) -> Runtime:
    """Return the runtime to use.

    Args:
        name: program or path that the user chose; None for the first one installed.
        state: directory for its state.
        cgroups: abilities of the host.

    Raises:
        NodeError: no such runtime is installed.
    """
    path = f"{os.environ.get('PATH', '')}:{_PATH}"
    for candidate in (name,) if name else KNOWN:
        if program := shutil.which(candidate, path=path):
            prefix = cgroups.prefix if Path(program).name == "crun" else ()
            return Runtime(str(Path(program).absolute()), state, prefix, cgroups.usable)
    missing = f"OCI runtime {name!r} is not installed" if name else "no OCI runtime is installed"
    raise NodeError(missing, hint="install Debian's package crun or runc")


class ConsoleSocket:
    """Receives the container's terminal from the runtime.

    Args:
        directory: gets ``console``. Its path can be longer than the 107 bytes that sockets allow,
            so the socket's name leads through our own descriptor of the directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._directory}/console")
        self._socket = socket(AF_UNIX)
        self._socket.bind(str(self.path))
        self._socket.listen(1)
        self._socket.settimeout(10)

    def receive(self) -> int:
        """Return the descriptor of the terminal's master side; after `Runtime.create`.

        Raises:
            NodeError: none was sent.
        """
        try:
            connection, _ = self._socket.accept()
            with connection:
                descriptors = recv_fds(connection, 256, 1)[1]
        except OSError as exc:
            raise from_os_error(exc, "no terminal from the runtime") from exc
        if not descriptors:
            raise NodeError("no terminal from the runtime")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def close(self) -> None:
        self._socket.close()
        os.close(self._directory)


class _LogLine(msgspec.Struct):
    msg: str = ""
    level: str = ""


def _last_message(log: Path, program: str = "") -> str:
    """Return the last error in the runtime's log, without runc's prefixes.

    Args:
        log: of the runtime.
        program: that it may name; crun does so as it is, on several lines if need be.
    """
    try:
        text = log.read_bytes().replace(program.encode(), printable(program).encode())
        lines = text.splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = msgspec.json.decode(line, type=_LogLine)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return line.decode(errors="replace")
        if entry.level in {"error", "fatal"}:
            message = entry.msg.removeprefix("runc create failed: ").removeprefix("exec failed: ")
            return message.removeprefix("unable to start container process: ")
    return ""


def _create_error(program: str, message: str, what: str, status: int) -> FirstreadError:
    """Distinguish the three kinds of failure, and name the program, as crun does not."""
    reason = message.rpartition(": ")[2].lower()
    if _is_not_found(message):
        where = "no such file or directory" if "/" in program else "executable not found in $PATH"
        return CommandError(f'exec: "{program}": {where}', exit_code=127)
    if _NOT_INVOKABLE.search(message):
        return CommandError(f'exec: "{program}": {reason}', exit_code=126)
    return NodeError(f"{what}: {message or f'exit status {status}'}")


def _is_not_found(message: str) -> bool:
    """Return whether a runtime misses the program: in crun's words, then in runc's."""
    if "not found" in message.partition("executable file ")[2]:
        return True
    stated = _STATED.search(message)
    return stated is not None and message.find("no such file", stated.end()) >= 0
