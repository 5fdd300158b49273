# SPDX-License-Identifier: Apache-2.0
"""The API of Kubernetes on loopback: a real etcd, a real kube-apiserver, and kubectl for them.

Owns both processes and their directory. No controller and no node runs: the API server checks and
keeps objects as in any cluster, and nothing becomes of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final, Self

from firstread.testing.certificates import make_certificate
from firstread.testing.command import Ran, ran
from firstread.testing.patience import PATIENCE_S
from firstread.testing.ports import free_port

PROGRAMS: Final = ("etcd", "kube-apiserver", "kubectl", "openssl")
TOP: Final = Path(__file__).parents[2]


class ControlPlane:
    """An API server with an empty cluster; a context manager.

    Args:
        directory: for its data, logs and keys; exists.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kubeconfig = directory / "kubeconfig"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            etcd = self._start_etcd()
            self._start_server(etcd)
            self.wait("get", "--raw=/readyz")
            # Pods need it; a controller makes it in other clusters.
            made = self.kubectl("create", "serviceaccount", "default")
            assert made.code == 0, made
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):  # the server flushes to etcd as it ends
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=PATIENCE_S)
            process.kill()
            process.wait()

    def kubectl(self, *arguments: str | Path, given: str = "") -> Ran:
        """Run kubectl as an administrator, with `given` on its stdin."""
        return self.run(["kubectl", *map(str, arguments)], given)

    def run(self, command: list[str], given: str = "") -> Ran:
        """Run a command in the top directory; its kubectl talks to this server."""
        environment = os.environ | {"KUBECONFIG": str(self._kubeconfig)}
        return ran(command, stdin=given, cwd=TOP, env=environment)

    def wait(self, *arguments: str) -> None:
        """Run kubectl until it succeeds."""
        deadline = time.monotonic() + PATIENCE_S
        while self.kubectl(*arguments).code:
            assert all(process.poll() is None for process in self._processes), self._logs()
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.5)

    def version(self) -> str:
        """Return the versions of server and kubectl, such as ``v1.37.2 and v1.37.2``."""
        found = self.kubectl("version", "--output=json").json
        return f"{found['serverVersion']['gitVersion']} and {found['clientVersion']['gitVersion']}"

    def _start_etcd(self) -> str:
        clients, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._start(
            "etcd",
            *(f"--data-dir={self._directory / 'etcd'}", "--unsafe-no-fsync", "--log-level=error"),
            *(f"--listen-client-urls={clients}", f"--advertise-client-urls={clients}"),
            *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
            f"--initial-cluster=default={peers}",
        )
        return clients

    def _start_server(self, etcd: str) -> None:
        port, token = free_port(), secrets.token_hex(16)
        tokens = self._directory / "tokens.csv"
        tokens.write_text(f"{token},admin,1,system:masters\n")
        tokens.chmod(0o600)
        certificate, key = make_certificate(self._directory / "keys")
        self._kubeconfig.write_text(json.dumps(_kubeconfig(port, token, certificate)))
        self._kubeconfig.chmod(0o600)
        self._start(
            "kube-apiserver",
            # It advertises no loopback address, and needs not: nobody looks for it.
            *("--bind-address=127.0.0.1", "--endpoint-reconciler-type=none"),
            *(f"--secure-port={port}", f"--cert-dir={self._directory / 'keys'}"),
            *(f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}"),
            *(f"--etcd-servers={etcd}", "--service-cluster-ip-range=10.0.0.0/24"),
            *(f"--token-auth-file={tokens}", "--authorization-mode=RBAC"),
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={certificate}",
            f"--service-account-signing-key-file={key}",
            "--allow-privileged",  # as every cluster that runs DaemonSets of nodes
        )

    def _start(self, program: str, *options: str) -> None:
        with (self._directory / f"{program}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [program, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self._directory.glob("*.log")))


def missing() -> list[str]:
    """Return the programs that are not in PATH."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _kubeconfig(port: int, token: str, authority: Path) -> dict[str, Any]:
    server = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(authority)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": server}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
