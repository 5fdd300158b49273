# SPDX-License-Identifier: Apache-2.0
"""A containerd with its own snapshotter and daemon, and a client of its CRI socket.

Owns the processes and all that they leave: shims, mounts, directories. A containerd of the machine
itself stays untouched.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from firstread.run.overlay import unmount_below
from firstread.snapshotter.asked import TARGET
from firstread.snapshotter.contentapi import ContainerdClient
from firstread.snapshotter.imagefs import home, link
from firstread.snapshotter.imagelookup import chain_ids
from firstread.snapshotter.messages import encode
from firstread.testing import cri_pb2 as cri
from firstread.testing.command import Ran, firstread, program, ran
from firstread.testing.containerdconfig import ContainerdConfig
from firstread.testing.daemon import Daemon, cpu_s
from firstread.testing.manager import ServiceManager
from firstread.testing.patience import PATIENCE_S

HOST_NETWORK = 2  # NamespaceMode.NODE
EXITED = 2  # ContainerState
M = TypeVar("M", bound=Message)
GC_ROOT = "containerd.io/gc.root"  # label of what stays, although nothing refers to it


class Containerd:
    """Debian's containerd beside a daemon and a snapshotter; a context manager.

    Args:
        scratch: an empty directory on ext4, xfs or btrfs, with a short path.
        pause: name of the image of sandboxes.
        options: more of the snapshotter's command line.
        snapshotter: that pods use.
        manager: that runs the daemon as a service.
        command: to start the snapshotter with, such as setpriv and its options.
        handler: a runtime that uses our snapshotter; takes containerd 2.
        proxies: sockets of other snapshotters, by name.
        device: of the daemon; empty for what it chooses.
        image_service: have image calls go through the snapshotter, as a kubelet can.
    """

    def __init__(
        self,
        scratch: Path,
        pause: str,
        *options: str,
        snapshotter: str = "firstread",
        manager: ServiceManager | None = None,
        command: tuple[str, ...] = (),
        handler: str = "",
        proxies: Mapping[str, Path] | None = None,
        device: str = "",
        image_service: bool = False,
    ) -> None:
        self.scratch = scratch
        self.images = scratch / ("i.sock" if image_service else "c.sock")
        chosen = ("--device", device) if device else ()
        self.daemon = Daemon(scratch / "node", *chosen, manager=manager)
        self.socket = scratch / "c.sock"
        self.logs = scratch / "pods"
        self._address = scratch / "s.sock"
        self._options = (
            (*options, "--image-service", str(self.images)) if image_service else options
        )
        self._command = command
        self._containerd: subprocess.Popen[bytes] | None = None
        self._snapshotter: subprocess.Popen[bytes] | None = None
        self._names = 0
        for directory in (scratch / "node", scratch / "root", self.logs):
            directory.mkdir(parents=True)
        measured = home(self.daemon.root)
        config = ContainerdConfig(
            scratch,
            self.socket,
            pause,
            snapshotter,
            self._address,
            measured,
            proxies or {},
            handler,
        ).text()
        link(config, measured)
        (scratch / "config.toml").write_text(config)

    def __enter__(self) -> Self:
        self.daemon.start()
        try:
            self.start_snapshotter()
            self.start_containerd()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            for pod in self.call("ListPodSandbox", cri.Empty(), cri.PodList).items:
                self.remove_pod(pod.id)
        for process in (self._containerd, self._snapshotter):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(timeout=PATIENCE_S)
        for pid in self._shims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        unmount_below(self.scratch / "state")
        self.daemon.__exit__()

    # -- processes -----------------------------------------------------------------------------

    def start_snapshotter(self) -> None:
        """Start a snapshotter; return when it listens."""
        places = ("--root", str(self.daemon.root), "--run-dir", str(self.daemon.run_dir))
        sockets = ("--address", str(self._address), "--containerd", str(self.socket))
        command = program("snapshotter", *places, *sockets, *self._options)
        self._address.unlink(missing_ok=True)
        self._snapshotter = self._start([*self._command, *command], "snapshotter.log")
        self.wait(self._address.exists)

    def start_containerd(self) -> None:
        """Start containerd; return when its CRI service answers."""
        command = ["containerd", "--config", str(self.scratch / "config.toml")]
        self._containerd = self._start(command, "containerd.log")
        self.wait(self._answers)

    def kill_containerd(self) -> None:
        """Kill containerd as a crash would; containers keep running."""
        _kill(self._containerd)

    def kill_snapshotter(self) -> None:
        """Kill the snapshotter as a crash would."""
        _kill(self._snapshotter)

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time that each has used, in seconds."""
        assert self._containerd is not None
        assert self._snapshotter is not None
        return {
            "containerd": cpu_s(self._containerd.pid),
            "snapshotter": cpu_s(self._snapshotter.pid),
            "daemon": self.daemon.cpu_s(),
        }

    def log(self, name: str = "snapshotter") -> str:
        """Return what a process has logged."""
        return (self.scratch / f"{name}.log").read_text()

    def _start(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.scratch / log).open("ab") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def _shims(self) -> list[int]:
        """Return the shims of this containerd, and of no other."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal():
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if b"shim" in words[0] and str(self.socket).encode() in words:
                        found.append(int(entry.name))
        return found

    def _answers(self) -> bool:
        try:
            status = self.call("Status", cri.Empty(), cri.StatusResponse).status
        except grpc.RpcError:
            return False
        return any(item.type == "RuntimeReady" and item.ready for item in status.conditions)

    def wait(self, condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
        """Wait until `condition` holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self._all_logs()
            time.sleep(0.05)

    def wait_collected(self, condition: Callable[[], object]) -> None:
        """Wait for an effect of containerd's garbage collector.

        The collector misses what is deleted while it runs, until something else is: a lease, here.
        """

        def collected() -> object:
            if condition():
                return True
            lease = self.ctr("leases", "create").stdout.strip()
            assert self.ctr("leases", "rm", "--sync", lease).code == 0
            return condition()

        self.wait(collected)

    def _all_logs(self) -> str:
        logs = [path.read_text()[-3000:] for path in sorted(self.scratch.glob("*.log"))]
        return "it does not happen; the logs:\n" + "\n".join(logs)

    # -- commands ------------------------------------------------------------------------------

    def ctr(self, *arguments: str, namespace: str = "k8s.io") -> Ran:
        """Run ctr."""
        command = ["ctr", "--address", str(self.socket), "--namespace", namespace, *arguments]
        return ran(command)

    def firstread_pull(
        self, image: str, *options: str, namespace: str = "default", address: Path | None = None
    ) -> Ran:
        """Run ``firstread pull``."""
        where = ("--namespace", namespace, "--containerd", str(address or self.socket))
        return firstread("pull", *options, *where, image)

    def prepare_without_names(self, image: str) -> list[str]:
        """Prepare the layers of an image in the store without naming it; return the chain ids.

        A label keeps them: nothing refers to them, as clients label the config only at the end.
        """
        with ContainerdClient(self.socket, "k8s.io") as client:
            listed = self.ctr("images", "ls", f"name=={image}").stdout
            digest = next(word for word in listed.split() if word.startswith("sha256:"))
            manifest = json.loads(client.read(digest))
            config = json.loads(client.read(manifest["config"]["digest"]))
            chains = chain_ids(config["rootfs"]["diff_ids"])
            for layer, parent, chain in zip(
                manifest["layers"], ["", *chains], chains, strict=False
            ):
                labels = layer.get("annotations", {}) | {TARGET: chain, GC_ROOT: "now"}
                assert not client.prepare("firstread", f"extract-1 {chain}", parent, labels)
        return chains

    def snapshots(self, namespace: str = "k8s.io") -> list[str]:
        """Return the snapshots that containerd lists."""
        ran = self.ctr("snapshots", "--snapshotter", "firstread", "ls", namespace=namespace)
        return [line.split()[0] for line in ran.stdout.splitlines()[1:]]

    def task_pid(self, container: str) -> int:
        """Return the process number of a container."""
        listed = self.ctr("tasks", "ls").stdout.splitlines()
        return next(int(line.split()[1]) for line in listed if line.startswith(container))

    # -- CRI -----------------------------------------------------------------------------------

    def pull(
        self,
        image: str,
        timeout_s: float = PATIENCE_S,
        *,
        pod: cri.PodConfig | None = None,
        runtime_handler: str = "",
        login: tuple[str, str] | None = None,
    ) -> str:
        """Pull an image, as the kubelet does; return its id.

        Args:
            image: name.
            timeout_s: for the whole pull.
            pod: that needs it.
            runtime_handler: of the pod's RuntimeClass; empty for none.
            login: user name and password for the registry.
        """
        spec = cri.ImageSpec(image=image, runtime_handler=runtime_handler)
        auth = cri.AuthConfig(username=login[0], password=login[1]) if login else None
        request = cri.PullImageRequest(image=spec, auth=auth, sandbox_config=pod)
        return self.call("PullImage", request, cri.PullImageResponse, timeout_s).image_ref

    def remove_image(self, image: str) -> None:
        """Remove an image."""
        request = cri.RemoveImageRequest(image=cri.ImageSpec(image=image))
        self.call("RemoveImage", request, cri.Empty)

    def pod_config(self, annotations: dict[str, str] | None = None) -> cri.PodConfig:
        """Return the configuration of a new sandbox in the host's network."""
        self._names += 1
        name = f"pod-{self._names}"
        namespaces = cri.NamespaceOption(network=HOST_NETWORK)
        return cri.PodConfig(
            metadata=cri.PodMetadata(name=name, uid=f"uid-{name}", namespace="default"),
            log_directory=str(self.logs),
            annotations=annotations,
            linux=cri.LinuxPod(security_context=cri.PodSecurity(namespace_options=namespaces)),
        )

    def start_pod(
        self, config: cri.PodConfig | None = None, runtime_handler: str = ""
    ) -> tuple[str, cri.PodConfig]:
        """Start a sandbox; return its id and its config."""
        config = config or self.pod_config()
        request = cri.RunPodRequest(config=config, runtime_handler=runtime_handler)
        return self.call("RunPodSandbox", request, cri.PodId).id, config

    def start_container(
        self, pod: tuple[str, cri.PodConfig], image: str, *command: str
    ) -> tuple[str, Path]:
        """Create and start a container; return its id and its log."""
        self._names += 1
        name = f"container-{self._names}"
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=image),
            command=command,
            log_path=f"{name}.log",
        )
        request = cri.CreateContainerRequest(
            pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1]
        )
        container = self.call("CreateContainer", request, cri.ContainerId).id
        self.call("StartContainer", cri.ContainerId(id=container), cri.Empty)
        return container, self.logs / f"{name}.log"

    def run(self, image: str, *command: str) -> list[str]:
        """Run a container in a pod of its own to its end; return the lines that it prints."""
        pod = self.start_pod()
        container, log = self.start_container(pod, image, *command)
        self.wait(lambda: self.state(container) == EXITED)
        lines = [line.split(" ", 3)[3] for line in log.read_text().splitlines()]
        self.remove_pod(pod[0])
        return lines

    def exec(self, container: str, *command: str) -> str:
        """Run a command in a container; return its output."""
        request = cri.ExecSyncRequest(container_id=container, cmd=command, timeout=int(PATIENCE_S))
        answer = self.call("ExecSync", request, cri.ExecSyncResponse)
        assert answer.exit_code == 0, answer
        return answer.stdout.decode()

    def state(self, container: str) -> int:
        """Return the state of a container."""
        request = cri.ContainerId(id=container)
        return self.call("ContainerStatus", request, cri.ContainerStatusResponse).status.state

    def remove_pod(self, pod: str) -> None:
        """Stop and remove a sandbox and its containers."""
        self.call("StopPodSandbox", cri.PodId(id=pod), cri.Empty)
        self.call("RemovePodSandbox", cri.PodId(id=pod), cri.Empty)

    def call(
        self, method: str, request: Message, answer: type[M], timeout_s: float = PATIENCE_S
    ) -> M:
        """Call a method of CRI. Raises `grpc.RpcError`."""
        images = "Image" in method
        path = f"/runtime.v1.{'ImageService' if images else 'RuntimeService'}/{method}"
        socket = self.images if images else self.socket
        with grpc.insecure_channel(f"unix://{socket}") as channel:
            call = channel.unary_unary(path, encode, answer.FromString)
            found: M = call(request, timeout=timeout_s)
            return found


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    assert process is not None
    process.kill()
    process.wait(timeout=PATIENCE_S)
