# SPDX-License-Identifier: Apache-2.0
"""A client of the snapshots API, and mounts as containerd would make them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from firstread.device import syscalls
from firstread.device.erofsmount import unmount
from firstread.snapshotter import containerd_pb2 as api
from firstread.snapshotter.messages import SERVICE, encode
from firstread.testing.patience import PATIENCE_S

M = TypeVar("M", bound=Message)


class SnapshotsClient:
    """Calls a snapshotter at a Unix socket; a context manager. Raises `grpc.RpcError`."""

    def __init__(self, address: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{address}")

    def __enter__(self) -> Self:
        grpc.channel_ready_future(self._channel).result(timeout=PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[api.Mount]:
        request = api.PrepareRequest(key=key, parent=parent, labels=labels)
        return self._mounts("Prepare", request)

    def view(self, key: str, parent: str = "") -> list[api.Mount]:
        return self._mounts("View", api.PrepareRequest(key=key, parent=parent))

    def mounts(self, key: str) -> list[api.Mount]:
        return self._mounts("Mounts", api.KeyRequest(key=key))

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = ""
    ) -> None:
        request = api.CommitRequest(name=name, key=key, labels=labels, parent=parent)
        self._call("Commit", request, Empty)

    def remove(self, key: str) -> None:
        self._call("Remove", api.KeyRequest(key=key), Empty)

    def stat(self, key: str) -> api.Info:
        return self._call("Stat", api.KeyRequest(key=key), api.InfoResponse).info

    def update(self, info: api.Info, *paths: str) -> api.Info:
        request = api.UpdateRequest(info=info, update_mask=FieldMask(paths=paths))
        return self._call("Update", request, api.InfoResponse).info

    def usage(self, key: str) -> api.UsageResponse:
        return self._call("Usage", api.KeyRequest(key=key), api.UsageResponse)

    def cleanup(self) -> None:
        self._call("Cleanup", api.CleanupRequest(), Empty)

    def walk(self, *filters: str) -> list[api.Info]:
        method = self._channel.unary_stream(f"/{SERVICE}/List", encode, api.ListResponse.FromString)
        answers = method(api.ListRequest(filters=filters), timeout=PATIENCE_S)
        return [info for answer in answers for info in answer.info]

    def _mounts(self, method: str, request: Message) -> list[api.Mount]:
        return list(self._call(method, request, api.MountsResponse).mounts)

    def _call(self, method: str, request: Message, answer: type[M]) -> M:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}", encode, answer.FromString)
        found: M = call(request, timeout=PATIENCE_S)
        return found


@contextlib.contextmanager
def mounted(mounts: Sequence[api.Mount]) -> Iterator[Path]:
    """Mount what a snapshotter has answered; yield where."""
    (mount,) = mounts
    with tempfile.TemporaryDirectory(prefix="firstread-snapshot-") as place:
        attach(mount, Path(place))
        try:
            yield Path(place)
        finally:
            unmount(Path(place), lazy=True)


def attach(mount: api.Mount, place: Path) -> None:
    """Make one mount; of any number of layers, as containerd does by other means."""
    if mount.type == "bind":
        command = ["mount", "--rbind", "-o", ",".join({"ro"} & set(mount.options) or {"rw"})]
        subprocess.run([*command, mount.source, place], check=True, timeout=PATIENCE_S)
        return
    context = syscalls.fsopen("overlay")
    try:
        for option in mount.options:
            key, _, value = option.partition("=")
            if key == "lowerdir":
                for layer in value.split(":"):
                    syscalls.fsconfig_string(context, "lowerdir+", os.fsencode(layer))
            else:
                syscalls.fsconfig_string(context, key, os.fsencode(value))
        syscalls.fsconfig_create(context)
        descriptor = syscalls.fsmount(context, 0)
    finally:
        os.close(context)
    try:
        syscalls.move_mount(descriptor, os.fsencode(place))
    finally:
        os.close(descriptor)
