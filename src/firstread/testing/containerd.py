# SPDX-License-Identifier: Apache-2.0
"""A containerd with a snapshotter and a daemon of their own, and a client of its CRI socket.

Owns the processes and all that they leave: shims, mounts, directories. Nothing of a containerd that
the machine runs is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import grpc

from firstread.run.overlay import unmount_below
from firstread.snapshotter.asked import TARGET
from firstread.snapshotter.configfile import Choice, added
from firstread.snapshotter.contentapi import ContainerdClient
from firstread.snapshotter.imagefs import home, link
from firstread.snapshotter.named import chain_ids
from firstread.snapshotter.wire import decode, encode
from firstread.testing import cri
from firstread.testing.command import Ran, firstread, program
from firstread.testing.daemon import Daemon, cpu_s
from firstread.testing.manager import ServiceManager
from firstread.testing.patience import PATIENCE_S

HOST_NETWORK = 2  # NamespaceMode.NODE
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
    ) -> None:
        self.scratch = scratch
        self.daemon = Daemon(scratch / "node", manager=manager)
        self._snapshots = snapshotter
        self.socket = scratch / "c.sock"
        self.logs = scratch / "pods"
        self._address = scratch / "s.sock"
        self._options = options
        self._command = command
        self._handler = handler
        self._proxies = proxies or {}
        self._containerd: subprocess.Popen[bytes] | None = None
        self._snapshotter: subprocess.Popen[bytes] | None = None
        self._names = 0
        for directory in (scratch / "node", scratch / "root", self.logs):
            directory.mkdir(parents=True)
        (scratch / "config.toml").write_text(self._config(pause))

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
            for pod in self.call("ListPodSandbox", cri.Empty(), cri.Pods).items:
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
        """Kill containerd as a crash would; containers go on."""
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
        """Return the shims of this containerd, and nobody else's."""
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
            status = self.call("Status", cri.Empty(), cri.Status).status
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
        """Wait for what containerd's garbage collector brings about.

        What is deleted while it runs, it does not notice before the next deletion: a lease is one.
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
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=PATIENCE_S
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def firstread_pull(
        self, image: str, *, namespace: str = "default", address: Path | None = None
    ) -> Ran:
        """Run ``firstread pull``."""
        where = ("--namespace", namespace, "--containerd", str(address or self.socket))
        return firstread("pull", *where, image)

    def prepare_without_names(self, image: str, namespace: str = "k8s.io") -> list[str]:
        """Prepare the layers of an image that is in the store, without saying which image it is.

        They stay, although nothing refers to them: clients label the config with the last one.

        Returns the chain ids.
        """
        with ContainerdClient(self.socket, namespace) as client:
            listed = self.ctr("images", "ls", f"name=={image}", namespace=namespace).stdout
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
        """Return what containerd lists of the snapshotter."""
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
    ) -> str:
        """Pull an image, as the kubelet does; return its id.

        Args:
            image: name.
            timeout_s: for the whole of it.
            pod: that it is pulled for.
            runtime_handler: of the pod's RuntimeClass, if the kubelet says it.
        """
        spec = cri.ImageSpec(image, runtime_handler=runtime_handler)
        request = cri.PullImage(spec) if pod is None else cri.PullImage(spec, pod)
        answer: cri.PulledImage = self.call("PullImage", request, cri.PulledImage, timeout_s)
        return answer.image_ref

    def remove_image(self, image: str) -> None:
        """Remove an image."""
        self.call("RemoveImage", cri.RemoveImage(cri.ImageSpec(image)), cri.Empty)

    def pod_config(self, annotations: dict[str, str] | None = None) -> cri.PodConfig:
        """Return the configuration of a new sandbox in the host's network."""
        self._names += 1
        name = f"pod-{self._names}"
        namespaces = cri.NamespaceOption(network=HOST_NETWORK)
        return cri.PodConfig(
            metadata=cri.PodMetadata(name, f"uid-{name}", "default"),
            log_directory=str(self.logs),
            annotations=annotations or {},
            linux=cri.LinuxPod(security_context=cri.PodSecurity(namespaces)),
        )

    def start_pod(
        self, config: cri.PodConfig | None = None, runtime_handler: str = ""
    ) -> tuple[str, cri.PodConfig]:
        """Start a sandbox; return its id and its config."""
        config = config or self.pod_config()
        answer = self.call("RunPodSandbox", cri.RunPod(config, runtime_handler), cri.PodId)
        return answer.id, config

    def start_container(
        self, pod: tuple[str, cri.PodConfig], image: str, *command: str
    ) -> tuple[str, Path]:
        """Create and start a container; return its id and its log."""
        self._names += 1
        name = f"container-{self._names}"
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name),
            image=cri.ImageSpec(image),
            command=list(command),
            log_path=f"{name}.log",
        )
        request = cri.CreateContainer(pod[0], config, pod[1])
        container = self.call("CreateContainer", request, cri.ContainerId).id
        self.call("StartContainer", cri.ContainerId(container), cri.Empty)
        return container, self.logs / f"{name}.log"

    def run(self, image: str, *command: str) -> list[str]:
        """Run a container in a pod of its own to its end; return the lines that it prints."""
        pod = self.start_pod()
        container, log = self.start_container(pod, image, *command)
        self.wait(lambda: self.state(container) == cri.EXITED)
        lines = [line.split(" ", 3)[3] for line in log.read_text().splitlines()]
        self.remove_pod(pod[0])
        return lines

    def exec(self, container: str, *command: str) -> str:
        """Run a command in a container; return its output."""
        request = cri.ExecSync(container, list(command), int(PATIENCE_S))
        answer: cri.Executed = self.call("ExecSync", request, cri.Executed)
        assert answer.exit_code == 0, answer
        return answer.stdout.decode()

    def state(self, container: str) -> int:
        """Return the state of a container."""
        request = cri.ContainerId(container)
        answer: cri.ContainerStatusAnswer = self.call(
            "ContainerStatus", request, cri.ContainerStatusAnswer
        )
        return answer.status.state

    def remove_pod(self, pod: str) -> None:
        """Stop and remove a sandbox and its containers."""
        self.call("StopPodSandbox", cri.PodId(pod), cri.Empty)
        self.call("RemovePodSandbox", cri.PodId(pod), cri.Empty)

    def call(
        self, method: str, request: Any, answer: type[Any], timeout_s: float = PATIENCE_S
    ) -> Any:
        """Call a method of CRI. Raises `grpc.RpcError`."""
        service = "ImageService" if "Image" in method else "RuntimeService"
        with grpc.insecure_channel(f"unix://{self.socket}") as channel:
            call = channel.unary_unary(
                f"/runtime.v1.{service}/{method}", encode, lambda data: decode(answer, data)
            )
            return call(request, timeout=timeout_s)

    def _config(self, pause: str) -> str:
        text = json.dumps  # a string of JSON is one of TOML
        is_2 = containerd_version()[0] >= 2
        images = 'plugins."io.containerd.cri.v1.images"'
        runtime = f'plugins."io.containerd.{"cri.v1.runtime" if is_2 else "grpc.v1.cri"}"'
        chooses = images if is_2 else f"{runtime}.containerd"
        # By default containerd collects for a fiftieth of its time, so that after a collection of
        # a second on a busy machine what is deleted may stay for a minute.
        config = f"""
version = {3 if is_2 else 2}
root = {text(str(self.scratch / "root"))}
state = {text(str(self.scratch / "state"))}
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = {text(str(self.socket))}
[plugins."io.containerd.gc.v1.scheduler"]
  pause_threshold = 0.5
[{runtime}]
  disable_apparmor = true
  restrict_oom_score_adj = true
  {"" if is_2 else f"sandbox_image = {text(pause)}"}
  {"" if is_2 else "stats_collect_period = 1"}
[{runtime}.cni]
  conf_dir = {text(str(self.scratch / "cni"))}
[{chooses}]
  snapshotter = {text(self._snapshots)}
  disable_snapshot_annotations = false
  {"stats_collect_period = 1" if is_2 else ""}
"""
        if is_2:
            config += f"[{images}.pinned_images]\n  sandbox = {text(pause)}\n"
        for name, path in self._proxies.items():
            config += f"""
[proxy_plugins.{name}]
  type = "snapshot"
  address = {text(str(path))}
  [proxy_plugins.{name}.exports]
    enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "{name}"
"""
        if self._handler:
            config += f"""
[{runtime}.containerd.runtimes.{self._handler}]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "firstread"
[{images}.runtime_platforms.{self._handler}]
  snapshotter = "firstread"
"""
        measured = home(self.daemon.root)
        link(config, measured)
        return added(config, Choice(str(self._address), containerd2=is_2, root=str(measured)))


def containerd_version() -> tuple[int, int]:
    """Return the version of the containerd that is found first."""
    done = subprocess.run(
        ["containerd", "--version"],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    found = re.search(r"\s(?:v)?(\d+)\.(\d+)\.\d+", done.stdout)
    assert found is not None, done.stdout
    return int(found[1]), int(found[2])


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    assert process is not None
    process.kill()
    process.wait(timeout=PATIENCE_S)
