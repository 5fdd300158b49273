# SPDX-License-Identifier: Apache-2.0
"""What a command asks of the daemon of a run directory; starts one on demand.

Owns the requests, and which of them are repeated when a fetcher dies. Errors of the daemon are
raised here as what they were there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firstread.control.exchange import Exchange, HungUpError
from firstread.control.namespace import apart, device_at, is_mount_point, is_seen, mount_namespace
from firstread.control.ondemand import start
from firstread.errors import NodeError, UsageError, from_os_error
from firstread.private import private_directory

RECONNECT_S = 0.1  # before a watcher asks the next fetcher
REPEATS = 3  # of a request, if the fetcher dies before it has answered


def socket_path(run_dir: Path) -> Path:
    """Return the control socket below a run directory."""
    return run_dir / "control.sock"


class Client(Exchange):
    """A daemon's control socket.

    Args:
        run_dir: of the daemon.
        timeout_s: for each step of an answer; None to wait however long it takes.
    """

    def __init__(self, run_dir: Path, timeout_s: float | None = None) -> None:
        super().__init__(socket_path(run_dir), timeout_s)

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
        return json.loads(self.ask("POST", path, json.dumps(request).encode()))

    def mount(self, **request: Any) -> Any:
        """Ask for a mount; ask again if the fetcher dies meanwhile, whatever it had done by then.

        Raises:
            FirstreadError: as `get`.
            NodeError: it would not be seen here; nothing is left of it.
        """
        request["command"] = os.urandom(8).hex()  # by which the next fetcher knows it
        request.setdefault("context", os.environ.get("TRACEPARENT", ""))
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

    def pulled(self, **request: Any) -> None:
        """Tell of a pull of somebody else; otherwise as `mount`."""
        self._repeated("POST", "/pulled", json.dumps(request).encode())

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
            self.ask("POST", "/umount", body)
        except HungUpError:
            with contextlib.suppress(UsageError):  # it was unmounted before the fetcher died
                self._repeated("POST", "/umount", body)

    def release(self, holder: str) -> None:
        """Give back what `holder` shares; otherwise as `mount`."""
        self._repeated("POST", "/release", json.dumps({"holder": holder}).encode())

    def _repeated(self, method: str, path: str, body: bytes = b"") -> bytes:
        for _ in range(REPEATS):
            try:
                return self.ask(method, path, body)
            except HungUpError:
                continue
        return self.ask(method, path, body)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what happens, until the daemon ends. What happens between two fetchers is missed.

        Raises:
            FirstreadError: the daemon's own error, or NodeError if there is none.
        """
        begun = False
        while not begun or self.alive():
            for line in self.lines("/events", begun=begun):
                yield json.loads(line)
            begun = True
            time.sleep(RECONNECT_S)


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
                    start(root, run_dir, client.alive)
        except OSError as exc:
            raise from_os_error(exc, "cannot start a daemon") from exc
    return client
