# SPDX-License-Identifier: Apache-2.0
"""A real kubelet above a `Containerd` of the tests.

Owns its process, its directory and the settings of the kernel that it changes. It finds pods in
files, as static pods, or asks an `ApiServer`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from tests.kubelet.apiserver import NODE, ApiServer

from firstread.testing.containerd import Containerd
from firstread.testing.patience import PATIENCE_S
from firstread.testing.ports import free_port

# It sets them for the whole machine (pkg/kubelet/cm, setupKernelTunables).
_TUNED: Final = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
_PERIOD: Final = "1s"
DROP_IN: Final = Path(__file__).parents[2] / "packaging/kubernetes/kubelet/90-firstread.conf"


def version() -> str:
    """Return the version of the kubelet that is found first; empty if there is none."""
    if shutil.which("kubelet") is None:
        return ""
    command = ["kubelet", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.stdout.split()[-1]


class Kubelet:
    """A kubelet; a context manager. Its pods outlive it, as they do elsewhere.

    Args:
        node: whose containerd it uses.
        directory: of this kubelet; may have been another's.
        api: server that it asks for pods; None for static pods alone.
        providers: CredentialProviderConfig and the directory of its plugins.
        settings: of KubeletConfiguration, besides the usual.
    """

    def __init__(
        self,
        node: Containerd,
        directory: Path,
        *,
        api: ApiServer | None = None,
        providers: tuple[Path, Path] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.node = node
        self.directory = directory
        self.manifests = directory / "manifests"
        self.manifests.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._tuned: dict[Path, str] = {}
        config = directory / "config.json"
        config.write_text(json.dumps(self._config(settings or {})))
        drop_in = directory / "conf.d" / DROP_IN.name
        drop_in.parent.mkdir(exist_ok=True)
        ours = DROP_IN.read_text().replace("/run/firstread/images.sock", str(node.images))
        drop_in.write_text(ours)
        self._command = ["kubelet", "--config", str(config), "--config-dir", str(drop_in.parent)]
        self._command += ["--root-dir", str(directory / "root")]
        self._command += ["--cert-dir", str(directory / "pki"), "--hostname-override", NODE]
        if api is not None:
            path = directory / "kubeconfig"
            path.write_text(json.dumps(api.kubeconfig()))
            self._command += ["--kubeconfig", str(path)]
        if providers is not None:
            self._command += ["--image-credential-provider-config", str(providers[0])]
            self._command += ["--image-credential-provider-bin-dir", str(providers[1])]

    def __enter__(self) -> Self:
        self._tuned = {(path := Path("/proc/sys") / name): path.read_text() for name in _TUNED}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.node.wait(self._serves)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=PATIENCE_S)
        for path, text in self._tuned.items():
            path.write_text(text)

    @property
    def log_file(self) -> Path:
        """What it logs; `Containerd.wait` quotes it."""
        return self.node.scratch / "kubelet.log"

    def run(self, name: str, image: str, *command: str, **fields: Any) -> None:
        """Give it a static pod of one container."""
        document = json.dumps(pod(name, image, *command, **fields))
        scratch = self.manifests / f".{name}"  # a kubelet leaves hidden files alone
        scratch.write_text(document)
        scratch.replace(self.manifests / f"{name}.json")

    def stop(self, name: str) -> None:
        """Take a static pod away; return when its container is gone."""
        (self.manifests / f"{name}.json").unlink()
        self.node.wait(lambda: self.pod(name) is None)

    def pod(self, name: str) -> dict[str, Any] | None:
        """Return a pod as the kubelet shows it; None if it has none of that name."""
        for each in self.get("/pods")["items"] or []:
            if each["metadata"]["name"] in (name, f"{name}-{NODE}"):
                return dict(each)
        return None

    def wait_running(self, name: str) -> None:
        """Wait until the container of a pod runs."""
        self.node.wait(lambda: self.state(name) == "running")

    def state(self, name: str) -> str:
        """Return ``waiting``, ``running`` or ``terminated`` of a pod's container, or ``""``."""
        found = self.pod(name) or {}
        statuses = found.get("status", {}).get("containerStatuses", [])
        return next((key for status in statuses for key in status["state"]), "")

    def reason(self, name: str) -> str:
        """Return why the container of a pod waits, and what the kubelet says of it."""
        found = self.pod(name) or {}
        statuses = found.get("status", {}).get("containerStatuses", [])
        waiting = [status["state"].get("waiting", {}) for status in statuses]
        return " ".join(f"{each.get('reason', '')} {each.get('message', '')}" for each in waiting)

    def exec(self, name: str, *command: str) -> str:
        """Run a command in the container of a pod; return its output."""
        found = self.pod(name)
        assert found is not None
        (status,) = found["status"]["containerStatuses"]
        return self.node.exec(status["containerID"].removeprefix("containerd://"), *command)

    def summary(self) -> dict[str, Any]:
        """Return ``/stats/summary``."""
        return dict(self.get("/stats/summary"))

    def get(self, path: str) -> Any:
        """Return a document of its read-only port."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self._port}{path}", timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def log(self) -> str:
        """Return what it has logged."""
        return self.log_file.read_text()

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()[-3000:]
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            self.get("/pods")
            return True
        return False

    def _config(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": "127.0.0.1",
            "port": free_port(),
            "readOnlyPort": self._port,
            "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": ["none"],
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "containerRuntimeEndpoint": f"unix://{self.node.socket}",
            "volumePluginDir": str(self.directory / "plugins"),
            "staticPodPath": str(self.manifests),
            "podLogsDir": str(self.node.logs),
            "contentType": "application/json",
            "configMapAndSecretChangeDetectionStrategy": "Get",
            "fileCheckFrequency": _PERIOD,
            "syncFrequency": _PERIOD,
            "volumeStatsAggPeriod": _PERIOD,
            "serializeImagePulls": False,
            "evictionHard": {"nodefs.available": "1Mi", "imagefs.available": "1Mi"},
            **settings,
        }


def pod(name: str, image: str, *command: str, **fields: Any) -> dict[str, Any]:
    """Return a pod of one container in the host's network.

    Args:
        name: of the pod.
        image: of its container.
        command: of its container.
        fields: more of the container; those of the pod are ``volumes``, ``pull_secrets``.
    """
    spec: dict[str, Any] = {
        "hostNetwork": True,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "enableServiceLinks": False,
        "securityContext": {},
        "automountServiceAccountToken": False,
        "nodeName": NODE,
        "volumes": fields.pop("volumes", []),
        "imagePullSecrets": [{"name": each} for each in fields.pop("pull_secrets", [])],
    }
    policy = {"imagePullPolicy": "IfNotPresent"}
    container = {"name": "main", "image": image, "command": list(command), **policy, **fields}
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}"}
    spec["containers"] = [container]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
