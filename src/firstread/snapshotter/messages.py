# SPDX-License-Identifier: Apache-2.0
"""The messages of containerd's snapshots API, version 1.

Owns names and field numbers; changing one breaks the talk with every containerd. Source:
api/services/snapshots/v1/snapshots.proto and api/types/mount.proto of containerd 2.4; 1.6 has the
same without `CommitRequest.parent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from firstread.snapshotter.wire import labels, message, messages, number, text, texts

SERVICE = "containerd.services.snapshots.v1.Snapshots"


class Kind(IntEnum):
    """What a snapshot is: read-only above its parent, writable, or finished."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass
class Empty:
    """google.protobuf.Empty."""


@dataclass
class Timestamp:
    """google.protobuf.Timestamp."""

    seconds: int = number(1)
    nanos: int = number(2)


@dataclass
class FieldMask:
    """google.protobuf.FieldMask."""

    paths: list[str] = texts(1)


@dataclass
class Mount:
    """One call of mount(8) that the client is to make."""

    type: str = text(1)
    source: str = text(2)
    target: str = text(3)
    options: list[str] = texts(4)


@dataclass
class MountsResponse:
    """The answer to Prepare, View and Mounts."""

    mounts: list[Mount] = messages(1, Mount)


@dataclass
class PrepareRequest:
    """The request of Prepare and View."""

    snapshotter: str = text(1)
    key: str = text(2)
    parent: str = text(3)
    labels: dict[str, str] = labels(4)


@dataclass
class KeyRequest:
    """The request of Mounts, Remove, Stat and Usage."""

    snapshotter: str = text(1)
    key: str = text(2)


@dataclass
class CommitRequest:
    """The request of Commit."""

    snapshotter: str = text(1)
    name: str = text(2)
    key: str = text(3)
    labels: dict[str, str] = labels(4)
    parent: str = text(5)


@dataclass
class Info:
    """What is known of a snapshot."""

    name: str = text(1)
    parent: str = text(2)
    kind: int = number(3)
    created_at: Timestamp | None = message(4, Timestamp)
    updated_at: Timestamp | None = message(5, Timestamp)
    labels: dict[str, str] = labels(6)


@dataclass
class InfoResponse:
    """The answer to Stat and Update."""

    info: Info | None = message(1, Info)


@dataclass
class UpdateRequest:
    """The request of Update."""

    snapshotter: str = text(1)
    info: Info | None = message(2, Info)
    update_mask: FieldMask | None = message(3, FieldMask)


@dataclass
class ListRequest:
    """The request of List."""

    snapshotter: str = text(1)
    filters: list[str] = texts(2)


@dataclass
class ListResponse:
    """Some of the snapshots that List finds."""

    info: list[Info] = messages(1, Info)


@dataclass
class UsageResponse:
    """What a snapshot takes, in bytes and inodes."""

    size: int = number(1)
    inodes: int = number(2)


@dataclass
class CleanupRequest:
    """The request of Cleanup."""

    snapshotter: str = text(1)
