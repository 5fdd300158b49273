# SPDX-License-Identifier: Apache-2.0
"""Messages of the container runtime interface, as much as the tests need.

Source: cri-api, pkg/apis/runtime/v1/api.proto.
"""

from __future__ import annotations

from dataclasses import dataclass

from firstread.snapshotter.wire import labels, message, messages, number, raw, text, texts

EXITED = 2  # ContainerState


@dataclass
class Empty:
    """A message without fields, or of which none matters."""


@dataclass
class Condition:
    """Whether a part of the runtime is ready."""

    type: str = text(1)
    ready: int = number(2)


@dataclass
class RuntimeStatus:
    """All conditions."""

    conditions: list[Condition] = messages(1, Condition)


@dataclass
class Status:
    """The answer to Status."""

    status: RuntimeStatus = message(1, RuntimeStatus)


@dataclass
class ImageSpec:
    """The name of an image."""

    image: str = text(1)
    annotations: dict[str, str] = labels(2)
    runtime_handler: str = text(19)


@dataclass
class PulledImage:
    """The answer to PullImage."""

    image_ref: str = text(1)


@dataclass
class RemoveImage:
    """The request of RemoveImage."""

    image: ImageSpec = message(1, ImageSpec)


@dataclass
class FileSystemId:
    """FilesystemIdentifier: a directory on it."""

    mountpoint: str = text(1)


@dataclass
class UInt64:
    """UInt64Value."""

    value: int = number(1)


@dataclass
class FileSystemUsage:
    """What is taken of a file system."""

    fs_id: FileSystemId = message(2, FileSystemId)
    used_bytes: UInt64 = message(3, UInt64)
    inodes_used: UInt64 = message(4, UInt64)


@dataclass
class ImageFsInfo:
    """The answer to ImageFsInfo."""

    image_filesystems: list[FileSystemUsage] = messages(1, FileSystemUsage)


@dataclass
class PodMetadata:
    """What a pod is called."""

    name: str = text(1)
    uid: str = text(2)
    namespace: str = text(3)


@dataclass
class NamespaceOption:
    """Which namespaces a pod shares with the host."""

    network: int = number(1)


@dataclass
class PodSecurity:
    """LinuxSandboxSecurityContext."""

    namespace_options: NamespaceOption = message(1, NamespaceOption)


@dataclass
class LinuxPod:
    """LinuxPodSandboxConfig."""

    security_context: PodSecurity = message(2, PodSecurity)


@dataclass
class PodConfig:
    """PodSandboxConfig."""

    metadata: PodMetadata = message(1, PodMetadata)
    log_directory: str = text(3)
    annotations: dict[str, str] = labels(7)
    linux: LinuxPod = message(8, LinuxPod)


@dataclass
class PullImage:
    """The request of PullImage."""

    image: ImageSpec = message(1, ImageSpec)
    sandbox_config: PodConfig = message(3, PodConfig)


@dataclass
class RunPod:
    """The request of RunPodSandbox."""

    config: PodConfig = message(1, PodConfig)
    runtime_handler: str = text(2)


@dataclass
class PodId:
    """Names a sandbox, in requests and answers."""

    id: str = text(1)


@dataclass
class Pods:
    """The answer to ListPodSandbox."""

    items: list[PodId] = messages(1, PodId)


@dataclass
class ContainerMetadata:
    """What a container is called."""

    name: str = text(1)


@dataclass
class ContainerConfig:
    """What a container runs."""

    metadata: ContainerMetadata = message(1, ContainerMetadata)
    image: ImageSpec = message(2, ImageSpec)
    command: list[str] = texts(3)
    log_path: str = text(11)


@dataclass
class CreateContainer:
    """The request of CreateContainer."""

    pod_sandbox_id: str = text(1)
    config: ContainerConfig = message(2, ContainerConfig)
    sandbox_config: PodConfig = message(3, PodConfig)


@dataclass
class ContainerId:
    """Names a container, in requests and answers."""

    id: str = text(1)


@dataclass
class ContainerStatus:
    """What became of a container."""

    id: str = text(1)
    state: int = number(3)
    exit_code: int = number(7)


@dataclass
class ContainerStatusAnswer:
    """The answer to ContainerStatus."""

    status: ContainerStatus = message(1, ContainerStatus)


@dataclass
class ContainerStats:
    """What a container takes."""

    writable_layer: FileSystemUsage = message(4, FileSystemUsage)


@dataclass
class ContainerStatsAnswer:
    """The answer to ContainerStats."""

    stats: ContainerStats = message(1, ContainerStats)


@dataclass
class ExecSync:
    """The request of ExecSync."""

    container_id: str = text(1)
    cmd: list[str] = texts(2)
    timeout: int = number(3)


@dataclass
class Executed:
    """The answer to ExecSync."""

    stdout: bytes = raw(1)
    stderr: bytes = raw(2)
    exit_code: int = number(3)
