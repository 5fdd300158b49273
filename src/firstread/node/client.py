# SPDX-License-Identifier: Apache-2.0
"""Talks to the daemon of a run directory, and starts one on demand.

Owns the client side of `firstread.node.control`. Errors of the daemon are raised here as what they
were there.

It speaks HTTP/1.0 itself, one request a connection: http.client would cost every command more time
to import than the daemon takes to answer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from firstread import errors
from firstread.errors import FirstreadError, NodeError, UsageError, from_os_error
from firstread.node.logfile import LOG_BYTES, daemon_log, turn_over
from firstread.node.namespace import apart, device_at, is_mount_point, is_seen, mount_namespace
from firstread.private import is_ours, private_directory

_TIMEVAL = struct.Struct("@ll")

START_S = 30.0  # for a daemon to answer after it was started
RECONNECT_S = 0.1  # before who watches asks the next fetcher
REPEATS = 3  # of a request, if the fetcher dies before it has answered
_PATHS = {"DOCKER_CONFIG", "FIRSTREAD_CONFIG", "FIRSTREAD_CREDENTIALS_DIR", "REGISTRY_AUTH_FILE"}
_PATH_LIST = "FIRSTREAD_HOSTS_DIR"


class _HungUpError(NodeError):
    """The fetcher died while it had our request."""


def socket_path(run_dir: Path) -> Path:
    """Return the control socket below a run directory."""
    return run_dir / "control.sock"


class Client:
    """A daemon's control socket.

    Args:
        run_dir: of the daemon.
        timeout_s: for each step of an answer; None for those who want it however long it takes.
    """

    def __init__(self, run_dir: Path, timeout_s: float | None = None) -> None:
        self._path = socket_path(run_dir)
        self._timeout_s = timeout_s
        self._connection: socket.socket | None = None  # that waits for an answer
        self._left = False

    def hang_up(self) -> None:
        """Make the request of another thread fail soon, and all further ones.

        The daemon ends what it does for nobody else.
        """
        self._left = True
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def alive(self) -> bool:
        """Return whether a daemon listens."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                self._connect(sock)
                return True
        except TimeoutError:
            return True  # it is busy
        except OSError:
            return False

    def closed_to_us(self) -> bool:
        """Return whether this user may not ask a daemon, so that nobody can tell if one listens."""
        try:
            self._path.stat()
        except PermissionError:
            return True
        except OSError:
            return False
        return not os.access(self._path, os.W_OK, effective_ids=True)

    def get(self, path: str) -> Any:
        """Return the JSON document at `path`.

        Asks again if the fetcher is replaced meanwhile.

        Raises:
            FirstreadError: the daemon's own error, or NodeError if there is no daemon.
        """
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """Return the text at `path`; otherwise as `get`."""
        return self._repeated("GET", path).decode()

    def post(self, path: str, **request: Any) -> Any:
        """Ask the daemon to do something; return its answer.

        Raises:
            FirstreadError: as `get`.
        """
        return json.loads(self._exchange("POST", path, json.dumps(request).encode()))

    def mount(self, **request: Any) -> Any:
        """Ask for a mount; ask again if the fetcher dies meanwhile, whatever it had done by then.

        Raises:
            FirstreadError: as `get`.
            NodeError: it would not be seen here; nothing is left of it.
        """
        request["command"] = os.urandom(8).hex()  # by which the next fetcher knows it
        directory = request.get("directory")
        try:
            answer = json.loads(self._repeated("POST", "/mount", json.dumps(request).encode()))
        except UsageError as exc:
            if directory is not None and os.path.isdir(directory) and not self._is_near():
                raise self._apart(f"{exc.message} where the daemon is") from exc
            raise
        place, device = answer["mountpoint"], answer.get("device_number")
        if device is not None and not is_seen(place, device):
            if directory is None:
                self.release(request["holder"])
            else:
                self._unmount(place, lazy=False)
            raise self._apart(f"what is mounted at {place} is not seen here")
        return answer

    def _is_near(self) -> bool:
        """Return whether the daemon is in our mount namespace."""
        return bool(self.get("/status").get("namespace") == mount_namespace())

    def _apart(self, what: str) -> NodeError:
        return apart(what, self.get("/status"))

    def pull(self, **request: Any) -> Any:
        """Ask for an image without a mount; otherwise as `mount`."""
        return json.loads(self._repeated("POST", "/pull", json.dumps(request).encode()))

    def umount(self, directory: str, *, lazy: bool = False) -> None:
        """Ask for the end of a mount; otherwise as `mount`.

        Raises:
            NodeError: it is mounted on here: the daemon has unmounted another copy of it.
        """
        before = device_at(directory)
        self._unmount(directory, lazy=lazy)
        stays = before is not None and device_at(directory) == before
        if stays and is_mount_point(directory) and not self._is_near():
            raise self._apart(f"{directory} is unmounted for the daemon, but still mounted here")

    def _unmount(self, directory: str, *, lazy: bool) -> None:
        body = json.dumps({"directory": directory, "lazy": lazy}).encode()
        try:
            self._exchange("POST", "/umount", body)
        except _HungUpError:
            with contextlib.suppress(UsageError):  # it was unmounted before the fetcher died
                self._repeated("POST", "/umount", body)

    def release(self, holder: str) -> None:
        """Give back what `holder` shares; otherwise as `mount`."""
        self._repeated("POST", "/release", json.dumps({"holder": holder}).encode())

    def _repeated(self, method: str, path: str, body: bytes = b"") -> bytes:
        for _ in range(REPEATS):
            try:
                return self._exchange(method, path, body)
            except _HungUpError:
                continue
        return self._exchange(method, path, body)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what happens, until the daemon ends. What happens between two fetchers is missed.

        Raises:
            FirstreadError: the daemon's own error, or NodeError if there is none.
        """
        begun = False
        while not begun or self.alive():
            try:
                with self._ask("GET", "/events") as answer:
                    status, length = _read_head(answer)
                    if status != 200:
                        raise _error(json.loads(_read_body(answer, length)))
                    begun = True
                    for line in answer:
                        if line.strip() and line.endswith(b"\n"):
                            yield json.loads(line)
            except OSError as exc:
                if not (begun and isinstance(exc, ConnectionError)):
                    raise self._gone(exc) from exc
            time.sleep(RECONNECT_S)

    def _exchange(self, method: str, path: str, body: bytes = b"") -> bytes:
        try:
            with self._ask(method, path, body) as answer:
                status, length = _read_head(answer)
                data = _read_body(answer, length)
        except ConnectionRefusedError as exc:
            raise self._gone(exc) from exc
        except ConnectionError as exc:
            if self._left:
                raise NodeError("we hung up on the daemon") from exc
            raise _HungUpError("the daemon hung up", hint="its log says why") from exc
        except TimeoutError as exc:
            raise NodeError(
                f"the daemon gives no answer within {self._timeout_s:g} s",
                hint="its log may say why; restart it: reads of its mounts wait meanwhile",
            ) from exc
        except OSError as exc:
            raise self._gone(exc) from exc
        if status != 200:
            raise _error(json.loads(data))
        return data

    def _ask(self, method: str, path: str, body: bytes = b"") -> BinaryIO:
        """Send a request; return the connection, to read the answer from."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            self._connection = connection
            if self._left:
                raise ConnectionAbortedError
            self._connect(connection)
            head = f"{method} {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
            with contextlib.suppress(BrokenPipeError):  # one who refuses has said so already
                connection.sendall(head.encode() + body)
            return connection.makefile("rb")

    def _connect(self, sock: socket.socket) -> None:
        """Connect to the daemon; wait if many others do.

        A socket with a timeout of Python's is non-blocking below: its connect fails at once where
        the backlog is full. The kernel's own timeout of sending holds for connect too, unix(7).
        """
        if self._timeout_s is not None:
            seconds, rest = divmod(self._timeout_s, 1)
            limit = _TIMEVAL.pack(int(seconds), max(1, int(rest * 1e6)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            sock.connect(str(self._path))
        except BlockingIOError as exc:
            raise TimeoutError("it accepts no connection") from exc
        if not is_ours(sock):
            raise PermissionError(errno.EPERM, "another user listens there")
        sock.settimeout(self._timeout_s)

    def _gone(self, exc: OSError) -> NodeError:
        if self.closed_to_us():
            return NodeError(f"this user may not ask at {self._path}", hint="run it as root")
        why = exc.strerror or exc
        return NodeError(
            f"no daemon answers at {self._path}: {why}", hint="start one: firstread daemon"
        )


def _read_head(answer: BinaryIO) -> tuple[int, int]:
    """Read the head of an answer; return its status and the length of its body."""
    words = answer.readline().split()
    if len(words) < 2:
        raise ConnectionError("it hung up")
    length = 0
    while (line := answer.readline()).strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    if not line:
        raise ConnectionError("it hung up")
    return int(words[1]), length


def _read_body(answer: BinaryIO, length: int) -> bytes:
    data = answer.read(length)
    if len(data) < length:
        raise ConnectionError("it hung up")
    return data


def _error(document: dict[str, Any]) -> FirstreadError:
    """Return an error of the daemon as an exception of its kind."""
    kind = getattr(errors, str(document.get("error")), FirstreadError)
    if not (isinstance(kind, type) and issubclass(kind, FirstreadError)):
        kind = FirstreadError
    context = {name: document.get(name) for name in ("hint", "image", "layer")}
    return kind(document.get("message", "the daemon failed"), **context)


def connected(root: Path, run_dir: Path) -> Client:
    """Return a client of the daemon of `run_dir`, which is started if none runs.

    Where somebody else starts daemons (systemd, Kubernetes), ``FIRSTREAD_START_DAEMON=0`` keeps
    this process from it.

    Raises:
        NodeError: it does not start, with the last lines of its log; or it may not be started.
    """
    client = Client(run_dir)
    if not client.alive():
        if client.closed_to_us():
            client.get("/status")
        if os.environ.get("FIRSTREAD_START_DAEMON") == "0":
            raise NodeError(
                f"no daemon answers at {socket_path(run_dir)}, and none may be started",
                hint="see why the service is not there; FIRSTREAD_START_DAEMON=0 is set",
            )
        try:
            private_directory(run_dir)
            with open(run_dir / "start.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not client.alive():
                    _start(client, root, run_dir)
        except OSError as exc:
            raise from_os_error(exc, "cannot start a daemon") from exc
    return client


def _start(client: Client, root: Path, run_dir: Path) -> None:
    log_path = daemon_log(run_dir)
    with contextlib.suppress(FileNotFoundError):
        if log_path.stat().st_size >= LOG_BYTES:
            turn_over(log_path)  # now: what follows is looked at if it does not start
    with open(log_path, "ab") as log:
        start = log.tell()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "firstread", "daemon", "--root", root, "--run-dir", run_dir],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=_environment(),
        )
    deadline = time.monotonic() + START_S
    while not client.alive():
        if daemon.poll() is not None or time.monotonic() > deadline:
            with open(log_path, "rb") as log:
                log.seek(start)
                said = log.read().decode(errors="replace")
            raise _not_started(said, log_path)
        time.sleep(0.01)


def _environment() -> dict[str, str]:
    """Return the environment of a daemon: what is relative in it counts from here, not from /."""
    environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
    for name in _PATHS & environment.keys():
        if path := environment[name]:
            environment[name] = os.path.abspath(path)
    if paths := environment.get(_PATH_LIST):
        absolute = (path and os.path.abspath(path) for path in paths.split(os.pathsep))
        environment[_PATH_LIST] = os.pathsep.join(absolute)
    return environment


def _not_started(said: str, log_path: Path) -> NodeError:
    """Return the error of a daemon that does not start: what it said itself, and what helps."""
    hint = f"see {log_path}, or run 'firstread daemon' in the foreground"
    lines = [line.strip() for line in said.strip().splitlines()]
    own = [n for n, line in enumerate(lines) if line.startswith("firstread: ")]
    if own:
        message, *more = lines[own[-1] :]
        why, hint = message.removeprefix("firstread: "), "; ".join(more) or hint
    else:
        why = " / ".join(lines[-3:]) or "it says nothing"
    return NodeError(f"the daemon does not start: {why}", hint=hint)
