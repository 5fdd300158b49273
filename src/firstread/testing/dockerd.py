# SPDX-License-Identifier: Apache-2.0
"""A dockerd on a containerd with our snapshotter, and its client.

Owns the process and its directories; an engine of the machine itself stays untouched. Containers
have no network, so that nothing of the machine's firewall changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from typing import Any, Final, Self

from firstread.run.overlay import unmount_below
from firstread.testing.command import Ran, ran
from firstread.testing.containerd import Containerd
from firstread.testing.patience import PATIENCE_S

NAMESPACE: Final = "moby"  # of docker, in containerd
BUILD_S: Final = 300.0
_OLD: Final = 24  # before this, docker has no image store in containerd


def missing() -> str:
    """Return why docker cannot be tested on this machine; empty if it can."""
    for program in ("docker", "dockerd", "containerd", "runc"):
        if not shutil.which(program):
            return f"there is no {program} in PATH"
    said = subprocess.run(["dockerd", "--version"], check=True, capture_output=True, text=True)
    found = re.search(r"version (\d+)\.", said.stdout)  # one that was built from source has none
    if found and int(found[1]) < _OLD:
        return f"{said.stdout.strip()} has no image store in containerd: {_OLD} has"
    return ""


class Dockerd:
    """Docker's daemon; a context manager.

    Args:
        containerd: that it uses.
    """

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self.place = containerd.scratch / "docker"
        self.place.mkdir()
        self._address = f"unix://{self.place}/d.sock"
        self._process: subprocess.Popen[bytes] | None = None
        plugins = self.place / "client" / "cli-plugins"
        plugins.mkdir(parents=True)
        self.has_buildx = bool(found := shutil.which("docker-buildx") or shutil.which("buildx"))
        if found:
            (plugins / "docker-buildx").symlink_to(found)
        settings = {
            "storage-driver": "firstread",
            "features": {"containerd-snapshotter": True},
            "containerd": str(containerd.socket),
            "data-root": str(self.place / "data"),
            "exec-root": str(self.place / "exec"),
            "pidfile": str(self.place / "pid"),
            "insecure-registries": ["127.0.0.1"],
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "userland-proxy": False,
        }
        (self.place / "daemon.json").write_text(json.dumps(settings))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            containers = self.docker("ps", "--all", "--quiet").stdout.split()
            if containers:
                self.docker("rm", "--force", *containers)
        finally:
            self.stop()
            unmount_below(self.place)

    def start(self) -> None:
        """Start it; return when it answers."""
        command = ["dockerd", f"--config-file={self.place}/daemon.json", f"--host={self._address}"]
        with (self._containerd.scratch / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._containerd.wait(lambda: self.docker("version").code == 0)

    def stop(self) -> None:
        """End it, as a service does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=PATIENCE_S)

    def docker(self, *arguments: str, timeout_s: float = PATIENCE_S, **variables: str) -> Ran:
        """Run a command of docker."""
        environment = os.environ | {"DOCKER_CONFIG": str(self.place / "client")} | variables
        command = ["docker", "--host", self._address, *arguments]
        return ran(command, timeout_s=timeout_s, env=environment)

    def did(self, *arguments: str, **variables: str) -> str:
        """Run a command of docker that must succeed; return what it printed."""
        ran = self.docker(*arguments, timeout_s=BUILD_S, **variables)
        assert ran.code == 0, ran
        return ran.stdout.strip()

    def run(self, image: str, script: str, *options: str) -> str:
        """Run a script of the shell in a new container, as root; return what it printed."""
        command = ("run", "--network=none", "--user=0", "--entrypoint=sh", *options)
        return self.did(*command, image, "-c", script)

    def build(self, tag: str, *lines: str, with_buildkit: bool = True) -> None:
        """Build an image of the lines of a Dockerfile."""
        context = self.place / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text("\n".join(lines))
        buildkit = "1" if with_buildkit else "0"
        self.did("build", "--network=none", "-t", tag, str(context), DOCKER_BUILDKIT=buildkit)

    def image(self, name: str) -> dict[str, Any]:
        """Return the row of an image in ``docker images``: its id, age and size."""
        rows = self.did("images", "--format={{json .}}", name).splitlines()
        (row,) = map(json.loads, rows)
        found: dict[str, Any] = row
        return found

    def inspected(self, name: str) -> dict[str, Any]:
        """Return what ``docker image inspect`` tells."""
        (found,) = json.loads(self.did("image", "inspect", name))
        told: dict[str, Any] = found
        return told
