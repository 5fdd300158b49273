# SPDX-License-Identifier: Apache-2.0
"""Registries for tests: a real one, and (from `scripted`) one that fails by a script.

Owns the real one's process, temporary storage and access log, and removes them with its context.
Both listen on loopback only, unless a test says otherwise.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from firstread.errors import NodeError
from firstread.testing.patience import PATIENCE_S
from firstread.testing.scripted import PASSWORD, USERNAME, ScriptedRegistry

__all__ = ["NEW_PASSWORD", "PASSWORD", "USERNAME", "Counts", "DockerRegistry", "ScriptedRegistry"]

_PROGRAM: Final = "docker-registry"  # Debian's package of the same name

NEW_PASSWORD: Final = "open barley"
# By bcrypt: docker-registry accepts no other hash.
_HTPASSWD: Final = {
    PASSWORD: "tester:$2b$04$I0BrReE8uYnAbjCZRSOicuO5P4NRMQT1pAciEfTReye4SHFNd5la2\n",
    NEW_PASSWORD: "tester:$2b$04$I0BrReE8uYnAbjCZRSOicuS5wWjjJtP4vhXObjE1gTbsJj6tG.lwC\n",
}

_LOG_LINE: Final = re.compile(r'"([A-Z]+) (\S+) HTTP/[\d.]+" (\d+) (\d+)')


@dataclass(frozen=True, slots=True)
class Counts:
    """The requests to a registry, and the bytes that it sent.

    Args:
        requests: number, by ``"GET /v2/…"`` without the query.
        bytes: of the bodies of the answers, by the same.
    """

    requests: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def requests_of(self, part: str = "") -> int:
        """Return the number of requests whose ``"METHOD path"`` contains `part`."""
        return sum(count for key, count in self.requests.items() if part in key)

    def bytes_of(self, part: str = "") -> int:
        """Return the bytes sent in answer to requests whose ``"METHOD path"`` contains `part`."""
        return sum(count for key, count in self.bytes.items() if part in key)


class DockerRegistry:
    """Debian's docker-registry on a free port; a context manager.

    Args:
        address: of the interface to listen on.
        login: demand `USERNAME` and `PASSWORD` (basic authentication).
        readonly: refuse every write.
        storage: directory of its data, which stays; None for a temporary one.
        notify: address of a webhook, and the ``Authorization`` to show it.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        login: bool = False,
        readonly: bool = False,
        storage: Path | None = None,
        notify: tuple[str, str] | None = None,
    ) -> None:
        self._address = address
        self._login = login
        self._readonly = readonly
        self._storage = storage
        self._notify = notify
        self._base = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._forgotten = 0  # bytes of the log before the last `forget`
        self.host = ""

    def __enter__(self) -> Self:
        if shutil.which(_PROGRAM) is None:
            raise NodeError(f"{_PROGRAM} is not installed", hint=f"apt install {_PROGRAM}")
        self._base = Path(tempfile.mkdtemp(prefix="firstread-registry-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._base, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Process id of the registry."""
        assert self._process is not None
        return self._process.pid

    @property
    def storage(self) -> Path:
        """Directory of its data: ``docker/registry/v2/…`` below it."""
        return self._storage or self._base / "storage"

    @property
    def counts(self) -> Counts:
        """All finished requests since the start or the last `forget`."""
        self._settle()
        counts = Counts()
        with self._log.open("rb") as log:
            log.seek(self._forgotten)
            for match in _LOG_LINE.finditer(log.read().decode("utf-8", "replace")):
                method, target, _, size = match.groups()
                if "?firstread-" not in target:
                    key = f"{method} {target.partition('?')[0]}"
                    counts.requests[key] += 1
                    counts.bytes[key] += 0 if method == "HEAD" else int(size)
        return counts

    def forget(self) -> None:
        """Begin to count anew."""
        self._settle()
        self._forgotten = self._log.stat().st_size

    def open_uploads(self, below: str = "") -> int:
        """Return the number of uploads below a path that are neither ended nor cancelled.

        Of a cancelled one docker-registry 2.8 leaves a directory with a state of its digest.
        """
        repositories = self.storage / "docker/registry/v2/repositories"
        return len(list((repositories / below).rglob("_uploads/*/startedat")))

    def stop(self) -> None:
        """Stop the server; its data stays until the context ends."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it has nothing in memory that it had not written
            process.wait(timeout=PATIENCE_S)

    def restart(self) -> None:
        """Start the server again, with the same data and port."""
        self.stop()
        self._run()

    def change_password(self, password: str = NEW_PASSWORD) -> None:
        """Demand another password from now on, `PASSWORD` or `NEW_PASSWORD`."""
        (self._base / "htpasswd").write_text(_HTPASSWD[password])
        self.restart()  # it would notice the change a moment later

    @property
    def _log(self) -> Path:
        return self._base / "log"

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind((self._address, 0))
            self.host = f"{self._address}:{probe.getsockname()[1]}"
        (self._base / "htpasswd").write_text(_HTPASSWD[PASSWORD])
        # JSON is YAML, too.
        (self._base / "config.yml").write_text(json.dumps(self._config()))
        self._run()

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "delete": {"enabled": True},
                "maintenance": {"readonly": {"enabled": self._readonly}},
            },
            "http": {"addr": self.host, "secret": "for tests"},
        }
        if self._login:
            path = str(self._base / "htpasswd")
            config["auth"] = {"htpasswd": {"realm": "tests", "path": path}}
        if self._notify is not None:
            url, shown = self._notify
            endpoint = {"name": "webhook", "url": url, "headers": {"Authorization": [shown]}}
            retry = {"timeout": "5s", "threshold": 3, "backoff": "200ms"}
            config["notifications"] = {"endpoints": [endpoint | retry]}
        return config

    def _run(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_PROGRAM, "serve", str(self._base / "config.yml")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text("utf-8", "replace")[-500:]
                raise NodeError(f"{_PROGRAM} does not start: {said}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        host, port = self.host.split(":")
        with socket.socket() as client:
            return client.connect_ex((host, int(port))) == 0

    def _settle(self) -> None:
        """Wait until the log has all that was answered before: ours comes behind it."""
        if self._process is None:
            return
        marker = f"?firstread-{time.monotonic_ns()}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"http://{self.host}/{marker}", method="HEAD")
        try:
            opener.open(request, timeout=PATIENCE_S).close()
        except urllib.request.HTTPError as answer:  # whatever it says, it was logged
            answer.close()
        while marker.encode() not in self._log.read_bytes():
            time.sleep(0.005)
